"""Which passes apply, in which order, and what of a model they replace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpy.models import UNet2DConditionModel
from sdpy.models.attention import Attention
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact import PASSES, apply_passes, bfloat16_pairs, product_attention
from sdpy.optimizations.exact.adaptive import AdaptiveConv2d
from sdpy.optimizations.exact.bfloat16_pairs import PairedLinear
from sdpy.optimizations.exact.cached_linear import CachedLinear
from sdpy.optimizations.exact.feed_forward import ChunkedFeedForward
from sdpy.optimizations.exact.folded_attention import FoldedAttention
from sdpy.optimizations.exact.product_attention import ProductAttention
from sdpy.optimizations.exact.sliced_attention import SlicedAttention
from sdpy.optimizations.weights import ModelWeights
from support.compare import normal, relative_error
from support.tiny import tiny_model

TOLERANCE = 1e-5
UNET_INPUTS = (normal(2, 4, 12, 10), torch.tensor(981), normal(2, 77, 32, seed=1))
README = Path(bfloat16_pairs.__file__).parents[1] / "README.md"


@pytest.fixture(autouse=True)
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same passes on every processor."""
    monkeypatch.setattr(bfloat16_pairs, "gain", lambda: 0.0)
    monkeypatch.setattr(product_attention, "is_fast", lambda: True)


def kinds(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in model.modules()}


def passed(name: str, **options: object) -> nn.Module:
    model = tiny_model(name)
    apply_passes(model, PassContext(**options))  # type: ignore[arg-type]
    return model


def test_the_readme_lists_the_passes_in_their_order() -> None:
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if "| `" in line]
    listed = [row.split("|")[1].strip() for row in rows]
    assert listed == [one.name for one in PASSES]


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae"])
def test_nothing_is_replaced_unless_it_is_asked_for(name: str) -> None:
    model = tiny_model(name)
    modules = list(model.modules())
    apply_passes(model, PassContext())
    apply_passes(model, PassContext(fast_kernels=True, dtype=torch.float16))
    assert list(model.modules()) == modules


def test_the_layers_of_a_transformer_are_replaced() -> None:
    model = passed("unet", fast_kernels=True)
    assert {ChunkedFeedForward, CachedLinear, FoldedAttention, AdaptiveConv2d} <= kinds(model)
    assert not {PairedLinear, nn.ModuleDict} & {type(m) for m in model.children()}


@pytest.mark.parametrize(
    ("pairs", "streamed", "folds"),
    [(False, False, True), (True, False, False), (False, True, False)],
)
def test_attention_to_the_prompt_is_folded(
    monkeypatch: pytest.MonkeyPatch, pairs: bool, streamed: bool, folds: bool
) -> None:
    """But where its weights are to be pairs, or to be read anew."""
    monkeypatch.setattr(bfloat16_pairs, "gain", lambda: 2.0 * pairs)
    model = passed("unet", fast_kernels=True, streamed=streamed)
    assert (FoldedAttention in kinds(model)) == folds
    assert CachedLinear in kinds(model)


@torch.inference_mode()
def test_unet_with_a_short_prompt_gives_the_same() -> None:
    """Short enough for the tiny heads that its attention is folded."""
    plain, fast = tiny_model("unet"), passed("unet", fast_kernels=True)
    inputs = (*UNET_INPUTS[:2], normal(2, 2, 32, seed=1))
    for _ in range(2):
        assert relative_error(fast(*inputs), plain(*inputs)) <= TOLERANCE
    folded = [m for m in fast.modules() if isinstance(m, FoldedAttention)]
    assert any(m.queries_to_scores is not None for m in folded)


@pytest.mark.parametrize("tokens", [2, 77])
@torch.inference_mode()
def test_prompts_of_other_batches_in_turn(tokens: int) -> None:
    """Guidance that begins and ends, several prompts in a batch, and the first ones again."""
    plain, fast = tiny_model("unet"), passed("unet", fast_kernels=True)
    contexts = [normal(rows, tokens, 32, seed=rows) for rows in (2, 1, 4)]
    for context in (contexts[i] for i in (0, 1, 0, 2, 0)):
        inputs = (normal(len(context), 4, 12, 10), torch.tensor(500), context)
        assert relative_error(fast(*inputs), plain(*inputs)) <= TOLERANCE


@pytest.mark.skipif(
    not bfloat16_pairs.is_available(), reason="this torch has no MKL with products of bfloat16"
)
@torch.inference_mode()
def test_the_originals_of_pairs_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noting(ModelWeights):
        def release(self, parameter: Tensor) -> None:
            gone.append(names[id(parameter)])

    monkeypatch.setattr(bfloat16_pairs, "gain", lambda: 2.0)
    model = tiny_model("unet")
    names = {id(p): name for name, p in model.named_parameters()}
    gone: list[str] = []
    apply_passes(model, PassContext(fast_kernels=True, weights=Noting()))
    for _ in range(2):
        model(*UNET_INPUTS)
    paired = [m for m in model.modules() if isinstance(m, PairedLinear)]
    linear = [name for name in gone if "attn" in name or "ff" in name]
    assert len(linear) == len(set(linear)) == len(paired)
    for layer in ("ff.net.0.proj", "ff.net.2", "attn1.to_q", "attn1.to_k", "attn2.to_out.0"):
        assert f"mid_block.attentions.0.transformer_blocks.0.{layer}.weight" in linear
    assert not set(linear) & {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("fast", [True, False])
def test_attends_by_products_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """But not where attention is to be computed in slices."""
    monkeypatch.setattr(product_attention, "is_fast", lambda: fast)
    assert (ProductAttention in attends(passed("unet", fast_kernels=True))) == fast
    sliced = passed("unet", fast_kernels=True, sliced_attention_size=1)
    assert attends(sliced) == {SlicedAttention}


def attends(model: nn.Module) -> set[type]:
    return {type(module.attend) for module in model.modules() if isinstance(module, Attention)}


def test_a_model_frees_its_memory_when_nobody_holds_it() -> None:
    """At once, without the garbage collector: nothing in it points back to it."""
    import gc
    import weakref

    model = tiny_model("unet")
    assert isinstance(model, UNet2DConditionModel)
    apply_passes(model, PassContext(fast_kernels=True))
    with torch.inference_mode():
        model(*UNET_INPUTS)
    reference = weakref.ref(model.mid_block.resnets[0].conv1)
    gc.disable()
    try:
        del model
        assert reference() is None
    finally:
        gc.enable()
