"""Denoising diffusion implicit models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdpy.errors import UsageError
from sdpy.schedulers.base import draw_noise
from sdpy.schedulers.noise import NoiseConfig, make_alphas_cumprod, split_prediction
from sdpy.schedulers.spacing import space_timesteps


class DDIMScheduler:
    """The deterministic walk of DDIM; with ``eta`` above 0, fresh noise joins at each step.

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
        self.noise = noise
        self.timestep_spacing = timestep_spacing
        self.eta = eta
        self.alphas_cumprod = make_alphas_cumprod(noise)
        self.init_noise_sigma = 1.0
        self.timesteps = torch.empty(0, dtype=torch.int64)

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Plan ``num_inference_steps`` timesteps; see `Scheduler.set_timesteps`."""
        total = self.noise.num_train_timesteps
        spaced = space_timesteps(self.timestep_spacing, num_inference_steps, total)
        self.timesteps = torch.from_numpy(spaced.copy())
        self._ratio = total // num_inference_steps

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """``sample`` itself: the walk keeps its variance."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One step of equation 12; see `Scheduler.step`."""
        index = self._index(timestep)
        alpha_t = self.alphas_cumprod[index].item()
        alpha_prev = self.alphas_cumprod[max(index - self._ratio, 0)].item()

        predicted_x0, predicted_noise = split_prediction(
            self.noise.prediction_type, model_output, sample, alpha_t
        )
        variance = (1 - alpha_prev) / (1 - alpha_t) * (1 - alpha_t / alpha_prev)  # equation 16
        sigma = self.eta * math.sqrt(variance)
        # With eta 1 after pure noise nothing is left but a rounding, which may fall below 0.
        direction = math.sqrt(max(1 - alpha_prev - sigma**2, 0.0)) * predicted_noise
        sample = math.sqrt(alpha_prev) * predicted_x0 + direction
        if sigma > 0:
            sample = sample + sigma * draw_noise(sample, generator)
        return sample

    def add_noise(self, original: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """``sqrt(a) original + sqrt(1 - a) noise``; see `Scheduler.add_noise`."""
        alpha_t = self.alphas_cumprod[self._index(timestep)].item()
        return math.sqrt(alpha_t) * original + math.sqrt(1 - alpha_t) * noise

    def _index(self, timestep: Tensor) -> int:
        return min(int(timestep), self.noise.num_train_timesteps - 1)
