"""DPM-Solver-2 in the manner of Karras et al., without and with fresh noise."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sdpy.schedulers.euler_ancestral import ancestral_levels
from sdpy.schedulers.noise import draw_noise
from sdpy.schedulers.sigma_scheduler import ExplodingScheduler
from sdpy.schedulers.sigmas import Levels, timesteps_at


class KDPM2DiscreteScheduler(ExplodingScheduler):
    """A straight line with the slope half-way, in ``log(sigma)``; the step to level 0 is Euler's.

    Source: "DPM-Solver" (Lu et al., 2022a), algorithm 1 with r_1 = 1/2, with straight lines as
    in "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al., 2022);
    agrees with diffusers' scheduler of this name.
    """

    def _plan(self, timesteps: Levels, levels: list[float]) -> None:
        """Visit each level, and one between it and the next but before 0."""
        if self.sigma_schedule == "karras":
            timesteps = timesteps.round()
        goals = [self._goal(*pair)[0] for pair in pairwise(levels)][:-1]
        middles = [math.sqrt(sigma * goal) for sigma, goal in zip(levels, goals, strict=False)]
        between = timesteps_at(np.array(middles), self.training_sigmas)
        places = np.arange(1, len(timesteps))
        super()._plan(np.insert(timesteps, places, between), levels)
        self.sigmas = np.insert(levels, places, middles).tolist()
        self._start: Tensor | None = None

    def _goal(self, sigma: float, following: float) -> tuple[float, float]:
        """Where to go down to, and how much noise then leads up to ``following``."""
        return following, 0.0

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        following = self.sigmas[index + 1]
        if index % 2 == 0:
            self._start = sample
            return predicted_x0 + following * predicted_noise
        assert self._start is not None, "the second evaluation of a step comes after the first"
        sigma = self.sigmas[index - 1]
        down, up = self._goal(sigma, following)
        result = self._start + (down - sigma) * predicted_noise
        if up > 0:
            result = result + up * draw_noise(sample, generator)
        return result


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """KDPM2 to below the next level, and noise that leads up to it.

    Source: Crowson's k-diffusion, where the sampler comes from, as a formula; agrees with
    diffusers' scheduler of this name.
    """

    def _goal(self, sigma: float, following: float) -> tuple[float, float]:
        return ancestral_levels(sigma, following)
