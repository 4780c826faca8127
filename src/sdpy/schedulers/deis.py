"""Diffusion exponential integrator sampler."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdpy.schedulers.config import NoiseConfig
from sdpy.schedulers.sigma_scheduler import PreservingScheduler
from sdpy.schedulers.sigmas import Levels
from sdpy.schedulers.slopes import Slopes


class DEISMultistepScheduler(PreservingScheduler):
    """A polynomial in ``log(sigma)`` through the last slopes, integrated over the level.

    Unlike the others, the walk ends at the level of the first training timestep, not at 0.

    Args:
        noise, timestep_spacing, sigmas: see `SigmaScheduler`.
        order: of the method, 1 to 3; lower in the first steps, and in the last ones of walks of
            less than 15.

    Source: "Fast Sampling of Diffusion Models with Exponential Integrator" (Zhang and Chen, 2023),
    the variant rho-AB, with its polynomials in the logarithm, as in diffusers, with whose scheduler
    of this name it agrees.
    """

    def __init__(
        self,
        noise: NoiseConfig,
        *,
        timestep_spacing: str = "linspace",
        sigmas: str | None = None,
        order: int = 2,
    ) -> None:
        super().__init__(noise, timestep_spacing=timestep_spacing, sigmas=sigmas)
        self.order = order

    def _plan(self, timesteps: Levels, levels: list[float]) -> None:
        super()._plan(timesteps, levels)
        self._slopes = Slopes(self.order)

    def _last_sigma(self) -> float:
        return float(self.training_sigmas[0])

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        sigma, following = self.sigmas[index], self.sigmas[index + 1]
        self._slopes.append(sigma, predicted_noise)
        order = len(self._slopes)
        if self.num_inference_steps < 15:
            order = min(order, len(self.timesteps) - index)
        return self._slopes.integrate(predicted_x0, sigma, following, np.log, order)
