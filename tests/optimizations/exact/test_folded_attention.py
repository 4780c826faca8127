"""Folded attention against the plain one in float64."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import load_weights, write_checkpoint
from sdpy.models.attention import Attention
from sdpy.optimizations.exact.cached_linear import CachedLinear
from sdpy.optimizations.exact.folded_attention import FoldedAttention
from sdpy.optimizations.weights import ModelWeights
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


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@torch.inference_mode()
def test_releases_what_is_not_needed_meanwhile(tmp_path: Path, stored: torch.dtype) -> None:
    """And gets it back for another context, and for a prompt that is too long."""
    plain, loaded, weights = loaded_twin(tmp_path, stored, make_attention())
    folded = FoldedAttention(loaded, weights)
    released = [loaded.to_q.weight, loaded.to_out[0].weight]
    for tokens, seed in ((7, 1), (7, 2), (77, 3), (7, 2), (7, 2)):
        context = normal(2, tokens, CONTEXT_DIM, seed=seed)
        assert relative_error(folded(X, context), expected(plain, X, context)) <= TOLERANCE
        is_folded = tokens == 7
        assert {weights.is_released(one) for one in released} == {
            is_folded and stored != torch.float32
        }


def loaded_twin(
    folder: Path, stored: torch.dtype, model: Attention
) -> tuple[Attention, Attention, ModelWeights]:
    """An attention with rounded weights, the same loaded from a file, and its weights."""
    write_checkpoint(
        folder / "a.safetensors", {k: v.to(stored) for k, v in model.state_dict().items()}
    )
    with torch.device("meta"):
        loaded = Attention(DIM, CONTEXT_DIM, heads=HEADS)
    file = load_weights(loaded, folder / "a.safetensors")
    return model.to(stored).float(), loaded, ModelWeights(loaded, file)


@torch.inference_mode()
def test_contexts_of_other_sizes_in_turn() -> None:
    """As where guidance begins and ends, and batches come and go."""
    plain = make_attention()
    folded = FoldedAttention(plain)
    contexts = [normal(rows, 7, CONTEXT_DIM, seed=rows) for rows in (1, 2, 4)]
    for i in (0, 1, 0, 2, 1, 1):
        x = normal(len(contexts[i]), 30, DIM, seed=i)
        assert relative_error(folded(x, contexts[i]), expected(plain, x, contexts[i])) <= TOLERANCE


@torch.inference_mode()
def test_its_results_go_where_the_model_goes() -> None:
    """A model that is moved to the meta device gives their memory back."""
    folded = FoldedAttention(make_attention())
    folded(X, normal(2, 7, CONTEXT_DIM))
    folded.to("meta")
    assert folded.queries_to_scores.is_meta and folded.weights_to_result.is_meta
    assert not folded.state_dict().keys() & {"queries_to_scores", "weights_to_result"}


@torch.inference_mode()
def test_with_layers_that_cache() -> None:
    plain = make_attention()
    context = normal(2, 7, CONTEXT_DIM, seed=1)
    wanted = expected(plain, X, context)
    for name in ("to_k", "to_v"):
        layer = getattr(plain, name)
        assert isinstance(layer, nn.Linear)
        setattr(plain, name, CachedLinear(layer))
    assert relative_error(FoldedAttention(plain)(X, context), wanted) <= TOLERANCE
