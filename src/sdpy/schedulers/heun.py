"""Heun's method."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpy.schedulers.sigma_scheduler import ExplodingScheduler
from sdpy.schedulers.sigmas import Levels


class HeunDiscreteScheduler(ExplodingScheduler):
    """A straight line with the mean of the slopes at its ends; the step to level 0 is Euler's.

    The evaluations are at levels 0, 1, 1, 2, 2, ...: of each pair, the first finds the slope at the
    end of a line, the second the slope at the start of the next.

    Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al.,
    2022), algorithm 1; agrees with diffusers' scheduler of this name.
    """

    def _plan(self, timesteps: Levels, levels: list[float]) -> None:
        super()._plan(timesteps.repeat(2)[1:], [level for level in levels for _ in range(2)][1:-1])
        self._start: tuple[Tensor, Tensor] | None = None

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        if index % 2 == 0:
            self._start = sample, predicted_noise
            return predicted_x0 + self.sigmas[index + 1] * predicted_noise
        assert self._start is not None, "the second evaluation of a step comes after the first"
        sample, first_slope = self._start
        slope = (first_slope + predicted_noise) / 2
        return sample + (self.sigmas[index] - self.sigmas[index - 1]) * slope
