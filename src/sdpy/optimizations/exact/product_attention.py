"""Attention as two large matrix products, and nothing beside them.

Softmax is the same whatever is subtracted from a row of scores, as long as no exponential overflows
and the largest do not vanish. So the subtrahend need not be the row's maximum, which would take a
pass of its own: the maximum over a sample of the keys will do. It is subtracted by the product that
makes the scores, for which keys have one more component, 1. Values have one more, too, by which the
second product sums up the exponentials.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.attention import Attention
from sdpy.models.vae import AutoencoderAttention
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact.sliced_attention import SlicedAttention

WORKSPACE = 16 * 2**20
"""The bytes of scores that exist at a time; they should stay in a cache."""

HEAD_WORKSPACE = 4 * 2**20
"""The bytes of scores of one head that exist at a time in bfloat16, for each thread. With fewer,
threads wait for one another more often."""

SAMPLE = 64
"""The number of keys whose scores tell what to subtract."""

VECTOR = 16
"""The numbers in a vector of the processor; a product computes whole vectors."""

MANY = {torch.float32: 2048, torch.bfloat16: 64}
"""The number of keys from which on this is faster than torch's own attention, by dtype."""


def is_fast() -> bool:
    """Whether the processor has vectors of that length; with shorter ones it is no faster."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


class ProductAttention(nn.Module):
    """Scaled dot-product attention as two matrix products, where there are many tokens."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``query`` (B, heads, T, d), ``key``, ``value`` (B, heads, S, d) -> (B, heads, T, d)."""
        if key.shape[2] < MANY[key.dtype]:
            return F.scaled_dot_product_attention(query, key, value)
        B, heads, T, d = query.shape
        result = query.new_empty(B, T, heads, d).transpose(1, 2)
        attend = _attend if key.dtype == torch.float32 else _attend_by_heads
        for q, k, v, place in zip(query, key, value, result, strict=True):
            attend(q, k, v, place)
            if not place.sum().isfinite():  # the sample missed a key by far
                place.copy_(F.scaled_dot_product_attention(q, k, v))
        return result


class AttentionByProducts:
    """The pass that replaces ``attend`` by `ProductAttention` where that is faster.

    In float32 it is where heads leave a part of a vector unused, which the values' additional
    component takes; in bfloat16, of which torch's own attention computes products in float32, it is
    everywhere. An attention that computes in slices stays as it is.
    """

    name = "attention by products"
    dtypes = (torch.float32, torch.bfloat16)

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """Where the processor's vectors are long enough."""
        return context.is_fast_in(self.dtypes) and is_fast()

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Replace ``attend`` of each attention with such heads."""
        for module in list(model.modules()):
            if not isinstance(module, Attention | AutoencoderAttention):
                continue
            fills = isinstance(module, AutoencoderAttention) or not (
                module.to_q.out_features // module.heads % VECTOR
            )
            whole = not isinstance(module.attend, SlicedAttention)
            if whole and (context.dtype == torch.bfloat16 or not fills):
                module.attend = ProductAttention()


def _attend(query: Tensor, key: Tensor, value: Tensor, result: Tensor) -> None:
    """The same of one sample into ``result`` (heads, T, d), not finite where exponentials are."""
    heads, T, d = query.shape
    S = key.shape[1]
    vectors = -(-(d + 1) // VECTOR) * VECTOR
    keys = key.new_zeros(heads, d + 1, S)
    keys[:, :d] = key.mT
    keys[:, d] = 1
    values = value.new_zeros(heads, S, vectors)
    values[..., :d] = value
    values[..., d] = 1

    queries = query.new_empty(heads, T, d + 1)
    scaled = torch.mul(query, d**-0.5, out=queries[..., :d])
    sample = keys[:, :d, :: S // SAMPLE].contiguous()
    queries[..., d] = -(scaled @ sample).amax(-1)

    rows = max(WORKSPACE // (key.element_size() * heads * S), 1)
    memory = query.new_empty(heads * min(rows, T) * S)
    parts = zip(torch.split(queries, rows, 1), torch.split(result, rows, 1), strict=True)
    for part, place in parts:
        weights = memory[: heads * part.shape[1] * S].view(heads, -1, S)
        torch.bmm(part, keys, out=weights).exp_()
        sums = weights @ values
        torch.div(sums[..., :d], sums[..., d : d + 1], out=place)


def _attend_by_heads(query: Tensor, key: Tensor, value: Tensor, result: Tensor) -> None:
    """The same in bfloat16, one head after the other, so that scores stay in the cache.

    The processor multiplies pairs of bfloat16 numbers, so keys have an even number of components.
    """
    heads, T, d = query.shape
    S = key.shape[1]
    inner, vectors = d + 2 - d % 2, -(-(d + 1) // VECTOR) * VECTOR
    keys, values = key.new_zeros(inner, S), value.new_zeros(S, vectors)
    keys[d], values[:, d] = 1, 1
    queries = query.new_zeros(T, inner)
    space = HEAD_WORKSPACE * torch.get_num_threads()
    rows = min(max(space // (key.element_size() * S) // VECTOR, 1) * VECTOR, T)
    scores, sums = query.new_empty(rows, S), query.new_empty(rows, vectors)
    for q, k, v, places in zip(query, key, value, result, strict=True):
        keys[:d], values[:, :d] = k.t(), v
        scaled = torch.mul(q, d**-0.5, out=queries[:, :d])
        queries[:, d] = -(scaled @ keys[:d, :: S // SAMPLE]).amax(-1)
        for part, place in zip(torch.split(queries, rows), torch.split(places, rows), strict=True):
            weights = torch.mm(part, keys, out=scores[: len(part)]).exp_()
            summed = torch.mm(weights, values, out=sums[: len(part)])
            torch.div(summed[:, :d], summed[:, d : d + 1], out=place)
