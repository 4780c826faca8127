"""Euler's method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.schedulers.sigma_scheduler import VarianceExplodingScheduler


class EulerDiscreteScheduler(VarianceExplodingScheduler):
    """A straight line from sigma to sigma; at the same sigmas, its latents are those of DDIM.

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
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        return predicted_x0 + self.sigmas[index + 1] * predicted_noise
