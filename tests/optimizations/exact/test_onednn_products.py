"""Products by oneDNN against plain layers in float64, and where they are put."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sdpy.models.attention import FeedForward
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact import apply_passes, bfloat16_pairs, onednn_products
from sdpy.optimizations.exact.feed_forward import ChunkedFeedForward
from sdpy.optimizations.exact.onednn_products import (
    OneDNNFeedForward,
    OneDNNLinear,
    is_available,
)
from support.compare import normal, randomise, relative_error
from support.tiny_xl import TINY_XL, tiny_xl_model

pytestmark = pytest.mark.skipif(not is_available(), reason="this torch has no products by oneDNN")
TOLERANCE = 2e-6


@pytest.fixture(autouse=True)
def any_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(onednn_products, "is_fast", lambda: True)
    monkeypatch.setattr(bfloat16_pairs, "is_fast", lambda: False)
    yield


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_linear_layer_is_the_same(bias: bool) -> None:
    layer = randomise(nn.Linear(48, 80, bias=bias), seed=1)
    fast = OneDNNLinear(layer)
    assert fast.weight is layer.weight and isinstance(fast, nn.Linear)
    for x in (normal(2, 33, 48), normal(2, 48, 33).mT, normal(1, 48)):  # also of a feature map
        want = layer.double()(x.double())
        layer.float()
        assert relative_error(fast(x), want) <= TOLERANCE


@pytest.mark.parametrize("workspace", [1, 10_000, 10**9])
@torch.inference_mode()
def test_a_feed_forward_is_the_same(monkeypatch: pytest.MonkeyPatch, workspace: int) -> None:
    monkeypatch.setattr(onednn_products, "WORKSPACE", workspace)
    monkeypatch.setattr(onednn_products, "ROW_MULTIPLE", 4)
    plain = randomise(FeedForward(24), seed=2)
    fast, x = OneDNNFeedForward(plain), normal(2, 17, 24)
    got = fast(x)
    assert relative_error(got, plain.double()(x.double())) <= TOLERANCE


def passed(**options: object) -> nn.Module:
    model = tiny_xl_model(TINY_XL, "unet")
    apply_passes(model, PassContext(fast_kernels=True, **options))  # type: ignore[arg-type]
    return model


def test_only_large_transformers_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = passed()
    places = {type(module): name for name, module in model.named_modules()}
    assert {OneDNNLinear, OneDNNFeedForward, ChunkedFeedForward} <= places.keys()
    deep = [
        name
        for name, module in model.named_modules()
        if isinstance(module, OneDNNLinear | OneDNNFeedForward)
    ]
    # Of the tiny UNet's levels, the last has two blocks in a transformer, the others one.
    assert all(name.startswith(("down_blocks.2.", "mid_block.", "up_blocks.0.")) for name in deep)
    for layer in ("proj_in", "transformer_blocks.1.attn1.to_q", "transformer_blocks.0.ff"):
        assert f"mid_block.attentions.0.{layer}" in deep
    monkeypatch.setattr(onednn_products, "WIDE", 1)
    assert not any(isinstance(module, ChunkedFeedForward) for module in passed().modules())


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"fast_kernels": False}])
def test_not_where_it_was_not_asked_for(options: dict[str, object]) -> None:
    model = tiny_xl_model(TINY_XL, "unet")
    apply_passes(model, PassContext(**{"fast_kernels": True, **options}))  # type: ignore[arg-type]
    assert not any(isinstance(one, OneDNNLinear | OneDNNFeedForward) for one in model.modules())


@pytest.mark.parametrize("streamed", [False, True])
@torch.inference_mode()
def test_a_unet_gives_the_same(streamed: bool) -> None:
    plain, fast = tiny_xl_model(TINY_XL, "unet"), passed(streamed=streamed)
    inputs = (normal(1, 4, 12, 8), torch.tensor(500.0), normal(2, 7, 80, seed=1))
    more = {"text_embeds": normal(2, 48, seed=2), "time_ids": normal(2, 6, seed=3).abs() * 100}
    for _ in range(2):
        assert relative_error(fast(*inputs, **more), plain(*inputs, **more)) <= 1e-5
