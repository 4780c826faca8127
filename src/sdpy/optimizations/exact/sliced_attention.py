"""Attention in slices: a little slower, with less memory for the scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.attention import Attention
from sdpy.models.vae import AutoencoderAttention
from sdpy.optimizations.base import PassContext

AUTOMATIC = 0
"""As a size: half of the heads, at least one."""


class SlicedAttention(nn.Module):
    """Scaled dot-product attention of some heads at a time.

    Args:
        size: slices of (batch x heads), at least 1. One that does not divide their number leaves
            a smaller last slice.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``query`` (B, heads, T, d), ``key``, ``value`` (B, heads, S, d) -> (B, heads, T, d)."""
        slices = zip(
            *(torch.split(x.flatten(0, 1), self.size) for x in (query, key, value)), strict=True
        )
        results = [F.scaled_dot_product_attention(q, k, v) for q, k, v in slices]
        return torch.cat(results).view(query.shape)


class AttentionSlicing:
    """The pass that replaces every ``attend`` by `SlicedAttention`."""

    name = "sliced attention"

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """Wherever a size was given."""
        return context.sliced_attention_size is not None

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """See `slice_attention`."""
        assert context.sliced_attention_size is not None
        slice_attention(model, context.sliced_attention_size)


def slice_attention(model: nn.Module, size: int) -> None:
    """Make every attention of ``model`` compute ``size`` heads of its batch at a time.

    This may also be done to a model that is in use, when memory runs out.

    Args:
        model: a UNet or autoencoder.
        size: of a slice; `AUTOMATIC` takes half of the heads, at least one.
    """
    for module in list(model.modules()):
        if isinstance(module, Attention):
            heads = max(module.heads // 2, 1)
            module.attend = SlicedAttention(heads if size == AUTOMATIC else size)
        elif isinstance(module, AutoencoderAttention):
            module.attend = SlicedAttention(1 if size == AUTOMATIC else size)
