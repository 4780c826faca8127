"""The accelerating pass: the same numbers, and the choice between kinds of convolution."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from sdpy.models import AutoencoderKL, UNet2DConditionModel
from sdpy.models.attention import Attention, ScaledDotProductAttention, Transformer2DModel
from sdpy.models.meta import init_empty_weights
from sdpy.models.resnet import ResnetBlock2D
from sdpy.optimizations.exact import acceleration, bfloat16_pairs, product_attention
from sdpy.optimizations.exact.acceleration import (
    accelerate,
    accelerate_at_first_use,
    choose,
    find_options,
)
from sdpy.optimizations.exact.bfloat16_pairs import PairedConv2d, PairedLinear
from sdpy.optimizations.exact.convolutions import Convolution, find_convolutions
from sdpy.optimizations.exact.feed_forward import ChunkedFeedForward
from sdpy.optimizations.exact.folded_attention import FoldedAttention
from sdpy.optimizations.exact.matmul_conv import MatmulConv2d
from sdpy.optimizations.exact.product_attention import ProductAttention
from sdpy.optimizations.exact.remembering_linear import RememberingLinear
from sdpy.optimizations.exact.sliced_attention import SlicedAttention, slice_attention
from sdpy.optimizations.exact.winograd import TRANSFORMS, Keep, WinogradConv2d
from sdpy.optimizations.exact.winograd_upsample import WinogradUpsample2D
from sdpy.zoo.variants import SD15
from support.compare import normal, relative_error
from support.tiny import tiny_model

TOLERANCE = 1e-5
TOLERANCE_OF_PAIRS = 5e-5
needs_product = pytest.mark.skipif(
    not bfloat16_pairs.is_available(), reason="this torch has no MKL with products of bfloat16"
)
UNET_INPUTS = (normal(2, 4, 12, 10), torch.tensor(981), normal(2, 77, 32, seed=1))


@pytest.fixture(autouse=True)
def no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same choices on every processor: pairs of bfloat16 only in the tests of them."""
    monkeypatch.setattr(bfloat16_pairs, "is_fast", lambda: False)


def kinds(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in model.modules()}


def only(kind: str) -> dict[str, float]:
    """Constants under which one kind of convolution costs nearly nothing."""
    dear, cheap = 1e9, 1e-9
    winograd = {
        "DIRECT_WEIGHT_BYTE": dear,
        **dict.fromkeys(("CALL", "BYTE", "FULL_ROWS", "TILE_BYTE"), cheap),
    }
    kept = ("KEPT_PRODUCT", "KEPT_BYTE")
    piecewise = ("PIECES", "PIECEWISE_PRODUCT", "TRANSFORMING_BYTE", "ORDERING_BYTE")
    return {
        "direct": {"DIRECT_WEIGHT_BYTE": cheap, "CALL": dear, "BYTE": dear},
        "matmul": {"DIRECT_WEIGHT_BYTE": dear, "TILE_BYTE": dear, "CALL": cheap, "BYTE": cheap},
        "transformed": winograd | dict.fromkeys(kept, cheap) | dict.fromkeys(piecewise, dear),
        "ordered": winograd | dict.fromkeys(kept, dear) | dict.fromkeys(piecewise, cheap),
    }[kind]


