"""Token merging beside plain loops, and where in the UNet it happens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdpy.errors import UsageError
from sdpy.models import UNet2DConditionModel
from sdpy.models.attention import Attention
from sdpy.optimizations.approximate import DeepCache, TokenMerging, approximate
from sdpy.optimizations.approximate.token_merging import (
    MergingAttention,
    MergingTransformer,
    destinations,
    match,
)
from support.compare import normal, randomise, relative_error
from support.tiny import TINY

CONFIG = replace(
    TINY.unet,
    block_out_channels=(16, 24, 32),
    cross_attention=(False, True, True),
    attention_heads=(2, 3, 4),
    layers_per_block=2,
    transformer_layers_per_block=2,
)
SEEDS = (1, 2)
CONTEXT = normal(2, 7, 32, seed=1)
SAMPLE = normal(2, 4, 14, 12, seed=3)
TIME = torch.tensor(700)

MERGING_LAYERS = (2 + 3) * 2
"""On the way down and up, two transformer blocks each."""


@pytest.fixture(scope="module")
def unet() -> Any:
    return randomise(UNet2DConditionModel(CONFIG), seed=2)


# --- the matching ----------------------------------------------------------------------------


def merged_by_loops(
    tokens: list[list[float]], chosen: list[int], count: int
) -> tuple[list[list[float]], list[int]]:
    """The merged tokens of one image, and for each token which of them it went into."""

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        return dot / math.hypot(*a) / math.hypot(*b)

    others = [t for t in range(len(tokens)) if t not in chosen]
    edges = []
    for t in others:
        likeness, goal = max((cosine(tokens[t], tokens[d]), d) for d in chosen)
        edges.append((likeness, t, goal))
    goals = {t: t for t in range(len(tokens))}
    for _, t, goal in sorted(edges, reverse=True)[:count]:
        goals[t] = goal
    means, place = [], {}
    for goal in sorted(set(goals.values())):
        members = [tokens[t] for t in goals if goals[t] == goal]
        place[goal] = len(means)
        means.append([sum(values) / len(members) for values in zip(*members, strict=True)])
    return means, [place[goals[t]] for t in range(len(tokens))]


def choices(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randint(4, (rows, columns), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 5, 17, 36])
@pytest.mark.parametrize("size", [(8, 6), (7, 9), (2, 25)])
def test_matching_beside_loops(size: tuple[int, int], count: int) -> None:
    H, W = size
    chosen = torch.stack(
        [destinations(choices(H // 2, W // 2, seed + count), W) for seed in (0, 7)]
    )
    x = normal(2, H * W, 5, seed=9).double()
    matching = match(x, chosen, count)
    merged = matching.merge(x)
    assert merged.shape == (2, H * W - count, 5)
    scale = normal(5, seed=4).double()
    restored = matching.unmerge(merged * scale)
    for image, own, restored_image in zip(x, chosen, restored, strict=True):
        means, place = merged_by_loops(image.tolist(), own.tolist(), count)
        expected = torch.tensor([means[p] for p in place], dtype=torch.float64) * scale
        torch.testing.assert_close(restored_image, expected)
        assert len(means) == H * W - count


def test_identical_tokens_lose_nothing() -> None:
    """Squares of four tokens that look in one direction each: each is merged within itself."""
    angles = torch.arange(12.0).view(3, 4).repeat_interleave(2, 0).repeat_interleave(2, 1) / 2
    x = torch.stack([angles.cos(), angles.sin()], dim=-1).view(1, 48, 2)
    matching = match(x, destinations(choices(3, 4, seed=0), 8)[None], 36)
    assert matching.merge(x).shape == (1, 12, 2)
    torch.testing.assert_close(matching.unmerge(matching.merge(x)), x)
    other = normal(1, 48, 2)
    assert relative_error(matching.unmerge(matching.merge(other)), other) > 0.1


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (2, 3)])
def test_one_destination_in_each_whole_tile(size: tuple[int, int]) -> None:
    H, W = size
    for seed in range(5):
        choice = choices(H // 2, W // 2, seed)
        grid = torch.zeros(H * W)
        grid[destinations(choice, W)] = 1
        tiles = grid.view(H, W)[: H // 2 * 2, : W // 2 * 2].unfold(0, 2, 2).unfold(1, 2, 2)
        assert grid.sum() == choice.numel()
        assert torch.equal(tiles.flatten(2).argmax(-1), choice)


# --- the attention ---------------------------------------------------------------------------


def merging_attention(
    attention: nn.Module, ratio: float, size: tuple[int, int], seeds: Sequence[int] = (0, 1)
) -> MergingAttention:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    merging = MergingAttention(attention, ratio, generators)
    merging.size = size
    return merging


@pytest.fixture
def attention() -> nn.Module:
    return randomise(Attention(12, heads=3), seed=5)


@torch.no_grad()
def test_attention_of_merged_tokens_beside_loops(attention: nn.Module) -> None:
    """Merge, attend, copy back, in float64 loops but for the attention itself."""
    H, W, ratio = 6, 8, 0.4
    merging = merging_attention(attention.double(), ratio, (H, W), seeds=(3, 4))
    x = normal(4, H * W, 12, seed=6).double()
    expected = []
    for i, image in enumerate(x):  # two rows for each of two samples
        chosen = destinations(choices(3, 4, seed=3 + i % 2), W).tolist()
        means, place = merged_by_loops(image.tolist(), chosen, int(ratio * H * W))
        attended = attention(torch.tensor([means], dtype=torch.float64))[0]
        expected.append(attended[place])
    torch.testing.assert_close(merging(x), torch.stack(expected))


@pytest.mark.parametrize(
    ("ratio", "size", "seen"),
    [
        (0.0, (8, 6), 48),
        (0.02, (8, 6), 48),
        (0.03, (8, 6), 47),
        (0.5, (8, 6), 24),
        (0.75, (8, 6), 12),
        (0.75, (7, 9), 63 - 47),
        (0.75, (3, 3), 9 - 6),
        (0.75, (1, 9), 9),
    ],
)
@torch.no_grad()
def test_tokens_that_attend(
    attention: nn.Module, ratio: float, size: tuple[int, int], seen: int
) -> None:
    counts: list[int] = []
    attention.to_q.register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].shape[1]))
    x = normal(2, size[0] * size[1], 12)
    result = merging_attention(attention, ratio, size)(x)
    assert counts == [seen]
    assert result.shape == x.shape
    assert torch.equal(result, attention(x)) == (seen == x.shape[1])


# --- the UNet --------------------------------------------------------------------------------


@torch.no_grad()
def test_a_ratio_of_zero_is_exact(unet: Any) -> None:
    plain = unet(SAMPLE, TIME, CONTEXT)
    with approximate(unet, [TokenMerging(0.0)], SEEDS) as called:
        assert called is unet
        assert torch.equal(unet(SAMPLE, TIME, CONTEXT), plain)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@torch.no_grad()
def test_only_the_highest_level_that_attends_merges(unet: Any, ratio: float) -> None:
    seen: dict[str, int] = {}
    handles = [
        module.register_forward_hook(
            lambda _, inputs, __, name=name: seen.update({name: inputs[0].shape[1]})
        )
        for name, module in unet.named_modules()
        if name.endswith("attn1.to_q")
    ]
    plain = unet(SAMPLE, TIME, CONTEXT)
    all_tokens = dict(seen)
    with approximate(unet, [TokenMerging(ratio)], SEEDS):
        merged = unet(SAMPLE, TIME, CONTEXT)
    for handle in handles:
        handle.remove()
    fewer = {name for name, tokens in seen.items() if tokens < all_tokens[name]}
    assert fewer == {name for name in seen if name.startswith(("down_blocks.1", "up_blocks.1"))}
    assert len(fewer) == MERGING_LAYERS
    for name in fewer:  # 7 by 6 tokens: 9 destinations
        assert (all_tokens[name], seen[name]) == (42, 42 - min(int(42 * ratio), 42 - 9))
    assert relative_error(merged, plain) > 1e-3


@torch.no_grad()
def test_the_seed_decides(unet: Any) -> None:
    def run(seed: int) -> list[Tensor]:
        with approximate(unet, [TokenMerging(0.5)], (seed, 5)):
            return [unet(SAMPLE, TIME, CONTEXT) for _ in range(2)]

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = run(1), run(1), run(2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert relative_error(first[0][1], other[0][1]) <= 1e-5  # the second sample has its own seed
    assert not torch.equal(first[0], first[1])  # destinations are drawn anew


@pytest.mark.parametrize("approximations", [[TokenMerging(0.5)], [TokenMerging(0.5), DeepCache(2)]])
@torch.no_grad()
def test_a_sample_is_the_same_alone_or_in_a_batch(unet: Any, approximations: Any) -> None:
    samples, seeds = normal(3, 4, 14, 12, seed=3), (4, 9, 2)

    def loop(samples: Tensor, context: Tensor, seeds: tuple[int, ...]) -> list[Tensor]:
        with approximate(unet, approximations, seeds) as called:
            return [called(samples + i, TIME - i, context) for i in range(3)]

    context = normal(3, 7, 32, seed=1)
    together = loop(samples, context, seeds)
    for i in range(3):
        alone = loop(samples[i : i + 1], context[i : i + 1], seeds[i : i + 1])
        for all_of_them, one in zip(together, alone, strict=True):
            assert relative_error(all_of_them[i::3], one) <= 1e-5
    swapped = loop(samples, context, (9, 4, 2))
    assert relative_error(swapped[0][:1], together[0][:1]) > 1e-4


@torch.no_grad()
def test_another_number_of_samples_is_refused(unet: Any) -> None:
    with approximate(unet, [TokenMerging(0.5)], (1, 2, 3)):
        with pytest.raises(ValueError, match="2 rows of tokens for the seeds of 3 samples"):
            unet(SAMPLE, TIME, CONTEXT)


class Doubled(nn.Module):
    """Some other attention."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.attention(x)


