"""Linear multistep method."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sdpy.schedulers.multistep import multistep_weights
from sdpy.schedulers.sigma_scheduler import VarianceExplodingScheduler
from sdpy.schedulers.sigmas import FloatArray

ORDER = 4


class LMSDiscreteScheduler(VarianceExplodingScheduler):
    """A polynomial in sigma through the last four derivatives, integrated (Adams-Bashforth).

    Source: Crowson's k-diffusion, where the sampler comes from, as a formula; agrees with
    diffusers' scheduler of this name, except where steps are skipped at the start: diffusers then
    takes weights of four derivatives for the one that there is.
    """

    def _set_schedule(self, timesteps: FloatArray, sigmas: Sequence[float]) -> None:
        super()._set_schedule(timesteps, sigmas)
        self._derivatives: deque[Tensor] = deque(maxlen=ORDER)  # newest first
        self._weights: list[tuple[float, ...]] = []
        nodes: deque[float] = deque(maxlen=ORDER)
        for sigma, sigma_next in pairwise(self.sigmas):
            if sigma == sigma_next:  # past the last timestep of training, where nothing changes
                self._weights.append(())
                continue
            nodes.appendleft(sigma)
            self._weights.append(multistep_weights(np.positive, nodes, sigma_next))

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        if not self._weights[index]:
            return sample
        self._derivatives.appendleft(predicted_noise)
        result = predicted_x0
        for weight, derivative in zip(self._weights[index], self._derivatives, strict=True):
            result = result + weight * derivative
        return result
