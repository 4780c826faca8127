"""Sizes that a UNet is told of the image that it is to generate.

Source: "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis" (Podell et
al., 2023), section 2.2; for the aesthetic score, which SDXL's refiner is told, its published code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSizes:
    """What the UNet may be told; a variant's ``size_conditions`` are names of these fields.

    Attributes:
        original_size: height and width of the image before it was resized for training.
        crop: pixels that were cut off at the top and at the left.
        target_size: height and width of the result.
        aesthetic_score: 0 to 10, how pleasing the image is.
    """

    original_size: tuple[int, int]
    crop: tuple[int, int]
    target_size: tuple[int, int]
    aesthetic_score: float

    def time_ids(self, names: Iterable[str]) -> Tensor:
        """(1, n) float32, the numbers of these fields one after another."""
        numbers: list[float] = []
        for name in names:
            value = getattr(self, name)
            numbers += value if isinstance(value, tuple) else [value]
        return torch.tensor([numbers], dtype=torch.float32)
