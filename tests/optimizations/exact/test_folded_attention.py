"""Folded attention against the plain one in float64."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from sdpy.models.attention import Attention
from sdpy.optimizations.exact.folded_attention import FoldedAttention
from sdpy.optimizations.exact.remembering_linear import RememberingLinear
from support.compare import normal, randomise, relative_error

TOLERANCE = 2e-6
DIM, CONTEXT_DIM, HEADS = 96, 24, 4
X = normal(2, 30, DIM)


def make_attention() -> Attention:
    attention = randomise(Attention(DIM, CONTEXT_DIM, heads=HEADS))
    assert isinstance(attention, Attention)
    return attention


def expected(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
    return deepcopy(attention).double()(x.double(), context.double())


@pytest.mark.parametrize(("tokens", "folds"), [(5, True), (31, True), (32, False), (77, False)])
@torch.inference_mode()
def test_equals_the_plain_one(tokens: int, folds: bool) -> None:
    """Also where it is left to that, since the prompt is too long to gain anything."""
    plain = make_attention()
    folded = FoldedAttention(plain)
    context = normal(2, tokens, CONTEXT_DIM, seed=1)
    assert relative_error(folded(X, context), expected(plain, X, context)) <= TOLERANCE
    assert (folded.queries_to_scores is not None) == folds


@torch.inference_mode()
def test_folds_once_for_each_context() -> None:
    plain = make_attention()
    folded = FoldedAttention(plain)
    calls: list[int] = []
    plain.to_k.register_forward_hook(lambda *_: calls.append(len(calls)))
    contexts = [normal(2, 7, CONTEXT_DIM, seed=seed) for seed in (1, 2)]
    wanted = [expected(plain, X, context) for context in contexts]
    calls.clear()
    for i, times in ((0, 1), (0, 1), (1, 2), (0, 3)):
        assert relative_error(folded(X, contexts[i]), wanted[i]) <= TOLERANCE
        assert len(calls) == times


def test_folds_anew_when_the_context_was_changed() -> None:
    plain = make_attention()
    folded = FoldedAttention(plain)
    context = normal(2, 7, CONTEXT_DIM, seed=1)
    folded(X, context)
    context += 1
    assert relative_error(folded(X, context), expected(plain, X, context)) <= TOLERANCE


@torch.inference_mode()
def test_folds_again_what_failed() -> None:
    plain = make_attention()
    folded = FoldedAttention(plain)
    folded(X, normal(2, 7, CONTEXT_DIM, seed=1))

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    context = normal(2, 7, CONTEXT_DIM, seed=2)
    failing = plain.to_k.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        folded(X, context)
    failing.remove()
    assert relative_error(folded(X, context), expected(plain, X, context)) <= TOLERANCE


@torch.inference_mode()
def test_lets_go_of_what_is_not_needed_meanwhile() -> None:
    plain = make_attention()
    gone: list[Tensor] = []
    folded = FoldedAttention(plain, gone.append)
    context = normal(2, 7, CONTEXT_DIM, seed=1)
    for _ in range(2):
        folded(X, context)
    assert [id(weight) for weight in gone] == [id(plain.to_q.weight), id(plain.to_out[0].weight)]


@torch.inference_mode()
def test_its_results_go_where_the_model_goes() -> None:
    """A model that is let go of gives their memory back."""
    folded = FoldedAttention(make_attention())
    folded(X, normal(2, 7, CONTEXT_DIM))
    folded.to("meta")
    assert folded.queries_to_scores.is_meta and folded.weights_to_result.is_meta
    assert not folded.state_dict().keys() & {"queries_to_scores", "weights_to_result"}


@torch.inference_mode()
def test_with_layers_that_remember() -> None:
    plain = make_attention()
    context = normal(2, 7, CONTEXT_DIM, seed=1)
    wanted = expected(plain, X, context)
    for name in ("to_k", "to_v"):
        layer = getattr(plain, name)
        assert isinstance(layer, nn.Linear)
        setattr(plain, name, RememberingLinear(layer))
    assert relative_error(FoldedAttention(plain)(X, context), wanted) <= TOLERANCE
