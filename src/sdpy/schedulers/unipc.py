"""Unified predictor-corrector."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdpy.schedulers.config import NoiseConfig, Sigmas
from sdpy.schedulers.sigma_scheduler import VariancePreservingScheduler
from sdpy.schedulers.sigmas import FloatArray
from sdpy.schedulers.thresholding import DynamicThresholding


class UniPCMultistepScheduler(VariancePreservingScheduler):
    """Like DPM-Solver++, but each prediction also corrects the latents that it was made for.

    Args:
        noise, timestep_spacing, sigmas: see `SigmaScheduler`.
        order: of the method; lower in the first and last steps.
        thresholding: of the predicted x_0, for models whose latents are images.

    Source: "UniPC" (Zhao et al., 2023), algorithms 1 and 2, equation 10 with B_2(h) = exp(h) - 1,
    for predictions of x_0 (appendix A); agrees with diffusers' scheduler of this name.
    """

    def __init__(
        self,
        noise: NoiseConfig,
        *,
        timestep_spacing: str = "linspace",
        sigmas: Sigmas | None = None,
        order: int = 2,
        thresholding: DynamicThresholding | None = None,
    ) -> None:
        super().__init__(noise, timestep_spacing=timestep_spacing, sigmas=sigmas)
        self.order, self.thresholding = order, thresholding

    def _set_schedule(self, timesteps: FloatArray, sigmas: Sequence[float]) -> None:
        super()._set_schedule(timesteps, sigmas)
        steps = len(self.timesteps)
        self._orders = [min(self.order, steps - i, i + 1) for i in range(steps)]
        self._predictors: list[Update] = []
        self._correctors: list[Update] = []
        for i, order in enumerate(self._orders[:-1]):  # the last step is to sigma 0
            known = [self.sigmas[i - k] for k in range(order)]
            for updates, corrects in ((self._predictors, False), (self._correctors, True)):
                updates.append(Update.plan(known, self.sigmas[i + 1], corrects=corrects))
        self._history: deque[Tensor] = deque(maxlen=self.order)  # predicted x_0, newest first
        self._last_sample: Tensor | None = None  # the latents before the last step, corrected

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
        history = [predicted_x0, *self._history]
        if self._last_sample is not None:
            known = history[1 : self._orders[index - 1] + 1]
            sample = self._correctors[index - 1](self._last_sample, [*known, predicted_x0])
        self._history.appendleft(predicted_x0)
        self._last_sample = sample
        if self.sigmas[index + 1] == 0:
            return predicted_x0
        return self._predictors[index](sample, history[: self._orders[index]])


@dataclass(frozen=True)
class Update:
    """The numbers of a step to latents ``x_0 + sigma noise`` at the next sigma.

    Attributes:
        decay: factor of the latents.
        gain: minus the factor of the newest prediction of x_0.
        differences: for each of the other predictions, the factor of its difference from the
            newest, and how far apart they are in ``-log(sigma)``, relative to the step.
    """

    decay: float
    gain: float
    differences: tuple[tuple[float, float], ...]

    @classmethod
    def plan(cls, known: Sequence[float], sigma_next: float, *, corrects: bool) -> Update:
        """The step from ``known[0]`` to ``sigma_next``.

        Args:
            known: sigmas of the predictions, newest first.
            sigma_next: where to go, above 0.
            corrects: whether the prediction there is known as well, as it is to the corrector.
        """
        sigma = known[0]
        h = math.log(sigma / sigma_next)
        others = [*known[1:], sigma_next] if corrects else known[1:]
        places = [math.log(sigma / other) / h for other in others]
        return cls(
            math.exp(-h), math.expm1(-h), tuple(zip(_weights(places, h), places, strict=True))
        )

    def __call__(self, sample: Tensor, predictions: Sequence[Tensor]) -> Tensor:
        """The latents at the next sigma, from those before and the predictions, newest first."""
        newest, *others = predictions
        result = self.decay * sample - self.gain * newest
        for (weight, place), other in zip(self.differences, others, strict=True):
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