@pytest.mark.parametrize("kind", ["direct", "matmul", "transformed", "ordered"])
@torch.inference_mode()
def test_unet_gives_the_same(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    for name, value in only(kind).items():
        monkeypatch.setattr(acceleration, name, value)
    plain, fast = tiny_model("unet"), tiny_model("unet")
    accelerate(fast, UNET_INPUTS[0].shape, budget=0 if kind == "matmul" else 10**9)
    assert (MatmulConv2d in kinds(fast)) == (kind != "direct")
    kept = {m.keep.value for m in fast.modules() if isinstance(m, WinogradConv2d)}
    assert kept == ({kind} if kind in ("transformed", "ordered") else set())
    assert {ChunkedFeedForward, RememberingLinear} <= kinds(fast)
    expected = plain(*UNET_INPUTS)
    for _ in range(2):
        assert relative_error(fast(*UNET_INPUTS), expected) <= TOLERANCE
    larger = (normal(1, 4, 17, 21), *UNET_INPUTS[1:2], normal(1, 90, 32))
    assert relative_error(fast(*larger), plain(*larger)) <= TOLERANCE


@needs_product
@torch.inference_mode()
def test_unet_of_pairs_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its convolutions too, where that is the cheapest way."""
    monkeypatch.setattr(bfloat16_pairs, "is_fast", lambda: True)
    for name, value in {**only("matmul"), "PAIRED_PRODUCT": 1e-9, "PAIRED_BYTE": 1e-9}.items():
        monkeypatch.setattr(acceleration, name, value)
    plain, fast = tiny_model("unet"), tiny_model("unet")
    names = {id(p): name for name, p in fast.named_parameters()}
    gone: list[str] = []
    accelerate_at_first_use(fast, budget=0, let_go=lambda weight: gone.append(names[id(weight)]))
    expected = plain(*UNET_INPUTS)
    for _ in range(2):
        assert relative_error(fast(*UNET_INPUTS), expected) <= TOLERANCE_OF_PAIRS
    assert {PairedConv2d, ChunkedFeedForward, RememberingLinear} <= kinds(fast)
    paired = [m for m in fast.modules() if isinstance(m, PairedLinear)]
    assert len(gone) == len(set(gone)) == len(paired)
    assert not set(gone) & {name for name, _ in fast.named_parameters()}
    for layer in ("ff.net.0.proj", "ff.net.2", "attn1.to_q", "attn1.to_k", "attn2.to_out.0"):
        assert f"mid_block.attentions.0.transformer_blocks.0.{layer}.weight" in gone
    larger = (normal(1, 4, 17, 21), *UNET_INPUTS[1:2], normal(1, 90, 32))
    assert relative_error(fast(*larger), plain(*larger)) <= TOLERANCE_OF_PAIRS


@pytest.mark.parametrize(("name", "keep_weights"), [("unet", False), ("vae", True)])
def test_no_pairs_of_streamed_weights_and_in_autoencoders(
    monkeypatch: pytest.MonkeyPatch, name: str, keep_weights: bool
) -> None:
    """Streamed weights would be split at every step; decoding would add up more rounding."""
    monkeypatch.setattr(bfloat16_pairs, "is_fast", lambda: True)
    model = tiny_model(name)
    model = model.decoder if isinstance(model, AutoencoderKL) else model
    accelerate(model, UNET_INPUTS[0].shape, keep_weights=keep_weights)
    assert not {PairedConv2d, PairedLinear} & kinds(model)


@torch.inference_mode()
def test_autoencoder_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in only("transformed").items():
        monkeypatch.setattr(acceleration, name, value)
    plain, fast = tiny_model("vae"), tiny_model("vae")
    assert isinstance(plain, AutoencoderKL) and isinstance(fast, AutoencoderKL)
    accelerate_at_first_use(fast.encoder)
    accelerate_at_first_use(fast.decoder)
    picture, latents = normal(1, 3, 24, 20), normal(1, 4, 12, 10)
    assert relative_error(fast.encode(picture).mean, plain.encode(picture).mean) <= TOLERANCE
    assert relative_error(fast.decode(latents), plain.decode(latents)) <= TOLERANCE
    assert WinogradConv2d in kinds(fast.encoder) & kinds(fast.decoder)
    assert WinogradUpsample2D in kinds(fast.decoder)


def test_acts_at_the_first_use_and_once() -> None:
    model = tiny_model("unet")
    accelerate_at_first_use(model)
    assert ChunkedFeedForward not in kinds(model)
    with torch.inference_mode():
        model(*UNET_INPUTS)
        modules = list(model.modules())
        model(*UNET_INPUTS)
    assert ChunkedFeedForward in kinds(model)
    assert list(model.modules()) == modules


def sd15_convolutions(size: int) -> list[Convolution]:
    with init_empty_weights():
        unet = UNet2DConditionModel(SD15.unet)
    return list(find_convolutions(unet, torch.Size((2, 4, size, size))))


@pytest.mark.parametrize("budget", [0, 10**8, 6 * 10**8, 10**11])
def test_budget(budget: int) -> None:
    """More memory is never slower, and never overdrawn."""
    chosen = list(choose(sd15_convolutions(64), budget))
    assert sum(option.extra_bytes for _, option in chosen) <= budget
    more = list(choose(sd15_convolutions(64), 2 * budget))
    assert sum(option.cost for _, option in more) <= sum(option.cost for _, option in chosen)
    assert len(chosen) == 98


def test_choice_at_real_size() -> None:
    """Winograd almost everywhere, with larger tiles in larger pictures; torch's own if thin."""
    chosen = {c.name: option.make for c, option in choose(sd15_convolutions(64), 10**11)}
    large, small = "down_blocks.0.resnets.0.conv1", "mid_block.resnets.0.conv1"
    four, two = TRANSFORMS[4], TRANSFORMS[2]
    assert keywords(chosen[large]) == {"transforms": four, "keep": Keep.TRANSFORMED}
    assert keywords(chosen[small]) == {"transforms": two, "keep": Keep.TRANSFORMED}
    upsampling = chosen["up_blocks.2.upsamplers.0.conv"]
    assert isinstance(upsampling, partial) and upsampling.func is WinogradUpsample2D
    assert chosen["down_blocks.2.downsamplers.0.conv"] is MatmulConv2d  # its stride is 2
    assert chosen["mid_block.attentions.0.proj_in"] is MatmulConv2d
    thin = ("conv_in", "conv_out", "down_blocks.0.attentions.0.proj_in")
    assert all(chosen[name] is acceleration._in_channels_last for name in thin)
    frugal = {c.name: option.make for c, option in choose(sd15_convolutions(64), 0)}
    assert keywords(frugal[small]) == {"transforms": two, "keep": Keep.ORDERED}
    streamed = choose(sd15_convolutions(64), 0, keep_weights=False)
    assert {c.name: option.make for c, option in streamed}[small] is MatmulConv2d


def keywords(make: object) -> dict[str, object]:
    assert isinstance(make, partial)
    return make.keywords


def test_leaves_other_convolutions_alone() -> None:
    for conv in (nn.Conv2d(32, 32, 3, groups=2), nn.Conv2d(32, 32, 3, dilation=2)):
        options = find_options(Convolution("x", conv, torch.Size((1, 32, 32, 32))))
        assert [option.extra_bytes for option in options] == [0]


@pytest.mark.parametrize(
    ("pairs", "keep_weights", "folds"),
    [(False, True, True), (True, True, False), (False, False, False)],
)
def test_attention_to_the_prompt_is_folded(
    monkeypatch: pytest.MonkeyPatch, pairs: bool, keep_weights: bool, folds: bool
) -> None:
    """But where its weights are to be pairs, or to be read anew."""
    monkeypatch.setattr(bfloat16_pairs, "is_fast", lambda: pairs)
    model = tiny_model("unet")
    accelerate(model, UNET_INPUTS[0].shape, keep_weights=keep_weights)
    assert (FoldedAttention in kinds(model)) == folds


@torch.inference_mode()
def test_unet_with_a_short_prompt_gives_the_same() -> None:
    """Short enough for the tiny heads that its attention is folded."""
    plain, fast = tiny_model("unet"), tiny_model("unet")
    inputs = (*UNET_INPUTS[:2], normal(2, 2, 32, seed=1))
    accelerate(fast, inputs[0].shape)
    for _ in range(2):
        assert relative_error(fast(*inputs), plain(*inputs)) <= TOLERANCE
    folded = [m for m in fast.modules() if isinstance(m, FoldedAttention)]
    assert any(m.queries_to_scores is not None for m in folded)


@pytest.mark.parametrize("fast", [True, False])
def test_attends_by_products_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """But not where attention is to be computed in slices."""
    monkeypatch.setattr(product_attention, "is_fast", lambda: fast)
    model, sliced = tiny_model("unet"), tiny_model("unet")
    slice_attention(sliced, 1)
    for one in (model, sliced):
        accelerate(one, UNET_INPUTS[0].shape)
    assert attends(model) == {ProductAttention if fast else ScaledDotProductAttention}
    assert attends(sliced) == {SlicedAttention}


def attends(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module.attend) for module in model.modules() if isinstance(module, Attention)}


