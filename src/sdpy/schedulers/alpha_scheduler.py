"""What the schedulers share that are written in terms of ``alphas_cumprod``."""

from __future__ import annotations

import math

from torch import Tensor

from sdpy.schedulers.config import NoiseConfig
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.schedulers.spacing import Timesteps


class AlphaScheduler:
    """Visits whole timesteps of training; see `Scheduler`.

    Latents are ``sqrt(a) x_0 + sqrt(1 - a) noise``, where ``a`` is ``alphas_cumprod`` at the
    timestep.

    Args:
        noise: the forward process and what the network predicts.
    """

    def __init__(self, noise: NoiseConfig) -> None:
        self.noise = noise
        self.alphas_cumprod: tuple[float, ...] = tuple(make_alphas_cumprod(noise).tolist())
        self.init_noise_sigma = 1.0
        self.timesteps: tuple[int, ...] = ()

    def scale_model_input(self, sample: Tensor, timestep: float) -> Tensor:
        """``sample`` itself, which has variance 1; see `Scheduler.scale_model_input`."""
        return sample

    def add_noise(self, original: Tensor, noise: Tensor, timestep: float) -> Tensor:
        """``sqrt(a) original + sqrt(1 - a) noise``; see `Scheduler.add_noise`."""
        alpha_t = self._alpha(timestep)
        return math.sqrt(alpha_t) * original + math.sqrt(1 - alpha_t) * noise

    def _set_schedule(self, timesteps: Timesteps) -> None:
        self.timesteps = tuple(timesteps.tolist())

    def _alpha(self, timestep: float) -> float:
        """``alphas_cumprod`` at the nearest timestep of training."""
        return self.alphas_cumprod[min(max(int(timestep), 0), self.noise.num_train_timesteps - 1)]

    def _next_timestep(self, timestep: float) -> int | None:
        """The timestep that is visited after this one; None after the last."""
        index = self.timesteps.index(int(timestep)) + 1
        return self.timesteps[index] if index < len(self.timesteps) else None
