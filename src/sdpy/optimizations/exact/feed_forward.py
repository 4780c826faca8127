"""The feed-forward network of a transformer block, some tokens at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdpy.models.attention import GEGLU, FeedForward
from sdpy.optimizations.exact.bfloat16_pairs import Pair, PairedLinear

WORKSPACE = 24 * 2**20
"""Bytes of the wide inner layer that exist at a time."""


class ChunkedFeedForward(nn.Module):
    """`FeedForward` whose inner layer, eight times as wide as the tokens, never exists as a whole.

    Args:
        original: what to replace; its weights are shared.
        linear: makes of each of its two linear layers the one that is used.
    """

    def __init__(
        self,
        original: FeedForward,
        linear: Callable[[nn.Linear], nn.Linear | PairedLinear] = lambda layer: layer,
    ) -> None:
        super().__init__()
        widen, _, narrow = original.net
        assert isinstance(widen, GEGLU) and isinstance(narrow, nn.Linear)
        self.widen, self.narrow = linear(widen.proj), linear(narrow)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        tokens = x.flatten(0, 1)
        result = torch.empty_like(tokens)
        wide = self.widen.out_features
        parts = max(-(-len(tokens) * wide * x.element_size() // WORKSPACE), 1)
        step = -(-len(tokens) // parts)
        # Plain products are faster into memory where the tokens of a channel lie together; pairs
        # need the channels of a token to do so.
        by_channels = isinstance(self.widen, nn.Linear)
        buffer = x.new_empty(wide, step).t() if by_channels else x.new_empty(step, wide)
        for part, out in zip(torch.split(tokens, step), torch.split(result, step), strict=True):
            inner = buffer[: len(part)]
            _write(self.widen, part, inner)
            values, gate = inner.chunk(2, dim=-1)
            values *= torch.ops.aten.gelu_(gate)
            _write(self.narrow, values, out)
        return result.view(x.shape)


def _write(layer: nn.Linear | PairedLinear, rows: Tensor, result: Tensor) -> None:
    if isinstance(layer, PairedLinear):
        layer.write(Pair.of(rows), result)
    else:
        torch.addmm(layer.bias, rows, layer.weight.t(), out=result)
