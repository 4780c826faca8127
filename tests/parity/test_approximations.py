"""The approximations beside their authors' packages."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sdpy.models import UNet2DConditionModel
from sdpy.models.attention import Attention
from sdpy.optimizations.approximate import DeepCache, approximate
from sdpy.optimizations.approximate.token_merging import destinations, match
from support.compare import MODEL_TOLERANCE, normal, randomise, relative_error
from support.references import reference_unet
from support.tiny import TINY

CONFIG = replace(
    TINY.unet,
    block_out_channels=(16, 24, 32),
    cross_attention=(True, True, False),
    attention_heads=(2, 3, 4),
    layers_per_block=2,
)


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("branch", range(7))
@torch.no_grad()
def test_deep_cache(interval: int, branch: int) -> None:
    package = pytest.importorskip("DeepCache")
    ours = randomise(UNet2DConditionModel(CONFIG), seed=2)
    theirs = reference_unet(CONFIG)
    theirs.load_state_dict(ours.state_dict())
    timesteps = torch.arange(900, 200, -100)
    pipeline = SimpleNamespace(unet=theirs, scheduler=SimpleNamespace(timesteps=timesteps))
    helper = package.DeepCacheSDHelper(pipe=pipeline)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    context = normal(2, 7, 32, seed=1)
    with approximate(ours, [DeepCache(interval, branch)], (0, 1)) as called:
        for i, timestep in enumerate(timesteps):
            sample = normal(2, 4, 16, 12, seed=i)
            expected = theirs(sample, timestep, encoder_hidden_states=context).sample
            assert relative_error(called(sample, timestep, context), expected) <= MODEL_TOLERANCE


@pytest.mark.parametrize("count", [1, 20, 47])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@torch.no_grad()
def test_token_merging(size: tuple[int, int], count: int) -> None:
    """With the first token of each tile as the destination, as theirs without randomness."""
    package = pytest.importorskip("tomesd")
    H, W = size
    attention = randomise(Attention(12, heads=3), seed=5)
    x = normal(2, H * W, 12, seed=6)
    merge, unmerge = package.merge.bipartite_soft_matching_random2d(
        x, w=W, h=H, sx=2, sy=2, r=count, no_rand=True
    )
    first = torch.zeros(H // 2, W // 2, dtype=torch.int64)
    matching = match(x, destinations(first, W).expand(2, -1), count)
    ours = matching.unmerge(attention(matching.merge(x)))
    assert relative_error(ours, unmerge(attention(merge(x)))) <= MODEL_TOLERANCE
