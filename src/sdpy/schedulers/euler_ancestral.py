"""Euler's method with fresh noise at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.schedulers.noise import draw_noise
from sdpy.schedulers.sigma_scheduler import VarianceExplodingScheduler


def ancestral_step(sigma: float, sigma_next: float) -> tuple[float, float]:
    """The sigma to go down to, and the sigma of the noise that leads up to ``sigma_next``.

    The noise is as much as an ancestral step of DDPM adds: equation 7 of "Denoising Diffusion
    Probabilistic Models" (Ho et al., 2020), the posterior's variance, in terms of sigmas.
    """
    sigma_up = sigma_next * math.sqrt(max(1 - (sigma_next / sigma) ** 2, 0.0))
    return sigma_next**2 / sigma, sigma_up


class EulerAncestralDiscreteScheduler(VarianceExplodingScheduler):
    """A straight line to below the next sigma, and noise that leads up to it.

    Source: Crowson's k-diffusion, where the sampler comes from, as a formula; agrees with
    diffusers' scheduler of this name.
    """

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        sigma_down, sigma_up = ancestral_step(self.sigmas[index], self.sigmas[index + 1])
        result = predicted_x0 + sigma_down * predicted_noise
        if sigma_up > 0:
            result = result + sigma_up * draw_noise(sample, generators)
        return result
