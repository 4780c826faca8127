"""Text to picture."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sdpy.pipelines.components import Components
from sdpy.pipelines.denoise import Walk
from sdpy.pipelines.events import Event
from sdpy.pipelines.fitting import fit_memory
from sdpy.pipelines.paint import Settings, check, latent_shape, paint
from sdpy.schedulers import Scheduler


def generate(
    components: Components, settings: Settings, *, width: int, height: int
) -> Iterator[Event]:
    """Paint a prompt.

    Args:
        components: the models.
        settings: what to paint and how.
        width, height: in pixels, multiples of what one latent covers.

    Raises:
        UsageError: an unsuitable size or setting.
        WeightsError: a file is broken or of the wrong kind.
        ShortageError: there is not enough memory.
        PaintingError: numbers went wrong.
    """
    shape = latent_shape(components, width, height)
    check(components, settings, shape, (components.variant.vae.latent_channels,))
    components = yield from fit_memory(components, settings, shape)

    def begin(scheduler: Scheduler, generator: torch.Generator) -> Walk:
        return Walk(torch.randn(shape, generator=generator) * scheduler.init_noise_sigma)

    yield from paint(components, settings, begin)
