"""DPM-Solver++, multistep."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.schedulers.config import NoiseConfig, Sigmas
from sdpy.schedulers.noise import draw_noise
from sdpy.schedulers.sigma_scheduler import VariancePreservingScheduler
from sdpy.schedulers.sigmas import FloatArray
from sdpy.schedulers.thresholding import DynamicThresholding


class DPMSolverMultistepScheduler(VariancePreservingScheduler):
    """The predictions of the last steps, extrapolated as a polynomial in ``-log(sigma)``.

    Args:
        noise, timestep_spacing, sigmas: see `SigmaScheduler`.
        order: of the method: 1, 2 ("2M") or 3 ("3M"). The first steps have lower orders; if
            there are less than 15 steps, so do the last one and, of order 3, the last but one.
        stochastic: whether to solve the equation with noise ("SDE") instead of the one without.
        thresholding: of the predicted x_0, for models whose latents are images.

    Source: "DPM-Solver++" (Lu et al., 2022), algorithm 2, equations 17 and 18 for noise, and
    the authors' program for order 3, which takes half of the second difference; agrees with
    diffusers' scheduler of this name. But in its stochastic third order, diffusers 0.42 has one
    sign that the integral does not have, that of the 1/2 in the coefficient of the second
    difference; here it is as in k-diffusion. What k-diffusion calls 3M SDE differs in steps of
    second order, the second of all: it integrates the line through the last two predictions, here
    as in 2M their midpoint counts. And it has no lower orders at the end.
    """

    def __init__(
        self,
        noise: NoiseConfig,
        *,
        timestep_spacing: str = "linspace",
        sigmas: Sigmas | None = None,
        order: int = 2,
        stochastic: bool = False,
        thresholding: DynamicThresholding | None = None,
    ) -> None:
        super().__init__(noise, timestep_spacing=timestep_spacing, sigmas=sigmas)
        self.order, self.stochastic, self.thresholding = order, stochastic, thresholding

    def _set_schedule(self, timesteps: FloatArray, sigmas: Sequence[float]) -> None:
        super()._set_schedule(timesteps, sigmas)
        self._history: deque[Tensor] = deque(maxlen=self.order)  # predicted x_0, newest first

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        if self.thresholding is not None:
            predicted_x0 = self.thresholding(predicted_x0)
        self._history.appendleft(predicted_x0)
        sigma, sigma_next = self.sigmas[index], self.sigmas[index + 1]
        if sigma_next == 0:
            return predicted_x0

        # With noise, what the latents were decays twice as fast.
        speed = 2 if self.stochastic else 1
        h = math.log(sigma / sigma_next)
        decay, phi_1, phi_2, phi_3 = exponential_integrals(speed * h)
        result = decay * sample + phi_1 * predicted_x0
        order = self._order(index)
        if order == 2:
            (change,) = self._differences(index, h, 1)
            result = result + phi_1 / 2 * change
        elif order == 3:
            change, older = self._differences(index, h, 2)
            ratio_0, ratio_1 = (self._distance(index, k) / h for k in (1, 2))
            curvature = (change - older) / (ratio_0 + ratio_1)
            change = change + ratio_0 * curvature
            result = result + phi_2 * change + phi_3 * curvature
        if self.stochastic:
            deviation = sigma_next * math.sqrt(1 - decay)
            result = result + deviation * draw_noise(sample, generators)
        return result

    def _order(self, index: int) -> int:
        order = min(self.order, len(self._history))
        if self.num_inference_steps < 15:
            order = min(order, len(self.timesteps) - index)
        return order

    def _distance(self, index: int, k: int) -> float:
        """How far apart in ``-log(sigma)`` the k-th last and the next newer prediction are."""
        return math.log(self.sigmas[index - k] / self.sigmas[index - k + 1])

    def _differences(self, index: int, h: float, count: int) -> list[Tensor]:
        """The newest divided differences of the predictions, times ``h``."""
        return [
            (self._history[k - 1] - self._history[k]) * (h / self._distance(index, k))
            for k in range(1, count + 1)
        ]


def exponential_integrals(h: float) -> tuple[float, float, float, float]:
    """``exp(-h)``, and the integrals of ``exp(u - h) (u/h)^k / k!`` over u from 0 to h.

    For k = 0, 1, 2: what a constant, a linear and a quadratic part of the prediction contribute.
    """
    decay, phi_1 = math.exp(-h), -math.expm1(-h)
    phi_2 = 1 - phi_1 / h
    phi_3 = 1 / 2 - phi_2 / h
    return decay, phi_1, phi_2, phi_3
