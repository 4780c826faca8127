"""Unified predictor-corrector."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch
from torch import Tensor

from sdpy.schedulers.config import NoiseConfig
from sdpy.schedulers.sigma_scheduler import PreservingScheduler
from sdpy.schedulers.sigmas import Levels
from sdpy.schedulers.thresholding import DynamicThresholding


class UniPCMultistepScheduler(PreservingScheduler):
    """Like DPM-Solver++, but each prediction also corrects the latents that it was made for.

    Args:
        noise, timestep_spacing, sigmas: see `SigmaScheduler`.
        order: of the method; lower in the first and last steps.
        thresholding: of the predicted x_0, for models whose latents are pictures.

    Source: "UniPC" (Zhao et al., 2023), algorithms 1 and 2, equation 10 with B_2(h) = exp(h) - 1,
    for predictions of x_0 (appendix A); agrees with diffusers' scheduler of this name.
    """

    def __init__(
        self,
        noise: NoiseConfig,
        *,
        timestep_spacing: str = "linspace",
        sigmas: str | None = None,
        order: int = 2,
        thresholding: DynamicThresholding | None = None,
    ) -> None:
        super().__init__(noise, timestep_spacing=timestep_spacing, sigmas=sigmas)
        self.order, self.thresholding = order, thresholding

    def _plan(self, timesteps: Levels, levels: list[float]) -> None:
        super()._plan(timesteps, levels)
        # Predicted x_0 and the sigma that they were made at, newest first.
        self._history: deque[tuple[float, Tensor]] = deque(maxlen=self.order + 1)
        self._last_sample: Tensor | None = None
        self._last_order = 0

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        if self.thresholding is not None:
            predicted_x0 = self.thresholding(predicted_x0)
        self._history.appendleft((self.sigmas[index], predicted_x0))
        if self._last_sample is not None:
            history = list(self._history)
            known = [history[k] for k in range(1, self._last_order + 1)]
            sample = _extrapolate(self._last_sample, known, self.sigmas[index], history[0])
        left = len(self.timesteps) - index
        self._last_order = min(self.order, left, len(self._history))
        self._last_sample = sample
        known = [self._history[k] for k in range(self._last_order)]
        return _extrapolate(sample, known, self.sigmas[index + 1])


def _extrapolate(
    sample: Tensor,
    known: list[tuple[float, Tensor]],
    following: float,
    reached: tuple[float, Tensor] | None = None,
) -> Tensor:
    """Latents ``x_0 + sigma noise`` at the level ``following``.

    Args:
        sample: latents at the level of the newest prediction.
        known: levels and predictions of x_0 there, newest first.
        following: the level to go to.
        reached: the prediction there, for the corrector; None for the predictor.
    """
    sigma, newest = known[0]
    if following == 0:
        return newest
    h = math.log(sigma / following)
    others = known[1:] if reached is None else [*known[1:], reached]
    result = math.exp(-h) * sample - math.expm1(-h) * newest
    # Where the others lie on the way, in -log(sigma): at 1 the end of the step.
    places = [math.log(sigma / level) / h for level, _ in others]
    for weight, place, (_, other) in zip(_weights(places, h), places, others, strict=True):
        result = result + weight * (other - newest) / place
    return result


def _weights(places: list[float], h: float) -> list[float]:
    """Weights of the divided differences, times B(h); 1/2 for a single one, in both algorithms."""
    if not places:
        return []
    integral = -math.expm1(-h)
    if len(places) == 1:
        return [integral / 2]
    moments = []  # the integrals of exp(u - h) (u/h)^k over u from 0 to h
    for k in range(1, len(places) + 1):
        integral = 1 / math.factorial(k) - integral / h
        moments.append(math.factorial(k) * integral)
    matrix = np.vander(np.array(places), increasing=True).T
    weights: list[float] = np.linalg.solve(matrix, np.array(moments)).tolist()
    return weights
