"""Inpainting: repaint what a mask says, keep the rest."""

from __future__ import annotations

from collections.abc import Generator

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpy.errors import ImageError
from sdpy.models import DiagonalGaussian
from sdpy.pipelines.loop import InitialLatents, KnownRegion
from sdpy.pipelines.mask_conditioning import MaskConditioning, takes_mask
from sdpy.pipelines.request import Request
from sdpy.pipelines.task import Begin, noisy_latents, sample_latents, shape_of_latents
from sdpy.pipelines.vae import encode
from sdpy.runtime.fallbacks import Notice
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.session import Session
from sdpy.schedulers.base import Scheduler


class Inpainting:
    """A part of an image repainted; see `Task`.

    A UNet with 9 input channels is shown the mask and the masked image; one with 4 is held to the
    image outside the mask by putting its latents back after every step. Either way the decoder
    changes pixels outside the mask a little: put the result into the image with
    `sdpy.images.mask.composite`.
    """

    DEFAULT_STRENGTH = 1.0

    def latent_shape(self, session: Session, request: Request) -> tuple[int, int, int, int]:
        """Of the image."""
        assert request.image is not None
        return shape_of_latents(session.variant, request.image.shape[-1], request.image.shape[-2])

    def check(self, session: Session, request: Request) -> None:
        """Refuse a mask that repaints nothing.

        Raises:
            ImageError: nothing is repainted.
        """
        assert request.mask is not None
        if not (request.mask > 0).any():
            raise ImageError("the mask has nothing white, so there is nothing to repaint")

    def prepare(
        self, models: RequestModels, request: Request, skip: int
    ) -> Generator[Notice, None, Begin]:
        """Encode the image, the masked image, or both."""
        session, variant = models.session, models.variant
        assert request.image is not None and request.mask is not None
        latent_mask = self._latent_mask(session, request)
        scaling_factor = session.headers.config("vae").scaling_factor
        if not takes_mask(session):
            if variant.unet.in_channels != variant.vae.latent_channels:
                yield Notice(
                    f"{session.source.files.weights['unet']} is not made for inpainting: blending "
                    "the latents instead"
                )
            encoded = yield from encode(models, request.image)
            return _blending(scaling_factor, encoded, latent_mask, skip)
        hidden = (request.mask > 0).to(request.image.dtype)
        masked = yield from encode(models, request.image * (1 - hidden))
        # From pure noise, the image itself is not needed.
        whole = None if skip == 0 else (yield from encode(models, request.image))
        shown = MaskConditioning(latent_mask, masked, scaling_factor)
        return _conditioned(shown, whole, skip)

    def _latent_mask(self, session: Session, request: Request) -> Tensor:
        """(1, 1, h, w): 1 where any of a latent's pixels is repainted, however little, else 0."""
        assert request.mask is not None
        return F.max_pool2d((request.mask > 0).float(), session.variant.vae.downsample_factor)


def _conditioned(shown: MaskConditioning, encoded: DiagonalGaussian | None, skip: int) -> Begin:
    """For 9 channels. Draws the masked image's posterior first, as the OCaml program does."""

    def begin(scheduler: Scheduler, generator: torch.Generator) -> InitialLatents:
        conditioning = shown.sample(generator)
        original = None
        if encoded is not None:
            original = sample_latents(shown.scaling_factor, encoded, generator)
        noise = torch.randn(shown.masked.mean.shape, generator=generator)
        latents = _first_latents(scheduler, original, noise, skip)
        return InitialLatents(latents, image_conditioning=conditioning)

    return begin


def _blending(
    scaling_factor: float, encoded: DiagonalGaussian, latent_mask: Tensor, skip: int
) -> Begin:
    """For 4 channels: outside the mask the latents are the image's, as noisy as the step is."""

    def begin(scheduler: Scheduler, generator: torch.Generator) -> InitialLatents:
        original = sample_latents(scaling_factor, encoded, generator)
        noise = torch.randn(original.shape, generator=generator)
        latents = _first_latents(scheduler, original, noise, skip)
        return InitialLatents(latents, known=KnownRegion(original, noise, latent_mask))

    return begin


def _first_latents(
    scheduler: Scheduler, original: Tensor | None, noise: Tensor, skip: int
) -> Tensor:
    """Pure noise where all steps are done, else the image's latents with noise."""
    if skip == 0 or original is None:
        return noise * scheduler.init_noise_sigma
    return noisy_latents(scheduler, original, noise)
