"""Diffusion exponential integrator sampler."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdpy.schedulers.config import NoiseConfig, Sigmas
from sdpy.schedulers.multistep import multistep_weights
from sdpy.schedulers.sigma_scheduler import VariancePreservingScheduler
from sdpy.schedulers.sigmas import FloatArray


class DEISMultistepScheduler(VariancePreservingScheduler):
    """A polynomial in ``log(sigma)`` through the last derivatives, integrated over sigma.

    Unlike the other samplers, it ends at the sigma of the first training timestep, not at 0.

    Args:
        noise, timestep_spacing, sigmas: see `SigmaScheduler`.
        order: of the method, 1 to 3. The first steps have lower orders, and so do the last ones if
            there are less than 15 steps.

    Source: "Fast Sampling of Diffusion Models with Exponential Integrator" (Zhang and Chen, 2023),
    the variant rho-AB, with its polynomials in the logarithm, as in diffusers, with whose scheduler
    of this name it agrees.
    """

    def __init__(
        self,
        noise: NoiseConfig,
        *,
        timestep_spacing: str = "linspace",
        sigmas: Sigmas | None = None,
        order: int = 2,
    ) -> None:
        super().__init__(noise, timestep_spacing=timestep_spacing, sigmas=sigmas)
        self.order = order

    def _set_schedule(self, timesteps: FloatArray, sigmas: Sequence[float]) -> None:
        super()._set_schedule(timesteps, sigmas)
        self._derivatives: deque[Tensor] = deque(maxlen=self.order)  # newest first
        self._weights: list[tuple[float, ...]] = []
        steps = len(self.timesteps)
        for index in range(steps):
            order = min(self.order, index + 1)
            if self.num_inference_steps < 15:
                order = min(order, steps - index)
            nodes = [self.sigmas[index - k] for k in range(order)]
            self._weights.append(multistep_weights(np.log, nodes, self.sigmas[index + 1]))

    def _last_sigma(self) -> float:
        return float(self.training_sigmas[0])

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        self._derivatives.appendleft(predicted_noise)
        result = predicted_x0
        # The last steps may use fewer derivatives than there are.
        for weight, derivative in zip(self._weights[index], self._derivatives, strict=False):
            result = result + weight * derivative
        return result
