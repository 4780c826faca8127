"""The feed-forward network of a transformer block, some tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdpy.models.attention import GEGLU, FeedForward

WORKSPACE = 32 * 2**20
"""Bytes of the wide inner layer that exist at a time."""


class ChunkedFeedForward(nn.Module):
    """`FeedForward` whose inner layer, eight times as wide as the tokens, never exists as a whole.

    Args:
        original: what to replace; its weights are shared.
    """

    def __init__(self, original: FeedForward) -> None:
        super().__init__()
        widen, _, narrow = original.net
        assert isinstance(widen, GEGLU) and isinstance(narrow, nn.Linear)
        self.widen, self.narrow = widen.proj, narrow

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        tokens = x.flatten(0, 1)
        result = torch.empty_like(tokens)
        wide = self.widen.out_features
        step = min(max(WORKSPACE // (wide * x.element_size()), 64), len(tokens))
        buffer = x.new_empty(step, wide)
        for part, out in zip(torch.split(tokens, step), torch.split(result, step), strict=True):
            inner = buffer[: len(part)]
            torch.addmm(self.widen.bias, part, self.widen.weight.t(), out=inner)
            values, gate = inner.chunk(2, dim=-1)
            values *= torch.ops.aten.gelu_(gate)
            torch.addmm(self.narrow.bias, values, self.narrow.weight.t(), out=out)
        return result.view(x.shape)
