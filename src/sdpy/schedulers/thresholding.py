"""Dynamic thresholding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DynamicThresholding:
    """Clips predicted images to a quantile of their values, then scales them back into [-1, 1].

    Made for models that predict images in [-1, 1]; Stable Diffusion's latents go far beyond that.

    Attributes:
        ratio: the quantile: the share of each image's values that is left as it is.
        highest: upper bound of the limit, at least 1.

    Source: "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding"
    (Saharia et al., 2022), section 2.3; defaults as in diffusers.
    """

    ratio: float = 0.995
    highest: float = 1.0

    def __call__(self, predicted_x0: Tensor) -> Tensor:
        """Clip and scale (B, ...), each image by its own quantile."""
        precise = torch.promote_types(predicted_x0.dtype, torch.float32)
        magnitudes = predicted_x0.flatten(1).abs().to(precise)
        limit = magnitudes.quantile(self.ratio, dim=1).clamp(1.0, self.highest)
        limit = limit.to(predicted_x0.dtype).view(-1, *[1] * (predicted_x0.ndim - 1))
        return predicted_x0.clamp(-limit, limit) / limit
