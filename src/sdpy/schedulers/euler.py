"""Euler's method."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpy.schedulers.sigma_scheduler import ExplodingScheduler


class EulerDiscreteScheduler(ExplodingScheduler):
    """A straight line from level to level; with exact levels the same walk as DDIM's.

    Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al.,
    2022), algorithm 1 without its second-order correction; agrees with diffusers' scheduler of this
    name.
    """

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        return predicted_x0 + self.sigmas[index + 1] * predicted_noise
