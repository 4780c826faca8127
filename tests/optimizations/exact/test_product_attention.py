"""Attention by products against torch's own in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdpy.models.attention import Attention
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact import product_attention
from sdpy.optimizations.exact.product_attention import AttentionByProducts, ProductAttention
from sdpy.optimizations.exact.sliced_attention import SlicedAttention, slice_attention
from support.compare import normal, relative_error

TOLERANCE = 2e-6


@pytest.fixture(autouse=True)
def at_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_attention, "MANY", {torch.float32: 1, torch.bfloat16: 1})
    monkeypatch.setattr(product_attention, "SAMPLE", 4)


@pytest.fixture
def calls_of_torch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many heads torch's own attention was asked for, each time."""
    calls: list[int] = []
    original = F.scaled_dot_product_attention

    def note(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        calls.append(query.shape[-3])
        return original(query, key, value)

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    return calls


def expected(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query.double() @ key.double().mT / query.shape[-1] ** 0.5
    return scores.softmax(-1) @ value.double()


def heads_of(batch: int, heads: int, tokens: int, d: int, seed: int) -> Tensor:
    """As an attention splits them: (B, heads, T, d), heads beside each other in memory."""
    return normal(batch, tokens, heads, d, seed=seed).transpose(1, 2)


@pytest.mark.parametrize("workspace", [1, 10_000, 10**9])
@pytest.mark.parametrize(
    ("heads", "d", "asking", "asked"), [(1, 15, 5, 4), (8, 40, 50, 50), (3, 7, 100, 33)]
)
@torch.inference_mode()
def test_equals_softmax(
    monkeypatch: pytest.MonkeyPatch,
    calls_of_torch: list[int],
    workspace: int,
    heads: int,
    d: int,
    asking: int,
    asked: int,
) -> None:
    """One row at a time, some, all."""
    monkeypatch.setattr(product_attention, "WORKSPACE", workspace)
    query = heads_of(2, heads, asking, d, seed=0)
    key, value = heads_of(2, heads, asked, d, seed=1), heads_of(2, heads, asked, d, seed=2)
    result = ProductAttention()(query, key, value)
    assert result.shape == query.shape
    assert relative_error(result, expected(query, key, value)) <= TOLERANCE
    assert not calls_of_torch


@pytest.mark.parametrize("offset", [-3000.0, 0.0, 3000.0])
@torch.inference_mode()
def test_scores_of_any_size(calls_of_torch: list[int], offset: float) -> None:
    """What all scores of a row have in common, however much, changes nothing."""
    query, key, value = (heads_of(1, 2, 20, 8, seed=seed) for seed in range(3))
    query[..., 0], key[..., 0] = 8**0.5, offset
    exact = expected(query, key, value)
    # Scores of 3000 are exact to 2e-4 only, in whatever way they are computed.
    plain = relative_error(F.scaled_dot_product_attention(query, key, value), exact)
    calls_of_torch.clear()
    assert relative_error(ProductAttention()(query, key, value), exact) <= TOLERANCE + 3 * plain
    assert not calls_of_torch


@torch.inference_mode()
def test_a_key_far_above_the_sample(calls_of_torch: list[int]) -> None:
    """Its exponential overflows; then that sample is left to torch."""
    query, key, value = (heads_of(2, 2, 20, 8, seed=seed) for seed in range(3))
    key[1, :, 7] = 100 * query[1, :, 3]  # of 20 keys, every fifth is in the sample
    assert (
        relative_error(ProductAttention()(query, key, value), expected(query, key, value))
        <= TOLERANCE
    )
    assert calls_of_torch == [2]


def test_few_tokens_are_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, calls_of_torch: list[int]
) -> None:
    monkeypatch.setattr(product_attention, "MANY", {torch.float32: 78})
    query, key, value = (heads_of(1, 8, tokens, 40, seed=0) for tokens in (100, 77, 77))
    ProductAttention()(query, key, value)
    assert calls_of_torch == [8]


def test_only_heads_that_do_not_fill_vectors_and_attend_as_usual() -> None:
    uneven, even, sliced = (Attention(320, heads=heads) for heads in (8, 5, 8))
    before = even.attend
    slice_attention(sliced, 2)
    for one in (uneven, even, sliced):
        AttentionByProducts().apply(one, PassContext(fast_kernels=True))
    assert isinstance(uneven.attend, ProductAttention)
    assert even.attend is before
    assert isinstance(sliced.attend, SlicedAttention)
