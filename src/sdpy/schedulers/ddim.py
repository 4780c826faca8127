"""Denoising diffusion implicit models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.errors import UsageError
from sdpy.schedulers.alpha_scheduler import AlphaScheduler
from sdpy.schedulers.config import NoiseConfig
from sdpy.schedulers.noise import draw_noise, split_prediction
from sdpy.schedulers.spacing import space_timesteps


class DDIMScheduler(AlphaScheduler):
    """Deterministic, or with fresh noise at each step if ``eta`` is above 0.

    Args:
        noise: the forward process and what the network predicts.
        timestep_spacing: a name of `sdpy.schedulers.spacing.SPACINGS`.
        eta: 0 for DDIM, 1 for as much noise as DDPM adds; in [0, 1].

    Raises:
        UsageError: ``eta`` is outside [0, 1].

    Source: "Denoising Diffusion Implicit Models" (Song et al., 2021), equations 12 and 16; agrees
    with diffusers' ``DDIMScheduler`` (``steps_offset=1, set_alpha_to_one=False,
    clip_sample=False``) and, with the spacing ``original``, with the OCaml program.
    """

    def __init__(
        self, noise: NoiseConfig, *, timestep_spacing: str = "leading", eta: float = 0.0
    ) -> None:
        if not 0.0 <= eta <= 1.0:
            raise UsageError(f"eta {eta:g}: use 0 (no noise) to 1 (as much as DDPM adds)")
        super().__init__(noise)
        self.timestep_spacing = timestep_spacing
        self.eta = eta

    def set_timesteps(self, num_inference_steps: int, skip: int = 0) -> None:
        """Plan one timestep per step; see `Scheduler.set_timesteps`."""
        total = self.noise.num_train_timesteps
        timesteps = space_timesteps(self.timestep_spacing, num_inference_steps, total)
        self._set_schedule(timesteps[skip:])
        self._ratio = total // num_inference_steps

    def step(
        self,
        model_output: Tensor,
        timestep: float,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """One step of equation 12; see `Scheduler.step`."""
        start = min(int(timestep), self.noise.num_train_timesteps - 1)
        alpha_t, alpha_prev = self._alpha(start), self._alpha(start - self._ratio)

        predicted_x0, predicted_noise = split_prediction(
            self.noise.prediction_type, model_output, sample, alpha_t
        )
        variance = (1 - alpha_prev) / (1 - alpha_t) * (1 - alpha_t / alpha_prev)  # equation 16
        sigma = self.eta * math.sqrt(variance)
        # With eta 1 after pure noise nothing is left but a rounding, which may fall below 0.
        direction = math.sqrt(max(1 - alpha_prev - sigma**2, 0.0)) * predicted_noise
        sample = math.sqrt(alpha_prev) * predicted_x0 + direction
        if sigma > 0:
            sample = sample + sigma * draw_noise(sample, generators)
        return sample
