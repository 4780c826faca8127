"""How the UNet is told the timestep."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoids of the timestep at geometrically falling frequencies, cosines first.

    Args:
        timesteps: (B,), in steps of the training schedule, fractions allowed.
        dim: channels of the result, even.

    Returns:
        (B, dim) float32: ``[cos(t w_0) ... cos(t w_n), sin(t w_0) ... sin(t w_n)]`` with
        ``w_i = 10000 ** (-i / (dim / 2))``.

    Source: "Denoising Diffusion Probabilistic Models" (Ho et al., 2020), with the order and the
    frequency shift 0 that Stable Diffusion's UNet was trained with.
    """
    half = dim // 2
    # In this order, because a rounding of a frequency is multiplied by up to 1000 below; the
    # reference implementation, on which the weights were trained, rounds so.
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(exponent / half)
    angles = timesteps[:, None].float() * frequencies[None, :]  # (B, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers with a SiLU between them, from sinusoids to the UNet's time channels."""

    def __init__(self, in_channels: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels) -> (B, time_embed_dim)."""
        return self.linear_2(F.silu(self.linear_1(x)))
