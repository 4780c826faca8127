"""What is computed in bfloat16 against the same in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models import AutoencoderKL
from sdpy.models.attention import Attention
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact import (
    apply_passes,
    bfloat16_convolutions,
    cost_model,
    machine,
    packed_layers,
    product_attention,
)
from sdpy.optimizations.exact.adaptive import AdaptiveConv2d
from sdpy.optimizations.exact.bfloat16_convolutions import AddedWinogradConv2d, DoublingConv2d
from sdpy.optimizations.exact.folded_attention import FoldedAttention
from sdpy.optimizations.exact.packed_layers import PackedConv2d, PackedFeedForward
from sdpy.optimizations.exact.product_attention import ProductAttention
from sdpy.optimizations.exact.winograd import Frame
from support.compare import normal, relative_error
from support.tiny import tiny_model

ROUNDING = 2.0**-8
"""The largest relative error of rounding a number to bfloat16."""

LAYER_TOLERANCE = 2 * ROUNDING
"""Of a layer with Winograd's transforms; measured 0.0068. Of torch's own it is 0.0017."""

MODEL_TOLERANCE = 0.02
"""Of a whole network; measured 0.020 for a step of Stable Diffusion 1.5's size, where plain layers
have 0.017."""


@pytest.fixture(autouse=True)
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_attention, "is_fast", lambda: True)
    monkeypatch.setattr(machine, "bfloat16_balance", lambda: 1.0)


def convolution(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias).bfloat16()


def reference(conv: nn.Conv2d, x: Tensor) -> Tensor:
    bias = None if conv.bias is None else conv.bias.double()
    return F.conv2d(x.double(), conv.weight.double(), bias, padding=1)


@pytest.mark.parametrize("shape", [(2, 12, 8, 10), (1, 12, 7, 5), (2, 12, 1, 1), (3, 12, 2, 9)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("workspace", [1, 10**9])
@torch.inference_mode()
def test_winograd_by_additions(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bias: bool, workspace: int
) -> None:
    """Odd sides, in one part and a row of tiles at a time."""
    monkeypatch.setattr("sdpy.optimizations.exact.bfloat16_convolutions.WORKSPACE", workspace)
    conv, x = convolution(12, 20, bias), normal(*shape).bfloat16()
    result = AddedWinogradConv2d(conv)(x)
    assert result.dtype == torch.bfloat16
    assert relative_error(result, reference(conv, x)) <= LAYER_TOLERANCE


@pytest.mark.parametrize("shape", [(1, 12, 10, 8), (2, 12, 9, 6), (1, 12, 6, 7)])
@pytest.mark.parametrize("above", [0, 1])
@pytest.mark.parametrize("given", [True, False])
@torch.inference_mode()
def test_winograd_of_a_frame(shape: tuple[int, ...], above: int, given: bool) -> None:
    """With a row above or without, into a part of a larger map or into memory of its own."""
    conv, x = convolution(12, 20), normal(*shape).bfloat16()
    form = AddedWinogradConv2d(conv)
    frame = Frame.of(x.shape, above, 0, form.frame_multiple, x.dtype)
    frame.inside.copy_(x)
    B, _, H, W = shape
    whole = torch.zeros(B, H + 2, W, 20, dtype=x.dtype).permute(0, 3, 1, 2)
    place = whole[:, :, 1 : 1 + H - above] if given else None
    result = form(frame, place)
    assert relative_error(result, reference(conv, x)[:, :, above:]) <= LAYER_TOLERANCE
    if given:
        assert torch.equal(whole[:, :, 1 : 1 + H - above], result)
        assert not whole[:, :, 0].any() and not whole[:, :, 1 + H - above :].any()


@torch.inference_mode()
def test_winograd_is_exact_but_for_rounding() -> None:
    """In float64 nothing but the rounding of the kept weights is left."""
    conv = convolution(12, 20).double()
    x = normal(2, 12, 6, 7).double()
    assert relative_error(AddedWinogradConv2d(conv)(x), reference(conv, x)) <= 1e-6


@pytest.mark.parametrize("shape", [(2, 12, 8, 10), (1, 12, 7, 5), (2, 12, 9, 1), (2, 12, 1, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("workspace", [1, 10**9])
@pytest.mark.parametrize("packed", [True, False])
@torch.inference_mode()
def test_doubling(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    bias: bool,
    workspace: int,
    packed: bool,
) -> None:
    """In one part and four rows at a time, with the layers of any processor and of this one."""
    if not packed:
        monkeypatch.setattr(packed_layers, "is_fast", lambda: False)
    monkeypatch.setattr(bfloat16_convolutions, "DOUBLING_WORKSPACE", workspace)
    conv, x = convolution(12, 20, bias), normal(*shape).bfloat16()
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
    assert relative_error(DoublingConv2d(conv)(x), reference(conv, doubled)) <= ROUNDING


@pytest.mark.parametrize("workspace", [1, 2**20])
@pytest.mark.parametrize(("tokens", "d"), [(256, 40), (300, 16), (257, 161)])
@torch.inference_mode()
def test_attention_by_products(
    monkeypatch: pytest.MonkeyPatch, tokens: int, d: int, workspace: int
) -> None:
    """Some rows at a time and all; of an odd number of components, too."""
    monkeypatch.setattr(product_attention, "HEAD_WORKSPACE", workspace)
    query, key, value = (normal(2, 3, tokens, d, seed=i).bfloat16() for i in range(3))
    result = ProductAttention()(query, key, value)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    assert relative_error(result, expected) <= LAYER_TOLERANCE


def fast_in_bfloat16(name: str, **options: object) -> nn.Module:
    model = tiny_model(name).bfloat16()
    context = PassContext(dtype=torch.bfloat16, fast_kernels=True, **options)  # type: ignore[arg-type]
    apply_passes(model, context)
    return model


def selected(model: nn.Module) -> set[type[nn.Module]]:
    return {type(m.form) for m in model.modules() if isinstance(m, AdaptiveConv2d)}


@pytest.mark.parametrize("packed", [True, False])
@torch.inference_mode()
def test_unet(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    if packed and not packed_layers.is_fast():
        pytest.skip("this torch or processor has no packed layers in bfloat16")
    monkeypatch.setattr(packed_layers, "is_fast", lambda: packed)
    for name in ("CALL", "ADDED_BYTE", "DOUBLED_BYTE"):
        monkeypatch.setattr(cost_model, name, 0.0)
    plain, fast = tiny_model("unet"), fast_in_bfloat16("unet")
    sample, context = normal(2, 4, 12, 10), normal(2, 77, 32, seed=1)
    expected = plain(sample, torch.tensor(981), context)
    result = fast(sample.bfloat16(), torch.tensor(981), context.bfloat16())
    assert relative_error(result.float(), expected) <= MODEL_TOLERANCE
    assert {AddedWinogradConv2d, DoublingConv2d} <= selected(fast)
    kinds = {type(module) for module in fast.modules()}
    assert FoldedAttention in kinds
    assert (PackedFeedForward in kinds) == (PackedConv2d in selected(fast)) == packed
    assert {type(m.attend) for m in fast.modules() if isinstance(m, Attention)} == {
        ProductAttention
    }


@pytest.mark.parametrize("cheap", [True, False])
@torch.inference_mode()
def test_autoencoder(monkeypatch: pytest.MonkeyPatch, cheap: bool) -> None:
    """In tiles, whose norms' statistics are in float32."""
    for name in ("CALL", "ADDED_BYTE", "DOUBLED_BYTE"):
        monkeypatch.setattr(cost_model, name, 0.0 if cheap else 1e12)
    monkeypatch.setattr("sdpy.optimizations.exact.fast_convolutions.THIN", 1)
    monkeypatch.setattr("sdpy.optimizations.exact.tiling.TILE_BYTES", 1)
    plain, fast = tiny_model("vae"), fast_in_bfloat16("vae", tiled=True)
    assert isinstance(plain, AutoencoderKL) and isinstance(fast, AutoencoderKL)
    latents = normal(1, 4, 20, 12)
    expected = plain.decode(latents)
    result = fast.decode(latents.bfloat16()).float()
    assert relative_error(result, expected) <= MODEL_TOLERANCE
    assert ({AddedWinogradConv2d, DoublingConv2d} <= selected(fast)) == cheap
    image = normal(1, 3, 40, 24)
    encoded, expected_mean = fast.encode(image.bfloat16()).mean.float(), plain.encode(image).mean
    assert relative_error(encoded, expected_mean) <= MODEL_TOLERANCE
