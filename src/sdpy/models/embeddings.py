"""How the UNet is told the timestep, and the guidance scale where it was trained to take it."""

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


def guidance_scale_embedding(guidance_scale: float, dim: int) -> Tensor:
    """Sinusoids of the guidance scale, for UNets that were distilled together with it.

    Args:
        guidance_scale: as of classifier-free guidance: 1 is none.
        dim: channels of the result, at least 4.

    Returns:
        (1, dim) float32 on the CPU: ``[sin(1000 w f_0) ..., cos(1000 w f_0) ...]`` with ``w`` the
        scale less 1 and ``f_i = 10000 ** (-i / (dim / 2 - 1))``; an odd ``dim`` ends with a 0.

    Source: "Latent Consistency Models" (Luo et al., 2023), section 4.2, where w is 0 without
    guidance; agrees with diffusers' ``get_guidance_scale_embedding``.
    """
    half = dim // 2
    # The roundings are the reference implementation's; the sines of angles in the thousands
    # would show any others.
    angle = torch.tensor([guidance_scale - 1], dtype=torch.float32) * 1000
    exponent = torch.log(torch.tensor(10000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -exponent)
    angles = angle[:, None] * frequencies[None, :]  # (1, dim / 2)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, dim % 2))


class TimestepEmbedding(nn.Module):
    """Two linear layers with a SiLU between them, from sinusoids to the UNet's time channels.

    Args:
        in_channels: of the timestep's sinusoids.
        time_embed_dim: channels of the result.
        cond_dim: channels of a condition that is projected onto the sinusoids; None for none.
    """

    def __init__(self, in_channels: int, time_embed_dim: int, cond_dim: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.cond_proj = None if cond_dim is None else nn.Linear(cond_dim, in_channels, bias=False)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """``x`` (B, in_channels), ``condition`` (B, cond_dim) -> (B, time_embed_dim)."""
        if self.cond_proj is not None and condition is not None:
            x = x + self.cond_proj(condition)
        return self.linear_2(F.silu(self.linear_1(x)))
