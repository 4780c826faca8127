"""DPM-Solver-2 in the manner of Karras et al., without and with fresh noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.schedulers.euler_ancestral import ancestral_step
from sdpy.schedulers.halfway import HalfwayScheduler
from sdpy.schedulers.noise import draw_noise
from sdpy.schedulers.sigmas import FloatArray


class KDPM2DiscreteScheduler(HalfwayScheduler):
    """A straight line with the derivative half-way in ``log(sigma)``; Euler's for the step to 0.

    Source: "DPM-Solver" (Lu et al., 2022a), algorithm 1 with r_1 = 1/2, with straight lines as
    in "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al., 2022);
    agrees with diffusers' scheduler of this name.
    """

    def _set_schedule(self, timesteps: FloatArray, sigmas: Sequence[float]) -> None:
        """With Karras' sigmas, the timesteps are whole."""
        whole = timesteps.round() if self.sigma_schedule == "karras" else timesteps
        super()._set_schedule(whole, sigmas)

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        sigma_next = self.sigmas[index + 1]
        if index % 2 == 0:
            self._start = sample
            return predicted_x0 + sigma_next * predicted_noise
        assert self._start is not None, "the second evaluation of a step comes after the first"
        sigma = self.sigmas[index - 1]
        sigma_down, sigma_up = self._split(sigma, sigma_next)
        result = self._start + (sigma_down - sigma) * predicted_noise
        if sigma_up > 0:
            result = result + sigma_up * draw_noise(sample, generators)
        return result


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """KDPM2 to below the next sigma, and noise that leads up to it.

    Source: Crowson's k-diffusion, where the sampler comes from, as a formula; agrees with
    diffusers' scheduler of this name.
    """

    def _split(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        return ancestral_step(sigma, sigma_next)
