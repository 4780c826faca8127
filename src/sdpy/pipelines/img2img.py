"""Image-to-image: from an image with noise added to it.

Source: "SDEdit" (Meng et al., 2022).
"""

from __future__ import annotations

from collections.abc import Generator

import torch

from sdpy.pipelines.loop import InitialLatents
from sdpy.pipelines.mask_conditioning import mask_everything
from sdpy.pipelines.request import Request
from sdpy.pipelines.task import Begin, noisy_latents, sample_latents, shape_of_latents
from sdpy.pipelines.vae import encode
from sdpy.runtime.fallbacks import Notice
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.session import Session
from sdpy.schedulers.base import Scheduler


class ImageToImage:
    """An image changed towards a prompt; see `Task`.

    ``strength`` says how much: this share of the steps is done. Where that is no step at all, no
    noise is added either.
    """

    DEFAULT_STRENGTH = 0.8

    def latent_shape(self, session: Session, request: Request) -> tuple[int, int, int, int]:
        """Of the image."""
        assert request.image is not None
        return shape_of_latents(session.variant, request.image.shape[-1], request.image.shape[-2])

    def check(self, session: Session, request: Request) -> None:
        """There is nothing else that could be wrong."""

    def prepare(
        self, models: RequestModels, request: Request, skip: int
    ) -> Generator[Notice, None, Begin]:
        """Encode the image. The posterior's sample is drawn before the noise, as in OCaml."""
        assert request.image is not None
        shown = yield from mask_everything(models, self.latent_shape(models.session, request))
        encoded = yield from encode(models, request.image)
        scaling_factor = models.session.headers.config("vae").scaling_factor

        def begin(scheduler: Scheduler, generator: torch.Generator) -> InitialLatents:
            conditioning = None if shown is None else shown.sample(generator)
            latents = sample_latents(scaling_factor, encoded, generator)
            noise = torch.randn(latents.shape, generator=generator)
            return InitialLatents(noisy_latents(scheduler, latents, noise), conditioning)

        return begin
