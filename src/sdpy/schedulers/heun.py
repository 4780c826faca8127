"""Heun's method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.schedulers.sigma_scheduler import VarianceExplodingScheduler
from sdpy.schedulers.sigmas import FloatArray


class HeunDiscreteScheduler(VarianceExplodingScheduler):
    """A straight line with the mean of the derivatives at its ends; Euler's for the step to 0.

    The evaluations are at sigmas 0, 1, 1, 2, 2, ...: of each pair, the first finds the derivative
    at the end of a line, the second the derivative at the start of the next.

    Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al.,
    2022), algorithm 1; agrees with diffusers' scheduler of this name.
    """

    def _set_schedule(self, timesteps: FloatArray, sigmas: Sequence[float]) -> None:
        twice = [sigma for sigma in sigmas for _ in range(2)]
        super()._set_schedule(timesteps.repeat(2)[1:], twice[1:-1])
        self._start: tuple[Tensor, Tensor] | None = None  # latents and derivative

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        if index % 2 == 0:
            self._start = sample, predicted_noise
            return predicted_x0 + self.sigmas[index + 1] * predicted_noise
        assert self._start is not None, "the second evaluation of a step comes after the first"
        sample, first_derivative = self._start
        derivative = (first_derivative + predicted_noise) / 2
        return sample + (self.sigmas[index] - self.sigmas[index - 1]) * derivative
