"""Several contexts for each sample: the same as for repeated samples, with less work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdpy.models import ControlNetConfig, ControlNetModel, UNet2DConditionModel
from sdpy.models.rows import add_rows, join_channels, repeat_rows
from sdpy.optimizations.approximate import DeepCache, approximate
from support.compare import MODEL_TOLERANCE, normal, randomise, relative_error
from support.tiny import TINY

FIRST_LEVEL = replace(
    TINY.unet,
    block_out_channels=(16, 24, 32),
    cross_attention=(True, True, False),
    attention_heads=(2, 3, 4),
    layers_per_block=2,
    time_cond_proj_dim=6,
)
CONFIGS = {
    "attention from the first level on": FIRST_LEVEL,
    "from the second level on": replace(FIRST_LEVEL, cross_attention=(False, True, True)),
    "in the middle alone": replace(FIRST_LEVEL, cross_attention=(False, False, False)),
}
BATCHES = [(1, 2), (3, 2), (2, 3), (3, 1)]
TIMES = {
    "one time": lambda B: torch.tensor(700.0),
    "a time for each": lambda B: torch.arange(B) * 100.0 + 3,
}


def unet_of(config: Any) -> Any:
    return randomise(UNet2DConditionModel(config), seed=2)


def controlnet_of(config: Any) -> Any:
    sizes = ControlNetConfig(config, conditioning_embedding_out_channels=(4, 8))
    return randomise(ControlNetModel(sizes), seed=3)


def inputs(B: int, k: int, step: int = 0) -> tuple[Tensor, Tensor]:
    """Latents of sides that no level halves evenly, and contexts."""
    return normal(B, 4, 13, 10, seed=10 + step), normal(k * B, 7, 32, seed=1)


def repeated(x: Tensor, k: int) -> Tensor:
    """Plainly: the whole batch k times."""
    return x.repeat(k, *[1] * (x.ndim - 1)) if x.ndim else x


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize(("B", "k"), BATCHES)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_unet(name: str, B: int, k: int, time: str) -> None:
    unet, t = unet_of(CONFIGS[name]), TIMES[time](B)
    sample, context = inputs(B, k)
    cond = normal(B, 6, seed=4)
    ours = unet(sample, t, context, timestep_cond=cond)
    expected = unet(repeated(sample, k), repeated(t, k), context, timestep_cond=repeated(cond, k))
    assert ours.shape == (k * B, 4, 13, 10)
    assert relative_error(ours, expected) <= MODEL_TOLERANCE
    for i in range(k * B):  # each alone
        j = i % B
        own_time = t if t.ndim == 0 else t[j]
        alone = unet(sample[j][None], own_time, context[i][None], timestep_cond=cond[j][None])
        assert relative_error(ours[i][None], alone) <= MODEL_TOLERANCE


@pytest.mark.parametrize(("B", "k"), BATCHES)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_unet_steered_by_a_controlnet(name: str, B: int, k: int) -> None:
    unet, controlnet = unet_of(CONFIGS[name]), controlnet_of(CONFIGS[name])
    (sample, context), t = inputs(B, k), torch.tensor(300)
    for image in (normal(1, 3, 26, 20, seed=5), normal(B, 3, 26, 20, seed=6)):
        down, mid = controlnet(sample, t, context, image)
        all_images = image if len(image) == 1 else repeated(image, k)
        plain_down, plain_mid = controlnet(repeated(sample, k), t, context, all_images)
        for ours, expected in zip((*down, mid), (*plain_down, plain_mid), strict=True):
            assert relative_error(repeat_rows(ours, k * B), expected) <= MODEL_TOLERANCE
        assert {len(residual) for residual in (*down, mid)} <= {B, k * B}
        assert len(mid) == k * B
        expected = unet(
            repeated(sample, k),
            t,
            context,
            down_block_additional_residuals=plain_down,
            mid_block_additional_residual=plain_mid,
        )
        for given in (down, plain_down):  # with B rows where that is enough, or always k B
            ours = unet(
                sample,
                t,
                context,
                down_block_additional_residuals=given,
                mid_block_additional_residual=mid,
            )
            assert relative_error(ours, expected) <= MODEL_TOLERANCE


@pytest.mark.parametrize("branch", [0, 1, 4, 7])
@pytest.mark.parametrize(("B", "k"), BATCHES)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_deep_cache(name: str, B: int, k: int, branch: int) -> None:
    unet = unet_of(CONFIGS[name])
    seeds = tuple(range(B))
    steps = [(*inputs(B, k, step), torch.tensor(900 - 100 * step)) for step in range(4)]
    with approximate(unet, [DeepCache(2, branch)], seeds) as called:
        ours = [called(sample, t, context) for sample, context, t in steps]
    with approximate(unet, [DeepCache(2, branch)], seeds) as called:
        expected = [called(repeated(sample, k), t, context) for sample, context, t in steps]
    for a, b in zip(ours, expected, strict=True):
        assert relative_error(a, b) <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_what_comes_before_the_context_is_computed_once(name: str) -> None:
    """Up to the first cross-attention, the self-attention before it included, or a level."""
    unet = unet_of(CONFIGS[name])
    rows: list[tuple[str, int]] = []
    for path, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(
                lambda _, args, path=path: rows.append((path, len(args[0])))
            )
    unet(inputs(2, 3)[0], torch.tensor(5), inputs(2, 3)[1])
    rows = [(path, count) for path, count in rows if "time_emb" not in path]
    paths = [path for path, _ in rows]
    first = min(
        next(i for i, path in enumerate(paths) if "norm2" in path and "transformer" in path),
        next(i for i, path in enumerate(paths) if path.startswith("down_blocks.1")),
    )
    counts = [count for _, count in rows]
    assert set(counts[:first]) == {2}
    attends = name == "attention from the first level on"
    assert paths[first - 1].endswith("attn1.to_out.0" if attends else "downsamplers.0.conv")
    assert set(counts[first:]) == {6}


@torch.no_grad()
def test_contexts_that_do_not_divide_are_refused() -> None:
    unet, controlnet = unet_of(FIRST_LEVEL), controlnet_of(FIRST_LEVEL)
    sample, context, t = normal(2, 4, 8, 8), normal(3, 7, 32), torch.tensor(5)
    with approximate(unet, [DeepCache(2)], (0, 1)) as called:
        for network in (unet, called):
            with pytest.raises(ValueError, match="3 contexts for 2 samples"):
                network(sample, t, context)
    with pytest.raises(ValueError, match="3 contexts for 2 samples"):
        controlnet(sample, t, context, normal(1, 3, 16, 16))


def test_rows() -> None:
    two, six = torch.arange(2.0)[:, None], torch.arange(6.0)[:, None] * 10
    assert repeat_rows(two, 6).flatten().tolist() == [0, 1, 0, 1, 0, 1]
    assert repeat_rows(six, 6) is six
    expected = [0, 11, 20, 31, 40, 51]
    assert add_rows(two, six).flatten().tolist() == expected
    assert add_rows(six, two).flatten().tolist() == expected
    assert add_rows(torch.ones(1, 1), six).flatten().tolist() == [1, 11, 21, 31, 41, 51]
    joined = join_channels(two[..., None, None], six[..., None, None])[:, :, 0, 0]
    assert joined.tolist() == [[0, 0], [1, 10], [0, 20], [1, 30], [0, 40], [1, 50]]


def test_channels_last_memory_is_kept() -> None:
    B = 2
    few = normal(B, 4, 5, 6).to(memory_format=torch.channels_last)
    many = normal(2 * B, 4, 5, 6).to(memory_format=torch.channels_last)
    for result in (repeat_rows(few, 2 * B), add_rows(few, many), join_channels(many, few)):
        assert result.is_contiguous(memory_format=torch.channels_last)
