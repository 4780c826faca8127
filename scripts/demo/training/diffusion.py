"""The forward process for batches whose samples each have a timestep of their own.

Training sees every sample at another timestep, which `sdpy.schedulers` have no use for: they take
a whole batch from one timestep to the next. Velocities are those of "Progressive Distillation for
Fast Sampling of Diffusion Models" (Salimans and Ho, 2022), section 4.

Shapes: latents (B, C, h, w); ``timesteps`` (B,) int64, of which -1 stands for clean latents;
``alphas`` is `sdpy.schedulers.make_alphas_cumprod`, (num_train_timesteps,).
"""

from __future__ import annotations

import torch
from torch import Tensor


def alpha_at(alphas: Tensor, timesteps: Tensor) -> Tensor:
    """``alphas_cumprod`` at the timesteps, (B, 1, 1, 1); 1 before the first."""
    known = torch.where(timesteps < 0, 1.0, alphas[timesteps.clamp(min=0)])
    return known[:, None, None, None]


def add_noise(alphas: Tensor, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Latents as noisy as the timesteps say."""
    alpha = alpha_at(alphas, timesteps)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def velocity_of(alphas: Tensor, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What a v-prediction model is to predict."""
    alpha = alpha_at(alphas, timesteps)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def predicted_clean(alphas: Tensor, noisy: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
    """The clean latents that a predicted velocity means."""
    alpha = alpha_at(alphas, timesteps)
    return alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity


def predicted_noise(alphas: Tensor, noisy: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
    """The noise that a predicted velocity means."""
    alpha = alpha_at(alphas, timesteps)
    return alpha.sqrt() * velocity + (1 - alpha).sqrt() * noisy


def stratified_timesteps(batch: int, count: int, generator: torch.Generator) -> Tensor:
    """One timestep (B,) of 0 to ``count`` - 1 for each sample, spread evenly over the batch.

    They are drawn on the generator's device. Each sample has its own share of the range, which
    steadies the loss.
    """
    device = generator.device
    random = torch.rand(batch, generator=generator, device=device)
    place = (torch.arange(batch, device=device) + random) / batch
    # In float32 the greatest random numbers round the last place up to 1.
    return (place * count).long().clamp(max=count - 1)
