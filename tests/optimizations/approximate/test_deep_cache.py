"""DeepCache: what is whole, what is reused, and when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.errors import UsageError
from sdpy.models import UNet2DConditionConfig, UNet2DConditionModel
from sdpy.models.unet import skip_channels
from sdpy.optimizations.approximate import DeepCache, approximate
from support.compare import normal, randomise, relative_error
from support.tiny import TINY

CONFIG = replace(
    TINY.unet,
    block_out_channels=(16, 24, 32),
    cross_attention=(True, False, True),
    attention_heads=(2, 3, 4),
    layers_per_block=2,
)
CONTEXT = normal(2, 7, 32, seed=1)
SEEDS = (0, 1)
BRANCHES = range(len(skip_channels(CONFIG)) - 1)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    model = randomise(UNet2DConditionModel(CONFIG), seed=2)
    assert isinstance(model, UNet2DConditionModel)
    return model


def sample(step: int, batch: int = 2) -> Tensor:
    """Latents of sides that no level halves evenly."""
    return normal(batch, 4, 13, 10, seed=10 + step)


def time(step: int) -> Tensor:
    return torch.tensor(900.0 - 100 * step)


@contextmanager
def counted(unet: UNet2DConditionModel) -> Iterator[list[int]]:
    """The number of times that the middle, which is reached in whole evaluations, was evaluated."""
    count = [0]
    handle = unet.mid_block.register_forward_hook(lambda *_: count.append(count.pop() + 1))
    yield count
    handle.remove()


@torch.no_grad()
def test_an_interval_of_one_is_exact(unet: UNet2DConditionModel) -> None:
    with approximate(unet, [DeepCache(1)], SEEDS) as called, counted(unet) as wholes:
        ours = [called(sample(i), time(i), CONTEXT) for i in range(3)]
    assert wholes == [3]
    for i, prediction in enumerate(ours):
        assert torch.equal(prediction, unet(sample(i), time(i), CONTEXT))


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("interval", [2, 3])
@torch.no_grad()
def test_every_nth_evaluation_is_the_plain_one(
    unet: UNet2DConditionModel, interval: int, branch: int
) -> None:
    with approximate(unet, [DeepCache(interval, branch)], SEEDS) as called, counted(unet) as wholes:
        ours = [called(sample(i), time(i), CONTEXT) for i in range(5)]
    assert wholes == [len(range(0, 5, interval))]
    for i, prediction in enumerate(ours):
        plain = unet(sample(i), time(i), CONTEXT)
        if i % interval == 0:
            assert torch.equal(prediction, plain)
        else:
            assert relative_error(prediction, plain) > 1e-3


def level_by_level(unet: Any, branch: int, step: int, deep_step: int) -> Tensor:
    """A reused evaluation written out, with the whole ways down of both steps.

    The way up is that of ``deep_step`` until it comes to the layer that takes skip ``branch``.
    """

    def way_down(step: int) -> tuple[list[Tensor], Tensor, Tensor]:
        time_emb = unet.embed_time(time(step).expand(2))
        skips = [unet.conv_in(sample(step))]
        for block in unet.down_blocks:
            skips += block(skips[-1], time_emb, CONTEXT)
        return skips, unet.mid_block(skips[-1], time_emb, CONTEXT), time_emb

    (old_skips, x, old_time), (new_skips, _, new_time) = way_down(deep_step), way_down(step)
    number = len(old_skips) - 1  # of the skip that is used next
    for block in unet.up_blocks:
        for i, resnet in enumerate(block.resnets):
            new = number <= branch
            skip = (new_skips if new else old_skips)[number]
            x = resnet(torch.cat([x, skip], dim=1), new_time if new else old_time)
            if block.attentions is not None:
                x = block.attentions[i](x, CONTEXT)
            number -= 1
        if block.upsamplers is not None:
            size = old_skips[number].shape[-2:]
            x = block.upsamplers[0].conv(F.interpolate(x, size=size, mode="nearest"))
    return unet.conv_out(F.silu(unet.conv_norm_out(x)))


@pytest.mark.parametrize("branch", BRANCHES)
@torch.no_grad()
def test_a_reused_evaluation_written_out(unet: UNet2DConditionModel, branch: int) -> None:
    with approximate(unet, [DeepCache(3, branch)], SEEDS) as called:
        ours = [called(sample(i), time(i), CONTEXT) for i in range(6)]
    for i in (1, 2, 4, 5):
        expected = level_by_level(unet, branch, i, deep_step=i // 3 * 3)
        assert relative_error(ours[i], expected) <= 1e-6


@torch.no_grad()
def test_what_has_not_changed_gives_the_plain_result(unet: UNet2DConditionModel) -> None:
    for branch in BRANCHES:
        with approximate(unet, [DeepCache(2, branch)], SEEDS) as called:
            plain = called(sample(0), time(0), CONTEXT)
            again = called(sample(0), time(0), CONTEXT)
        assert relative_error(again, plain) <= 1e-6


@torch.no_grad()
def test_another_prompt_is_seen_by_all_layers(unet: UNet2DConditionModel) -> None:
    """Prompts may alternate as often as the whole UNet is evaluated."""
    other = CONTEXT.flip(0)
    with approximate(unet, [DeepCache(2)], SEEDS) as called:
        called(sample(0), time(0), CONTEXT)
        prediction = called(sample(0), time(0), other)
    assert relative_error(prediction, unet(sample(0), time(0), other)) <= 1e-6


@torch.no_grad()
def test_another_batch_is_evaluated_whole(unet: UNet2DConditionModel) -> None:
    batches = [2, 2, 1, 1, 1, 2, 2]
    contexts = {batch: CONTEXT[:batch] for batch in batches}
    with approximate(unet, [DeepCache(3)], SEEDS) as called, counted(unet) as wholes:
        seen = []
        for i, batch in enumerate(batches):
            called(sample(i, batch), time(i), contexts[batch])
            seen.append(wholes[0])
    assert seen == [1, 1, 2, 2, 2, 3, 3]


def residuals(unet: UNet2DConditionModel, seed: int) -> tuple[list[Tensor], Tensor]:
    """What a ControlNet would add: of every skip's and the middle's shape."""
    down: list[Tensor] = []
    sizes = [(13, 10)] * 3 + [(7, 5)] * 3 + [(4, 3)] * 3
    for i, (channels, size) in enumerate(zip(skip_channels(CONFIG), sizes, strict=True)):
        down.append(0.3 * normal(2, channels, *size, seed=seed + i))
    return down, 0.3 * normal(2, 32, 4, 3, seed=seed + 50)


@pytest.mark.parametrize("branch", BRANCHES)
@torch.no_grad()
def test_controls_steer_what_is_evaluated(unet: UNet2DConditionModel, branch: int) -> None:
    """As a ControlNet whose deep part is still that of the last whole evaluation."""
    (old_down, old_mid), (new_down, new_mid) = residuals(unet, 100), residuals(unet, 200)
    inputs = sample(0), time(0), CONTEXT
    with approximate(unet, [DeepCache(2, branch)], SEEDS) as called:
        called(
            *inputs, down_block_additional_residuals=old_down, mid_block_additional_residual=old_mid
        )
        ours = called(
            *inputs, down_block_additional_residuals=new_down, mid_block_additional_residual=new_mid
        )
    mixed = [*new_down[: branch + 1], *old_down[branch + 1 :]]
    expected = unet(
        *inputs, down_block_additional_residuals=mixed, mid_block_additional_residual=old_mid
    )
    assert relative_error(ours, expected) <= 1e-6


@torch.no_grad()
def test_controls_that_begin_or_end_ask_for_a_whole_evaluation(unet: UNet2DConditionModel) -> None:
    down, mid = residuals(unet, 100)
    with approximate(unet, [DeepCache(4)], SEEDS) as called, counted(unet) as wholes:
        seen = []
        for steered in (False, False, True, True, False):
            given = (
                {
                    "down_block_additional_residuals": down,
                    "mid_block_additional_residual": mid,
                }
                if steered
                else {}
            )
            called(sample(0), time(0), CONTEXT, **given)
            seen.append(wholes[0])
    assert seen == [1, 1, 2, 2, 3]


@torch.no_grad()
def test_the_embedded_guidance_scale_reaches_the_outermost_layers() -> None:
    config = replace(CONFIG, time_cond_proj_dim=12)
    unet: Any = randomise(UNet2DConditionModel(config), seed=3)
    low, high = normal(2, 12, seed=5), normal(2, 12, seed=6)
    with approximate(unet, [DeepCache(3)], SEEDS) as called:
        called(sample(0), time(0), CONTEXT, timestep_cond=low)
        same = called(sample(0), time(0), CONTEXT, timestep_cond=low)
        other = called(sample(0), time(0), CONTEXT, timestep_cond=high)
    assert relative_error(same, unet(sample(0), time(0), CONTEXT, timestep_cond=low)) <= 1e-6
    assert relative_error(other, same) > 1e-4


@pytest.mark.parametrize("branch", BRANCHES)
@torch.no_grad()
def test_modules_are_called_with_their_hooks(unet: UNet2DConditionModel, branch: int) -> None:
    """As streaming of weights needs it: none is used while those around it are not called."""
    active: set[str] = set()
    handles = []
    names = {name: module for name, module in unet.named_modules() if name}

    def enter(module: nn.Module, inputs: object, name: str) -> None:
        containers = [name[:i] for i, letter in enumerate(name) if letter == "."]
        for around in containers:
            assert isinstance(names[around], nn.ModuleList) or around in active
        active.add(name)

    for name, module in names.items():
        handles.append(module.register_forward_pre_hook(partial(enter, name=name)))
        handles.append(module.register_forward_hook(lambda *_, name=name: active.discard(name)))
    with approximate(unet, [DeepCache(2, branch)], SEEDS) as called:
        for i in range(2):
            called(sample(i), time(i), CONTEXT)
    assert not active
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_nothing_is_left_behind(unet: UNet2DConditionModel) -> None:
    """Neither after a run nor after one that broke off, nor from one run to the next."""
    plain = unet(sample(3), time(3), CONTEXT)
    for _ in range(2):
        with approximate(unet, [DeepCache(5)], SEEDS) as called:
            called(sample(0), time(0), CONTEXT)
        with approximate(unet, [DeepCache(5)], SEEDS) as called:
            assert torch.equal(called(sample(3), time(3), CONTEXT), plain)
    with pytest.raises(RuntimeError), approximate(unet, [DeepCache(5)], SEEDS) as called:
        called(sample(0)[:, :3], time(0), CONTEXT)
    assert torch.equal(unet(sample(3), time(3), CONTEXT), plain)
    assert not any(module._forward_pre_hooks for module in unet.modules())
    assert not any("forward" in vars(module) for module in unet.modules())


@torch.no_grad()
def test_an_evaluation_that_fails_changes_nothing(unet: UNet2DConditionModel) -> None:
    """It may be tried again, as where memory runs out."""
    with approximate(unet, [DeepCache(3)], SEEDS) as called, counted(unet) as wholes:
        for i in range(3):
            with pytest.raises(RuntimeError):
                called(sample(i)[:, :3], time(i), CONTEXT)
            called(sample(i), time(i), CONTEXT)
        assert wholes == [1]
        called(sample(3), time(3), CONTEXT)
    assert wholes == [2]


@pytest.mark.parametrize(
    ("deep_cache", "words"),
    [
        (DeepCache(0), "every 0"),
        (DeepCache(-2), "every -2"),
        (DeepCache(2, -1), "branch -1: this UNet has 0 to 7"),
        (DeepCache(2, 8), "branch 8: this UNet has 0 to 7"),
    ],
)
def test_what_cannot_be_is_refused(deep_cache: DeepCache, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        deep_cache.check(CONFIG)


def test_stable_diffusion_has_eleven_branches() -> None:
    DeepCache(2, 10).check(UNet2DConditionConfig())
    with pytest.raises(UsageError, match="0 to 10"):
        DeepCache(2, 11).check(UNet2DConditionConfig())
