"""Linear multisteps over the level."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdpy.schedulers.sigma_scheduler import ExplodingScheduler
from sdpy.schedulers.sigmas import Levels
from sdpy.schedulers.slopes import Slopes


class LMSDiscreteScheduler(ExplodingScheduler):
    """A polynomial through the last four slopes, integrated over the level (Adams-Bashforth).

    Source: Crowson's k-diffusion, where the sampler comes from, as a formula; agrees with
    diffusers' scheduler of this name, but where steps are skipped at the start: diffusers then
    takes weights of four slopes for the one that there is.
    """

    def _plan(self, timesteps: Levels, levels: list[float]) -> None:
        super()._plan(timesteps, levels)
        self._slopes = Slopes(order=4)

    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        sigma, following = self.sigmas[index], self.sigmas[index + 1]
        if sigma == following:  # past the last timestep of training there are no other levels
            return sample
        self._slopes.append(sigma, predicted_noise)
        return self._slopes.integrate(
            predicted_x0, sigma, following, np.positive, len(self._slopes)
        )
