"""Sampling of trajectory consistency models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.errors import UsageError
from sdpy.schedulers.alpha_scheduler import AlphaScheduler
from sdpy.schedulers.config import NoiseConfig
from sdpy.schedulers.consistency import space_distilled
from sdpy.schedulers.noise import draw_noise, split_prediction


class TCDScheduler(AlphaScheduler):
    """Goes down beyond the next timestep, and back up to it with noise.

    Args:
        noise: the forward process and what the network predicts.
        eta: gamma of the paper: 0 goes to the next timestep without noise, 1 to timestep 0 and all
            the way back, as LCM does; in [0, 1].

    Raises:
        UsageError: ``eta`` is outside [0, 1].

    Source: "Trajectory Consistency Distillation" (Zheng et al., 2024), algorithm 4 (strategic
    stochastic sampling); agrees with diffusers' ``TCDScheduler``.
    """

    def __init__(self, noise: NoiseConfig, *, eta: float = 0.3) -> None:
        if not 0.0 <= eta <= 1.0:
            raise UsageError(f"eta {eta:g}: use 0 (no noise) to 1 (all of it renewed)")
        super().__init__(noise)
        self.eta = eta

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
        """Down to timestep s, up to the next; see `Scheduler.step`."""
        predicted_x0, predicted_noise = split_prediction(
            self.noise.prediction_type, model_output, sample, self._alpha(timestep)
        )
        next_timestep = self._next_timestep(timestep)
        target = 0 if next_timestep is None else next_timestep
        alpha_s = self._alpha(math.floor((1 - self.eta) * target))
        result = math.sqrt(alpha_s) * predicted_x0 + math.sqrt(1 - alpha_s) * predicted_noise
        if next_timestep is None or self.eta == 0:
            return result
        kept = self._alpha(next_timestep) / alpha_s
        noise = draw_noise(sample, generators)
        return math.sqrt(kept) * result + math.sqrt(1 - kept) * noise
