"""The feed-forward network of a transformer block, some tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdpy.models.attention import GEGLU, FeedForward
from sdpy.optimizations.base import PassContext, replace_module
from sdpy.optimizations.exact.bfloat16_pairs import Pair, PairedLinear

WORKSPACE = 24 * 2**20
"""The bytes of the wide inner layer that exist at a time."""


class ChunkedFeedForward(nn.Module):
    """`FeedForward` whose inner layer, eight times as wide as the tokens, never exists as a whole.

    Args:
        original: what to replace; its two linear layers are taken over, paired ones as well.
    """

    def __init__(self, original: FeedForward) -> None:
        super().__init__()
        widen, _, narrow = original.net
        assert isinstance(widen, GEGLU)
        self.widen, self.narrow = widen.proj, narrow

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


class FeedForwardChunking:
    """The pass that replaces every `FeedForward` by a `ChunkedFeedForward`."""

    name = "chunked feed-forward"
    dtypes = (torch.float32,)

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """To every model that has such networks."""
        return context.is_fast_in(self.dtypes) and any(
            isinstance(module, FeedForward) for module in model.modules()
        )

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Replace them; their linear layers stay what they are."""
        for name, module in list(model.named_modules()):
            if isinstance(module, FeedForward):
                replace_module(model, name, ChunkedFeedForward(module))


def _write(layer: nn.Module, rows: Tensor, result: Tensor) -> None:
    if isinstance(layer, PairedLinear):
        layer.write(Pair.of(rows), result)
    else:
        assert isinstance(layer, nn.Linear)
        torch.addmm(layer.bias, rows, layer.weight.t(), out=result)
