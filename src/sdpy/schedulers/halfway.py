"""What the samplers share that evaluate the network at each sigma, and half-way to the next."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sdpy.schedulers.sigma_scheduler import VarianceExplodingScheduler
from sdpy.schedulers.sigmas import FloatArray, timesteps_at


class HalfwayScheduler(VarianceExplodingScheduler):
    """Two evaluations a step, the second half-way in ``log(sigma)``; one in the step to 0.

    The sigmas of even indices are those of the steps, those between are half-way.
    """

    def _set_schedule(self, timesteps: FloatArray, sigmas: Sequence[float]) -> None:
        """Visit each sigma, and one half-way to where its step goes, except before 0."""
        ends = [self._split(*pair)[0] for pair in pairwise(sigmas)][:-1]
        middles = [math.sqrt(sigma * end) for sigma, end in zip(sigmas, ends, strict=False)]
        between = timesteps_at(np.array(middles), self.training_sigmas)
        places = np.arange(1, len(timesteps))
        super()._set_schedule(
            np.insert(timesteps, places, between), np.insert(sigmas, places, middles).tolist()
        )
        self._start: Tensor | None = None

    def _split(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        """The sigma to go down to, and the sigma of the noise that leads up to ``sigma_next``."""
        return sigma_next, 0.0

    @abstractmethod
    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        """See `SigmaScheduler._advance`."""
