"""What is done for a GPU, computed on the CPU, where the numbers are to be the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sdpy.models import UNet2DConditionModel
from sdpy.models.attention import Attention, BasicTransformerBlock
from sdpy.optimizations.approximate import TokenMerging, approximate
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact import apply_passes
from sdpy.optimizations.exact.cached_linear import CachedLinear
from sdpy.optimizations.exact.gpu_layers import JoinedAttention
from sdpy.optimizations.exact.sliced_attention import SlicedAttention, slice_attention
from support.compare import normal, randomise, relative_error
from support.tiny import TINY, tiny_model

GPU = torch.device("cuda")
INPUTS = (normal(2, 4, 12, 10), torch.tensor(981), normal(4, 77, 32, seed=1))
TOLERANCE = 1e-5


def for_gpu(name: str, **options: object) -> nn.Module:
    model = tiny_model(name)
    apply_passes(model, PassContext(device=GPU, **options))  # type: ignore[arg-type]
    return model


def kinds(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in model.modules()}


@torch.inference_mode()
def test_unet_gives_the_same() -> None:
    plain, fast = tiny_model("unet"), for_gpu("unet")
    for inputs in (INPUTS, INPUTS, (*INPUTS[:2], normal(2, 77, 32))):
        assert relative_error(fast(*inputs), plain(*inputs)) <= TOLERANCE
    assert {JoinedAttention, CachedLinear} <= kinds(fast)


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_maps_are_channels_last(name: str) -> None:
    model = for_gpu(name)
    results = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *call: results.append(call[2]))
    with torch.inference_mode():
        if name == "unet":
            model(*INPUTS)
        else:
            model.decode(normal(2, 4, 12, 10))  # type: ignore[operator]
    assert results
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in results)


def test_projections_are_joined_in_as_much_memory() -> None:
    plain, fast = tiny_model("unet"), for_gpu("unet")
    count = [sum(p.numel() for p in model.parameters()) for model in (plain, fast)]
    assert count[0] == count[1]
    blocks = [m for m in fast.modules() if isinstance(m, BasicTransformerBlock)]
    assert blocks and all(type(block.attn1) is JoinedAttention for block in blocks)
    assert all(type(block.attn2) is Attention for block in blocks)


@pytest.mark.parametrize(
    ("options", "caches", "joins"),
    [({}, True, True), ({"compiled": True}, False, True), ({"streamed": True}, False, False)],
)
def test_where_it_is_done(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], caches: bool, joins: bool
) -> None:
    """What torch compiles remembers nothing, and weights that come and go stay as they are."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    from sdpy.optimizations.exact.folded_attention import PromptCaching
    from sdpy.optimizations.exact.gpu_layers import ChannelsLast, JoinedProjections

    model, context = tiny_model("unet"), PassContext(device=GPU, **options)  # type: ignore[arg-type]
    assert PromptCaching().applies(model, context) == caches
    assert JoinedProjections().applies(model, context) == joins
    assert ChannelsLast().applies(model, context) == joins


@torch.inference_mode()
def test_slices_and_merged_tokens_go_with_it() -> None:
    plain, fast = tiny_model("unet"), for_gpu("unet")
    assert isinstance(plain, UNet2DConditionModel) and isinstance(fast, UNet2DConditionModel)
    slice_attention(fast, 1)
    assert all(
        type(m.attend) is SlicedAttention for m in fast.modules() if isinstance(m, JoinedAttention)
    )
    assert relative_error(fast(*INPUTS), plain(*INPUTS)) <= TOLERANCE
    results = []
    for model in (plain, fast):
        with approximate(model, [TokenMerging(0.5)], [1, 2]) as merging:
            results.append(merging(*INPUTS))
    assert relative_error(results[1], results[0]) <= TOLERANCE


@torch.inference_mode()
def test_attention_to_the_prompt_alone_stays() -> None:
    config = replace(TINY.unet, only_cross_attention=(True, False))
    plain = randomise(UNet2DConditionModel(config), seed=2)
    fast = randomise(UNet2DConditionModel(config), seed=2)
    apply_passes(fast, PassContext(device=GPU))
    assert relative_error(fast(*INPUTS), plain(*INPUTS)) <= TOLERANCE


@torch.inference_mode()
def test_embeddings_of_all_steps_at_once_are_the_same() -> None:
    """As the denoising loop makes them on a GPU."""
    unet = tiny_model("unet")
    assert isinstance(unet, UNet2DConditionModel)
    times = torch.tensor([981.0, 500.5, 1.0])
    together = unet.embed(times).split(1)
    for time, embedding in zip(times, together, strict=True):
        assert relative_error(embedding, unet.embed(time)) <= 1e-6
