"""Sampling of latent consistency models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.schedulers.alpha_scheduler import AlphaScheduler
from sdpy.schedulers.consistency import space_distilled
from sdpy.schedulers.noise import draw_noise, split_prediction

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


class LCMScheduler(AlphaScheduler):
    """Predicts x_0 at once, adds noise for the next timestep, and so on.

    Source: "Latent Consistency Models" (Luo et al., 2023), algorithm 3, with the consistency
    function's parametrisation of equation 9; agrees with diffusers' ``LCMScheduler``.
    """

    def set_timesteps(self, num_inference_steps: int, skip: int = 0) -> None:
        """Plan one timestep per step, at most 50; see `Scheduler.set_timesteps`."""
        timesteps = space_distilled(num_inference_steps, self.noise.num_train_timesteps)
        self._set_schedule(timesteps[skip:])

    def step(
        self,
        model_output: Tensor,
        timestep: float,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """The consistency function, and noise except after the last one; see `Scheduler.step`."""
        predicted_x0, _ = split_prediction(
            self.noise.prediction_type, model_output, sample, self._alpha(timestep)
        )
        scaled = timestep * TIMESTEP_SCALING
        radius = scaled**2 + SIGMA_DATA**2
        c_skip, c_out = SIGMA_DATA**2 / radius, scaled / math.sqrt(radius)
        denoised = c_out * predicted_x0 + c_skip * sample
        next_timestep = self._next_timestep(timestep)
        if next_timestep is None:
            return denoised
        alpha_prev = self._alpha(next_timestep)
        noise = draw_noise(sample, generators)
        return math.sqrt(alpha_prev) * denoised + math.sqrt(1 - alpha_prev) * noise
