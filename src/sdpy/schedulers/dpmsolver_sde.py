"""DPM-Solver++ for the equation with noise, two evaluations a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.schedulers.euler_ancestral import ancestral_step
from sdpy.schedulers.halfway import HalfwayScheduler
from sdpy.schedulers.noise import draw_noise
from sdpy.schedulers.sigmas import FloatArray


class DPMSolverSDEScheduler(HalfwayScheduler):
    """A first-order step half-way, with noise; and from the start again with what is seen there.

    The noise is that of one Brownian motion in sigma: what the first half of a step has drawn is a
    part of the noise of the whole step.

    Source: "DPM-Solver++" (Lu et al., 2022), the singlestep method of second order with r = 1/2,
    with noise as in Crowson's k-diffusion, whose ``sample_dpmpp_sde`` (eta 1) is the same as a
    formula; agrees with diffusers' scheduler of this name, given the same noise.
    """

    def _set_schedule(self, timesteps: FloatArray, sigmas: Sequence[float]) -> None:
        super()._set_schedule(timesteps, sigmas)
        self._noise: Tensor | None = None

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        sigma_next = self.sigmas[index + 1]
        if sigma_next == 0:
            return predicted_x0
        noise = draw_noise(sample, generators)
        if index % 2 == 0:
            self._start, self._noise = sample, noise
            return _step(sample, predicted_x0, self.sigmas[index], sigma_next, noise)
        assert self._start is not None and self._noise is not None, "the first half comes first"
        sigma, middle = self.sigmas[index - 1], self.sigmas[index]
        # The share of the way; none where the two sigmas are equal, between which is no noise.
        share = (sigma - middle) / (sigma - sigma_next) if sigma > sigma_next else 0.0
        noise = math.sqrt(share) * self._noise + math.sqrt(1 - share) * noise
        return _step(self._start, predicted_x0, sigma, sigma_next, noise)


def _step(
    sample: Tensor, predicted_x0: Tensor, sigma: float, sigma_next: float, noise: Tensor
) -> Tensor:
    """To below the next sigma with a prediction that is held, and noise that leads up to it."""
    sigma_down, sigma_up = ancestral_step(sigma, sigma_next)
    return predicted_x0 + sigma_down / sigma * (sample - predicted_x0) + sigma_up * noise
