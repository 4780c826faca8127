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

from sdpy.models.attention import Attention, ScaledDotProductAttention

WORKSPACE = 16 * 2**20
"""Bytes of scores that exist at a time: they should stay in a cache."""
SAMPLE = 64
"""Keys whose scores tell what to subtract."""
VECTOR = 16
"""Numbers in a vector of the processor. A product computes whole ones."""
MANY = 2048
"""Tokens from which on this is faster."""


def is_fast() -> bool:
    """Whether the processor has vectors of that length; with shorter ones it is no faster."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def attend_by_products(attention: Attention) -> None:
    """Make an attention do so where it gains, unless it attends in a way of its own already.

    It gains where heads leave a part of a vector unused, which the values' additional component
    takes.
    """
    d = attention.to_q.out_features // attention.heads
    if d % VECTOR and isinstance(attention.attend, ScaledDotProductAttention):
        attention.attend = ProductAttention()


class ProductAttention(nn.Module):
    """Stands in for `ScaledDotProductAttention`."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `attend`."""
        return attend(query, key, value)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``query`` (B, heads, T, d), ``key`` and ``value`` (B, heads, S, d) -> (B, heads, T, d)."""
    if key.shape[2] < MANY:
        return F.scaled_dot_product_attention(query, key, value)
    B, heads, T, d = query.shape
    result = query.new_empty(B, T, heads, d).transpose(1, 2)
    for q, k, v, place in zip(query, key, value, result, strict=True):
        _attend(q, k, v, place)
        if not place.isfinite().all():  # the sample missed a key by far
            place.copy_(F.scaled_dot_product_attention(q, k, v))
    return result


def _attend(query: Tensor, key: Tensor, value: Tensor, result: Tensor) -> None:
    """The same of one sample into ``result`` (heads, T, d), not finite where exponentials are."""
    heads, T, d = query.shape
    S = key.shape[1]
    keys = key.new_ones(heads, d + 1, S)
    keys[:, :d] = key.mT
    values = value.new_zeros(heads, S, -(-(d + 1) // VECTOR) * VECTOR)
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
