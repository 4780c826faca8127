"""What UNets for inpainting are shown beside the latents: a mask, and the masked image's latents.

They have 2 C + 1 input channels, where the latents have C. Without a mask, in text-to-image and
image-to-image, everything is masked, as in A1111's web UI: the UNet then generates all of it.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al., 2022),
section 4.5, and the inpainting checkpoints of Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpy.models import DiagonalGaussian
from sdpy.pipelines.vae import encode
from sdpy.runtime.fallbacks import Notice
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.session import Session
from sdpy.zoo.variants import ModelVariant


@dataclass(frozen=True)
class MaskConditioning:
    """What an image's UNet is shown.

    Attributes:
        mask: (1, 1, h, w) at the latents' resolution, 1 where the image is generated.
        masked: distribution of the latents of the image, which is grey (0) under the mask.
        scaling_factor: of latents.
    """

    mask: Tensor
    masked: DiagonalGaussian
    scaling_factor: float

    def sample(self, generator: torch.Generator) -> Tensor:
        """(1, 1 + C, h, w): the mask, then a sample of the masked image's latents."""
        noise = torch.randn(self.masked.mean.shape, generator=generator)
        return torch.cat([self.mask, self.masked.sample(noise) * self.scaling_factor], dim=1)


def unet_in_channels(variant: ModelVariant) -> tuple[int, int]:
    """Input channels of a UNet, and of one for inpainting."""
    channels = variant.vae.latent_channels
    return channels, 2 * channels + 1


def takes_mask(session: Session) -> bool:
    """Whether the session's UNet is one for inpainting."""
    return bool(session.headers.config("unet").in_channels == unet_in_channels(session.variant)[1])


def mask_everything(
    models: RequestModels, shape: Sequence[int]
) -> Generator[Notice, None, MaskConditioning | None]:
    """What a UNet for inpainting is shown where there is no mask; None for an ordinary UNet.

    Args:
        models: of the request.
        shape: (1, C, h, w) of the latents.
    """
    if not takes_mask(models.session):
        return None
    factor = models.variant.vae.downsample_factor
    grey = torch.zeros(1, 3, factor * shape[-2], factor * shape[-1])
    masked = yield from encode(models, grey)
    mask = torch.ones(1, 1, *shape[-2:])
    return MaskConditioning(mask, masked, models.session.headers.config("vae").scaling_factor)
