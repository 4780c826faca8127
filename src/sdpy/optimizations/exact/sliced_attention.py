"""Attention in slices: a little slower, with less memory for the scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.attention import Attention
from sdpy.models.vae import AutoencoderAttention

AUTOMATIC = 0


def slice_attention(model: nn.Module, size: int) -> None:
    """Make every attention of ``model`` compute ``size`` heads of its batch at a time.

    Args:
        model: a UNet or autoencoder.
        size: slices of (batch x heads), at least 1; `AUTOMATIC` takes half of the heads, at
            least one. A size that does not divide their number leaves a smaller last slice.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = SlicedAttention(
                max(module.heads // 2, 1) if size == AUTOMATIC else size
            )
        elif isinstance(module, AutoencoderAttention):
            module.attend = SlicedAttention(1 if size == AUTOMATIC else size)


class SlicedAttention(nn.Module):
    """Stands in for `ScaledDotProductAttention`, and attends with some heads at a time.

    Args:
        size: how many of (batch x heads).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``query`` (B, heads, T, d), ``key`` and ``value`` (B, heads, S, d) -> query's shape."""
        slices = zip(
            *(torch.split(x.flatten(0, 1), self.size) for x in (query, key, value)), strict=True
        )
        results = [F.scaled_dot_product_attention(q, k, v) for q, k, v in slices]
        return torch.cat(results).view(query.shape)
