"""DPM-Solver++, single-step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.schedulers.config import NoiseConfig, Sigmas
from sdpy.schedulers.dpmsolver_multistep import exponential_integrals
from sdpy.schedulers.sigma_scheduler import VariancePreservingScheduler
from sdpy.schedulers.sigmas import FloatArray
from sdpy.schedulers.thresholding import DynamicThresholding


class DPMSolverSinglestepScheduler(VariancePreservingScheduler):
    """Solves the equation over groups of two or three steps, each from the end of the last group.

    Evaluations within a group only serve to see how the prediction changes. Orders of the steps
    are thus 1, 2, 1, 2, ... or 1, 2, 3, 1, 2, 3, ..., and 1 at the end.

    Args:
        noise, timestep_spacing, sigmas: see `SigmaScheduler`.
        order: of the method: 1, 2 ("2S") or 3 ("3S").
        thresholding: of the predicted x_0, for models whose latents are images.

    Source: "DPM-Solver++" (Lu et al., 2022), algorithm 1, and for order 3 "DPM-Solver" (Lu et al.,
    2022a), algorithm 2, for predictions of x_0; agrees with diffusers' scheduler of this name,
    which has the spacing ``linspace`` alone.
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
        self._orders = step_orders(self.num_inference_steps, self.order)[self.skipped :]
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
        order = min(self._orders[index], len(self._history))
        if order == 1:
            self._group_start = sample
        if self.sigmas[index + 1] == 0:
            return predicted_x0

        start = self.sigmas[index - order + 1]
        h = math.log(start / self.sigmas[index + 1])
        decay, phi_1, phi_2, _ = exponential_integrals(h)
        first = self._history[order - 1]
        result = decay * self._group_start + phi_1 * first
        if order > 1:
            ratio = math.log(start / self.sigmas[index]) / h
            change = (predicted_x0 - first) / ratio
            result = result + (phi_1 / 2 if order == 2 else phi_2) * change
        return result


def step_orders(steps: int, order: int) -> list[int]:
    """The order of each step, such that the last has order 1 and the rest make whole groups."""
    if steps % order == 0:
        # The last group is one step short; the very last step is a group of its own.
        whole = list(range(1, order + 1)) * (steps // order - 1)
        return [*whole, *range(1, order), 1]
    groups = list(range(1, order + 1)) * (steps // order)
    orders = [*groups, *range(1, steps % order + 1)]
    orders[-1] = 1
    return orders
