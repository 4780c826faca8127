"""Picture to picture."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sdpy.models import DiagonalGaussian
from sdpy.pipelines.components import Components
from sdpy.pipelines.denoise import Walk
from sdpy.pipelines.events import Event
from sdpy.pipelines.fitting import fit_memory
from sdpy.pipelines.paint import Settings, check, latent_shape, paint, skipped_steps
from sdpy.pipelines.vae import encoding
from sdpy.schedulers import Scheduler


def img2img(
    components: Components, settings: Settings, picture: Tensor, *, strength: float
) -> Iterator[Event]:
    """Change a picture towards a prompt.

    Args:
        components: the models.
        settings: what to paint and how.
        picture: (1, 3, H, W) in [-1, 1], sides multiples of what one latent covers.
        strength: how much to change, in [0, 1]: this share of the steps is walked. Where that is
            no step at all, no noise is added either.

    Raises:
        UsageError: an unsuitable size or setting.
        WeightsError: a file is broken or of the wrong kind.
        ShortageError: there is not enough memory.
        PaintingError: numbers went wrong.

    Source: "SDEdit" (Meng et al., 2022); draws in the order of the OCaml program, the posterior's
    sample before the noise.
    """
    shape = latent_shape(components, picture.shape[-1], picture.shape[-2])
    skip = skipped_steps(settings.steps, strength)
    check(components, settings, shape, (components.variant.vae.latent_channels,))
    components = yield from fit_memory(components, settings, shape, encodes=True)
    encoded = yield from encoding(components, picture)

    def begin(scheduler: Scheduler, generator: torch.Generator) -> Walk:
        latents = sample_latents(components, encoded, generator)
        noise = torch.randn(latents.shape, generator=generator)
        return Walk(noisy(scheduler, latents, noise))

    yield from paint(components, settings, begin, skip)


def sample_latents(
    components: Components, encoded: DiagonalGaussian, generator: torch.Generator
) -> Tensor:
    """A sample of the distribution, scaled to unit variance as the UNet expects: (1, C, h, w)."""
    noise = torch.randn(encoded.mean.shape, generator=generator)
    return encoded.sample(noise) * components.vae_config.scaling_factor


def noisy(scheduler: Scheduler, latents: Tensor, noise: Tensor) -> Tensor:
    """Latents as noisy as the first timestep says; unchanged where there is none."""
    if len(scheduler.timesteps) == 0:
        return latents
    return scheduler.add_noise(latents, noise, scheduler.timesteps[0])
