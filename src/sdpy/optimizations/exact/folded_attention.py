"""Attention to a prompt that stays the same, with what does not change multiplied out beforehand.

Of a head, scores are ``(x Wq) K^T`` and the result is ``(P V) Wo``, where only ``x`` and ``P``, the
softmax of the scores, change from step to step. ``Wq K^T`` and ``V Wo`` are as wide as the prompt
is long; where heads are wider than that, they save most of the work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdpy.models.attention import Attention
from sdpy.optimizations.exact.remembering_linear import LastSeen


class FoldedAttention(nn.Module):
    """Cross-attention that multiplies out what only depends on the context, once for each.

    Args:
        original: the attention; its layers are shared.
        let_go: called with weights that are not needed until the context changes.
    """

    def __init__(self, original: Attention, let_go: Callable[[Tensor], None] | None = None) -> None:
        super().__init__()
        self.original, self.let_go = original, let_go
        self._context = LastSeen()
        self.queries_to_scores: Tensor
        self.weights_to_result: Tensor
        self.register_buffer("queries_to_scores", None, persistent=False)
        self.register_buffer("weights_to_result", None, persistent=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``x`` (B, T, D), ``context`` (B, S, context_dim) -> (B, T, D)."""
        heads, S = self.original.heads, context.shape[1]
        if heads * S >= x.shape[-1] + S:  # more work than it saves
            return self.original(x, context)
        if self._context.is_new(context):
            self._fold(context)
            self._context.remember(context)
        scores = (x @ self.queries_to_scores).view(*x.shape[:2], heads, S)
        weights = scores.softmax(dim=-1).flatten(2)  # (B, T, heads S)
        return torch.baddbmm(self.out.bias, weights, self.weights_to_result)

    def _fold(self, context: Tensor) -> None:
        """``queries_to_scores`` (B, D, heads S) and ``weights_to_result`` (B, heads S, D)."""
        attention, (B, S, _) = self.original, context.shape
        keys = attention.to_k(context).view(B, S, attention.heads, -1)  # (B, S, heads, d)
        values = attention.to_v(context).view(B, S, attention.heads, -1)
        D, d = len(self.out.weight), keys.shape[-1]
        queries = attention.to_q.weight.view(attention.heads, d, D)
        out = self.out.weight.view(D, attention.heads, d)
        self.queries_to_scores = torch.einsum("hdD,bshd->bDhs", queries, keys * d**-0.5).flatten(2)
        self.weights_to_result = torch.einsum("bshd,Dhd->bhsD", values, out).flatten(1, 2)
        if self.let_go is not None:
            for layer in (attention.to_q, self.out):
                self.let_go(layer.weight)

    @property
    def out(self) -> nn.Linear:
        """The layer that makes the result."""
        layer = self.original.to_out[0]
        assert isinstance(layer, nn.Linear)
        return layer
