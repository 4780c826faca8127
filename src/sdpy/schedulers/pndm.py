"""Pseudo numerical methods for diffusion models, with linear multisteps (PLMS)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdpy.schedulers.alpha_scheduler import AlphaScheduler
from sdpy.schedulers.base import index_for_timestep
from sdpy.schedulers.config import NoiseConfig
from sdpy.schedulers.noise import split_prediction
from sdpy.schedulers.spacing import space_timesteps

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the last predictions, newest first, by their number."""


class PNDMScheduler(AlphaScheduler):
    """DDIM's step with a combination of the last four predictions.

    The first step is done twice, the second time with the mean of the predictions at its ends; so
    the second timestep is visited twice.

    Source: "Pseudo Numerical Methods for Diffusion Models on Manifolds" (Liu et al., 2022),
    equations 11 and 12; agrees with diffusers' ``PNDMScheduler`` (``skip_prk_steps=True,
    set_alpha_to_one=False, steps_offset=1``), except where steps are skipped at the start:
    diffusers then leaves out the second visit, after which its timesteps run ahead of its latents.
    """

    def __init__(self, noise: NoiseConfig, *, timestep_spacing: str = "leading") -> None:
        super().__init__(noise)
        self.timestep_spacing = timestep_spacing

    def set_timesteps(self, num_inference_steps: int, skip: int = 0) -> None:
        """Plan one timestep per step, the second twice; see `Scheduler.set_timesteps`."""
        total = self.noise.num_train_timesteps
        spaced = space_timesteps(self.timestep_spacing, num_inference_steps, total)[skip:]
        self._set_schedule(np.concatenate([spaced[:2], spaced[1:]]))
        self._ratio = total // num_inference_steps
        self._expected_index = 0
        self._outputs: deque[Tensor] = deque(maxlen=4)  # newest first
        self._first_sample: Tensor | None = None

    def step(
        self,
        model_output: Tensor,
        timestep: float,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """One step of equation 11; see `Scheduler.step`."""
        index = index_for_timestep(self.timesteps, timestep, self._expected_index)
        self._expected_index = index + 1
        start = int(timestep)
        if index == 1 and self._first_sample is not None:
            output, sample = (model_output + self._outputs[0]) / 2, self._first_sample
            start += self._ratio
        else:
            self._first_sample = sample if index == 0 else None
            self._outputs.appendleft(model_output)
            weights = ADAMS_BASHFORTH[len(self._outputs)]
            output = torch.stack(
                [weight * output for weight, output in zip(weights, self._outputs, strict=True)]
            ).sum(dim=0)

        start = min(start, self.noise.num_train_timesteps - 1)
        predicted_x0, predicted_noise = split_prediction(
            self.noise.prediction_type, output, sample, self._alpha(start)
        )
        alpha_prev = self._alpha(start - self._ratio)
        return math.sqrt(alpha_prev) * predicted_x0 + math.sqrt(1 - alpha_prev) * predicted_noise
