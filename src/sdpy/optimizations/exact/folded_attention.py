"""Attention to a prompt that stays the same, with what does not change multiplied out beforehand.

Of a head, scores are ``(x Wq) K^T`` and the result is ``(P V) Wo``, where only ``x`` and ``P``, the
softmax of the scores, change from step to step. ``Wq K^T`` and ``V Wo`` are as wide as the prompt
is long; where heads are wider than that, they save most of the work.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdpy.models.attention import Attention, BasicTransformerBlock
from sdpy.optimizations.base import PassContext, replace_module
from sdpy.optimizations.exact.bfloat16_pairs import uses_pairs
from sdpy.optimizations.exact.cached_linear import CachedLinear, CacheKey
from sdpy.optimizations.weights import ModelWeights


class PromptCaching:
    """The pass that computes what only depends on the prompt once for each prompt.

    These are the keys and values of cross-attention. Where weights stay in memory as they are, the
    whole attention is replaced by `FoldedAttention` besides.
    """

    name = "prompt caching"
    dtypes = (torch.float32, torch.bfloat16)

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """To every model that attends to a prompt, on a GPU unless torch compiles it."""
        on_gpu = context.device.type != "cpu" and not (context.compiled or context.streamed)
        return (on_gpu or context.is_fast_in(self.dtypes)) and any(
            isinstance(module, BasicTransformerBlock) for module in model.modules()
        )

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Replace layers of each cross-attention, or the whole of it."""
        on_gpu = context.device.type != "cpu"
        folds = not (on_gpu or context.streamed or uses_pairs(model, context))
        for block in list(model.modules()):
            if isinstance(block, BasicTransformerBlock):
                for name in ("attn2.to_k", "attn2.to_v"):
                    layer = block.get_submodule(name)
                    assert isinstance(layer, nn.Linear)
                    replace_module(block, name, CachedLinear(layer))
                if folds:
                    folded = FoldedAttention(block.attn2, context.weights)
                    replace_module(block, "attn2", folded)


class FoldedAttention(nn.Module):
    """Cross-attention that multiplies out what only depends on the context, once for each.

    Args:
        original: the attention; its layers are shared.
        weights: through which weights are released that are not needed until the context changes.
    """

    def __init__(self, original: Attention, weights: ModelWeights | None = None) -> None:
        super().__init__()
        self.original = original
        self._weights = ModelWeights() if weights is None else weights
        self._context = CacheKey()
        self.queries_to_scores: Tensor
        self.weights_to_result: Tensor
        self.register_buffer("queries_to_scores", None, persistent=False)
        self.register_buffer("weights_to_result", None, persistent=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``x`` (B, T, D), ``context`` (B, S, context_dim) -> (B, T, D)."""
        heads, S = self.original.heads, context.shape[1]
        if heads * S >= x.shape[-1] + S:  # more work than it saves
            self._restore()
            return self.original(x, context)
        if not self._context.matches(context):
            self._fold(context)
            self._context.set(context)
        scores = (x @ self.queries_to_scores).view(*x.shape[:2], heads, S)
        weights = scores.softmax(dim=-1).flatten(2)  # (B, T, heads S)
        return torch.baddbmm(self.out.bias, weights, self.weights_to_result)

    def _restore(self) -> None:
        for layer in (self.original.to_q, self.out):
            self._weights.restore(layer.weight)

    def _fold(self, context: Tensor) -> None:
        """``queries_to_scores`` (B, D, heads S) and ``weights_to_result`` (B, heads S, D)."""
        self._restore()
        attention, (B, S, _) = self.original, context.shape
        keys = attention.to_k(context).view(B, S, attention.heads, -1)  # (B, S, heads, d)
        values = attention.to_v(context).view(B, S, attention.heads, -1)
        D, d = len(self.out.weight), keys.shape[-1]
        queries = attention.to_q.weight.view(attention.heads, d, D)
        out = self.out.weight.view(D, attention.heads, d)
        self.queries_to_scores = torch.einsum("hdD,bshd->bDhs", queries, keys * d**-0.5).flatten(2)
        self.weights_to_result = torch.einsum("bshd,Dhd->bhsD", values, out).flatten(1, 2)
        for layer in (attention.to_q, self.out):
            self._weights.release(layer.weight)

    @property
    def out(self) -> nn.Linear:
        """The layer that makes the result."""
        layer = self.original.to_out[0]
        assert isinstance(layer, nn.Linear)
        return layer
