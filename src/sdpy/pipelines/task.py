"""What the three tasks have in common: sizes, strength, first latents."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

import torch
from torch import Tensor

from sdpy.errors import UsageError
from sdpy.models import DiagonalGaussian
from sdpy.pipelines.loop import InitialLatents
from sdpy.pipelines.request import Request
from sdpy.runtime.fallbacks import Notice
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.session import Session
from sdpy.schedulers.base import Scheduler
from sdpy.zoo.variants import ModelVariant


class Begin(Protocol):
    """Makes the first latents of an image."""

    def __call__(self, scheduler: Scheduler, generator: torch.Generator) -> InitialLatents:
        """The latents of one image, all of whose noise comes from the generator."""


class Task(Protocol):
    """Text-to-image, image-to-image or inpainting, each a module of this package."""

    DEFAULT_STRENGTH: float
    """Share of the steps that is done where the request says nothing."""

    def latent_shape(self, session: Session, request: Request) -> tuple[int, int, int, int]:
        """(1, C, h, w). Raises ``UsageError`` for a size that cannot be."""

    def check(self, session: Session, request: Request) -> None:
        """Refuse what cannot work, reading no weights. Raises ``SdpyError``."""

    def prepare(
        self, models: RequestModels, request: Request, skip: int
    ) -> Generator[Notice, None, Begin]:
        """Encode what all images of the request begin with.

        Args:
            models: of the request.
            request: what is asked for.
            skip: number of steps that are left out at the start.
        """


def shape_of_latents(variant: ModelVariant, width: int, height: int) -> tuple[int, int, int, int]:
    """Shape (1, C, h, w) of the latents of an image of ``width`` x ``height`` pixels.

    Raises:
        UsageError: a side is too short, or no multiple of what one latent covers.
    """
    factor = variant.vae.downsample_factor
    least = min_side(variant)
    for name, side in (("--width", width), ("--height", height)):
        if side < least or side % factor:
            nearest = max(round(side / factor) * factor, least)
            raise UsageError(
                f"{name} {side}: use a multiple of {factor} from {least} on, such as {nearest}"
            )
    return (1, variant.vae.latent_channels, height // factor, width // factor)


def min_side(variant: ModelVariant) -> int:
    """The shortest side, in pixels, of an image that is worth generating: eight latents."""
    return 8 * variant.vae.downsample_factor


def skipped_steps(steps: int, strength: float) -> int:
    """How many steps are left out when an image is changed by ``strength``.

    Args:
        steps: number of steps.
        strength: share of them that is done, in [0, 1]; at 0 none is.

    Raises:
        UsageError: a strength outside [0, 1].
    """
    if not 0.0 <= strength <= 1.0:
        raise UsageError(f"strength {strength:g}: use 0 (change nothing) to 1 (paint anew)")
    return steps - int(steps * strength)


def sample_latents(
    scaling_factor: float, encoded: DiagonalGaussian, generator: torch.Generator
) -> Tensor:
    """A sample of the distribution, scaled to unit variance as the UNet expects: (1, C, h, w)."""
    noise = torch.randn(encoded.mean.shape, generator=generator)
    return encoded.sample(noise) * scaling_factor


def noisy_latents(scheduler: Scheduler, latents: Tensor, noise: Tensor) -> Tensor:
    """Latents as noisy as the first timestep says; unchanged where there is none."""
    if not scheduler.timesteps:
        return latents
    return scheduler.add_noise(latents, noise, scheduler.timesteps[0])