@torch.no_grad()
def test_any_attention_may_be_there(unet: Any) -> None:
    block = unet.down_blocks[1].attentions[0].transformer_blocks[0]
    before = block.attn1
    with approximate(unet, [TokenMerging(0.5)], SEEDS):
        plain = unet(SAMPLE, TIME, CONTEXT)
    block.attn1 = Doubled(before)
    with approximate(unet, [TokenMerging(0.5)], SEEDS):
        assert relative_error(unet(SAMPLE, TIME, CONTEXT), plain) > 1e-4
    block.attn1 = before


@torch.no_grad()
def test_nothing_is_left_behind(unet: Any) -> None:
    kinds = [type(module) for module in unet.modules()]
    plain = unet(SAMPLE, TIME, CONTEXT)
    with approximate(unet, [TokenMerging(0.5)], SEEDS):
        assert not torch.equal(unet(SAMPLE, TIME, CONTEXT), plain)
    with pytest.raises(RuntimeError), approximate(unet, [TokenMerging(0.5)], SEEDS):
        unet(SAMPLE[:, :3], TIME, CONTEXT)
    assert torch.equal(unet(SAMPLE, TIME, CONTEXT), plain)
    assert not any(module._forward_pre_hooks for module in unet.modules())
    assert not any("forward" in vars(module) for module in unet.modules())
    assert [type(module) for module in unet.modules()] == kinds


