"""Text-to-image: from pure noise."""

from __future__ import annotations

from collections.abc import Generator

import torch

from sdpy.pipelines.loop import InitialLatents
from sdpy.pipelines.mask_conditioning import mask_everything
from sdpy.pipelines.request import Request
from sdpy.pipelines.task import Begin, shape_of_latents
from sdpy.runtime.fallbacks import Notice
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.session import Session
from sdpy.schedulers.base import Scheduler


class TextToImage:
    """An image of a prompt; see `Task`."""

    DEFAULT_STRENGTH = 1.0

    def latent_shape(self, session: Session, request: Request) -> tuple[int, int, int, int]:
        """Of the request's size, or of the side that the model was trained on."""
        side = session.variant.sample_size
        width = side if request.width is None else request.width
        height = side if request.height is None else request.height
        return shape_of_latents(session.variant, width, height)

    def check(self, session: Session, request: Request) -> None:
        """There is nothing else that could be wrong."""

    def prepare(
        self, models: RequestModels, request: Request, skip: int
    ) -> Generator[Notice, None, Begin]:
        """Every image begins with noise of its own; only UNets for inpainting are shown more."""
        shape = self.latent_shape(models.session, request)
        shown = yield from mask_everything(models, shape)

        def begin(scheduler: Scheduler, generator: torch.Generator) -> InitialLatents:
            conditioning = None if shown is None else shown.sample(generator)
            noise = torch.randn(shape, generator=generator)
            return InitialLatents(noise * scheduler.init_noise_sigma, conditioning)

        return begin
