"""Euler's method with fresh noise at each step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdpy.schedulers.noise import draw_noise
from sdpy.schedulers.sigma_scheduler import ExplodingScheduler


def ancestral_levels(sigma: float, following: float) -> tuple[float, float]:
    """Where to go down to, and how much noise then leads back up to the level ``following``.

    The noise is as much as an ancestral step of DDPM adds: equation 7 of "Denoising Diffusion
    Probabilistic Models" (Ho et al., 2020), the posterior's variance, in terms of levels.
    """
    up = following * math.sqrt(max(1 - (following / sigma) ** 2, 0.0))
    return following**2 / sigma, up


class EulerAncestralDiscreteScheduler(ExplodingScheduler):
    """A straight line below the next level, and noise that leads up to it.

    Source: Crowson's k-diffusion, where the sampler comes from, as a formula; agrees with
    diffusers' scheduler of this name.
    """

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        down, up = ancestral_levels(self.sigmas[index], self.sigmas[index + 1])
        result = predicted_x0 + down * predicted_noise
        if up > 0:
            result = result + up * draw_noise(sample, generator)
        return result
