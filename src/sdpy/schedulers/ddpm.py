"""Denoising diffusion probabilistic models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.schedulers.alpha_scheduler import AlphaScheduler
from sdpy.schedulers.config import NoiseConfig
from sdpy.schedulers.noise import draw_noise, split_prediction
from sdpy.schedulers.spacing import space_timesteps


class DDPMScheduler(AlphaScheduler):
    """Samples each step from the posterior of the forward process, given the predicted x_0.

    Source: "Denoising Diffusion Probabilistic Models" (Ho et al., 2020), equations 6 and 7, between
    the timesteps that are visited; agrees with diffusers' ``DDPMScheduler``
    (``variance_type="fixed_small", clip_sample=False, steps_offset=1``).
    """

    def __init__(self, noise: NoiseConfig, *, timestep_spacing: str = "leading") -> None:
        super().__init__(noise)
        self.timestep_spacing = timestep_spacing

    def set_timesteps(self, num_inference_steps: int, skip: int = 0) -> None:
        """Plan one timestep per step; see `Scheduler.set_timesteps`."""
        total = self.noise.num_train_timesteps
        timesteps = space_timesteps(self.timestep_spacing, num_inference_steps, total)
        self._set_schedule(timesteps[skip:])

    def step(
        self,
        model_output: Tensor,
        timestep: float,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """A sample of equation 6's posterior; see `Scheduler.step`."""
        alpha_t = self._alpha(timestep)
        predicted_x0, _ = split_prediction(
            self.noise.prediction_type, model_output, sample, alpha_t
        )
        next_timestep = self._next_timestep(timestep)
        if next_timestep is None:
            return predicted_x0
        alpha_prev = self._alpha(next_timestep)
        kept = alpha_t / alpha_prev  # 1 - beta of the paper
        share = (1 - alpha_prev) / (1 - alpha_t)
        mean_x0 = math.sqrt(alpha_prev) * (1 - kept) / (1 - alpha_t)
        mean = mean_x0 * predicted_x0 + math.sqrt(kept) * share * sample
        deviation = math.sqrt(share * (1 - kept))
        return mean + deviation * draw_noise(sample, generators)
