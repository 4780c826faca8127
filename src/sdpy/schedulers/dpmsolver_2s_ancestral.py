"""DPM-Solver++(2S) with fresh noise at each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.schedulers.euler_ancestral import ancestral_step
from sdpy.schedulers.halfway import HalfwayScheduler
from sdpy.schedulers.noise import draw_noise


class DPMSolver2SAncestralScheduler(HalfwayScheduler):
    """A step of DPM-Solver++(2S) to below the next sigma, and noise that leads up to it.

    Each step evaluates the network twice: at its sigma, and half-way to where it goes in
    ``log(sigma)``.

    Source: "DPM-Solver++" (Lu et al., 2022), algorithm 1 with r = 1/2, with the ancestral noise of
    Crowson's k-diffusion, whose ``sample_dpmpp_2s_ancestral`` (eta 1) is the same as a formula.
    """

    def _split(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        return ancestral_step(sigma, sigma_next)

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
        if index % 2 == 0:
            self._start = sample
            return predicted_x0 + sigma_next / self.sigmas[index] * (sample - predicted_x0)
        assert self._start is not None, "the second evaluation of a step comes after the first"
        sigma = self.sigmas[index - 1]
        sigma_down, sigma_up = self._split(sigma, sigma_next)
        result = predicted_x0 + sigma_down / sigma * (self._start - predicted_x0)
        return result + sigma_up * draw_noise(sample, generators)