@pytest.mark.parametrize("B", [1, 3])
@torch.inference_mode()
def test_two_contexts_for_each_sample_give_the_same(B: int) -> None:
    plain, fast = tiny_model("unet"), tiny_model("unet")
    inputs = (normal(B, 4, 12, 10), UNET_INPUTS[1], normal(2 * B, 77, 32, seed=1))
    accelerate_at_first_use(fast)
    for _ in range(2):
        assert relative_error(fast(*inputs), plain(*inputs)) <= TOLERANCE


@pytest.mark.parametrize("late", [True, False])
@torch.inference_mode()
def test_feature_maps_stay_in_channels_last_memory(
    monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """All layers are faster so, and a single map in the other order spreads to what follows."""
    for name, value in only("transformed").items():
        monkeypatch.setattr(acceleration, name, value)
    model = tiny_model("unet")
    sample = normal(1, 4, 12, 10) if late else UNET_INPUTS[0]
    accelerate(model, sample.shape)
    others: list[str] = []

    def note(name: str, result: torch.Tensor) -> None:
        if result.ndim == 4 and result.stride(1) != 1:
            others.append(name)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm | ResnetBlock2D | Transformer2DModel):
            module.register_forward_hook(lambda _, __, result, name=name: note(name, result))
    model(sample, *UNET_INPUTS[1:])
    assert not others


@torch.inference_mode()
def test_originals_are_let_go_once_they_are_transformed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in only("transformed").items():
        monkeypatch.setattr(acceleration, name, value)
    model = tiny_model("unet")
    names = {id(p): name for name, p in model.named_parameters()}
    gone: list[str] = []
    accelerate_at_first_use(model, let_go=lambda weight: gone.append(names[id(weight)]))
    for _ in range(2):
        model(*UNET_INPUTS)
    transformed = {
        f"{name}.weight" for name, m in model.named_modules() if isinstance(m, WinogradConv2d)
    }
    assert transformed and sorted(gone) == sorted(n.replace(".original", "") for n in transformed)
    assert not set(gone) & {name for name, _ in model.named_parameters()}
