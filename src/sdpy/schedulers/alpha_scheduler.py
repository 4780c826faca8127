"""What the samplers share that walk along whole timesteps of training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdpy.schedulers.config import NoiseConfig
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.schedulers.spacing import Timesteps


class AlphaScheduler:
    """Latents ``sqrt(a) x_0 + sqrt(1 - a) noise``, with ``a`` the timestep's ``alphas_cumprod``.

    See `Scheduler`.
    """

    def __init__(self, noise: NoiseConfig) -> None:
        self.noise = noise
        self.alphas_cumprod = make_alphas_cumprod(noise)
        self.init_noise_sigma = 1.0
        self.timesteps = torch.empty(0, dtype=torch.int64)

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """``sample`` itself: the walk keeps its variance."""
        return sample

    def add_noise(self, original: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """``sqrt(a) original + sqrt(1 - a) noise``; see `Scheduler.add_noise`."""
        alpha_t = self._alpha(int(timestep))
        return math.sqrt(alpha_t) * original + math.sqrt(1 - alpha_t) * noise

    def _plan(self, timesteps: Timesteps) -> None:
        self.timesteps = torch.from_numpy(timesteps.copy())

    def _alpha(self, timestep: int) -> float:
        """``alphas_cumprod``; of the nearest training timestep where there is none."""
        last = self.noise.num_train_timesteps - 1
        return self.alphas_cumprod[min(max(timestep, 0), last)].item()

    def _following(self, timestep: Tensor) -> int | None:
        """The timestep that the walk visits after this one; None after the last."""
        index = self.timesteps.tolist().index(int(timestep))
        return int(self.timesteps[index + 1]) if index + 1 < len(self.timesteps) else None