@torch.no_grad()
def test_together_with_deep_cache(unet: Any) -> None:
    """Whole evaluations and the outermost layers both merge, whichever is named first."""
    both = [TokenMerging(0.5), DeepCache(2, branch=4)]
    results = []
    for approximations in (both, both[::-1]):
        with approximate(unet, approximations, SEEDS) as called:
            results.append([called(SAMPLE, TIME, CONTEXT) for _ in range(2)])
    with approximate(unet, both[:1], SEEDS):
        merged = unet(SAMPLE, TIME, CONTEXT)
    assert torch.equal(results[0][0], merged)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not torch.equal(results[0][1], merged)


@pytest.mark.parametrize("ratio", [-0.1, 0.76, 1.0, float("nan")])
def test_ratios_outside_their_range_are_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match="use 0 .exact. to 0.75"):
        TokenMerging(ratio).check(CONFIG)


def test_a_level_that_attends_to_the_prompt_only_is_passed_over() -> None:
    config = replace(CONFIG, cross_attention=(True, True, True), cross_attention_dim=20)
    config = replace(config, only_cross_attention=(True, False, False))
    unet = randomise(UNet2DConditionModel(config))
    context = normal(2, 5, 20, seed=2)
    with approximate(unet, [TokenMerging(0.5)], SEEDS), torch.no_grad():
        merging = [isinstance(b.attentions[0], MergingTransformer) for b in unet.down_blocks]
        assert merging == [False, True, False]
        unet(SAMPLE, TIME, context)
    with pytest.raises(UsageError, match="at no level"):
        TokenMerging(0.5).check(replace(config, only_cross_attention=True))


def test_a_unet_that_does_not_attend_is_refused() -> None:
    config = replace(CONFIG, cross_attention=(False, False, False))
    with pytest.raises(UsageError, match="at no level does this UNet attend to itself"):
        TokenMerging(0.5).check(config)
    TokenMerging(0.5).check(CONFIG)
