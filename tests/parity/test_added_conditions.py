"""UNet and ControlNet that are told pooled embeddings and sizes, as Stable Diffusion XL's are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sdpy.models import (
    ControlNetConfig,
    ControlNetModel,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from sdpy.optimizations.approximate import DeepCache, approximate
from support.compare import MODEL_TOLERANCE, normal, randomise, relative_error
from support.references import reference_controlnet, reference_unet

XL = UNet2DConditionConfig(
    block_out_channels=(16, 32, 48),
    cross_attention=(False, True, True),
    attention_heads=(1, 2, 3),
    transformer_layers_per_block=(1, 2, 3),
    cross_attention_dim=20,
    use_linear_projection=True,
    norm_num_groups=8,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=12 + 6 * 8,
)
CONTROLNET = ControlNetConfig(XL, conditioning_embedding_out_channels=(4, 8))
UNETS = {
    "xl": XL,
    "blocks that differ": replace(
        XL,
        transformer_layers_per_block=(1, (2, 1), (4, 3)),
        reverse_transformer_layers_per_block=((3, 2, 4), (2, 1, 1), 1),
        mid_block_type="UNetMidBlock2D",
    ),
    "no middle": replace(XL, mid_block_type=None),
    "attention from the first level on": replace(XL, cross_attention=(True, True, False)),
}
TIME = torch.tensor(431)


def pair(config: UNet2DConditionConfig | ControlNetConfig) -> tuple[nn.Module, nn.Module]:
    if isinstance(config, ControlNetConfig):
        ours, theirs = randomise(ControlNetModel(config)), reference_controlnet(config)
    else:
        ours, theirs = randomise(UNet2DConditionModel(config)), reference_unet(config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def told(rows: int) -> dict[str, Tensor]:
    """What the networks are told, with sizes that differ."""
    sizes = torch.tensor([[1024, 768, 0, 0, 1024, 1024], [512, 640, 8, 100, 900, 64]])
    return {
        "text_embeds": normal(rows, 12, seed=3),
        "time_ids": sizes.repeat(rows, 1)[:rows].float(),
    }


def repeated(x: Tensor, k: int) -> Tensor:
    return x.repeat(k, *[1] * (x.ndim - 1))


@pytest.mark.parametrize(("B", "k"), [(2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_unet(name: str, B: int, k: int) -> None:
    """Each of k B contexts has its own pooled embedding and sizes."""
    ours, theirs = pair(UNETS[name])
    sample, context, added = normal(B, 4, 12, 10), normal(k * B, 5, 20, seed=1), told(k * B)
    expected = theirs(repeated(sample, k), TIME, context, added_cond_kwargs=added).sample
    assert relative_error(ours(sample, TIME, context, **added), expected) <= MODEL_TOLERANCE
    time = ours.embed_time(TIME[None])
    emb = time + ours.embed_added_conditions(**added)
    assert emb.shape == (k * B, 64)
    assert relative_error(ours(sample, TIME, context, emb=emb), expected) <= MODEL_TOLERANCE
    with approximate(ours, [DeepCache(2)], range(B)) as called:
        for given in (added, {"emb": emb}):
            assert relative_error(called(sample, TIME, context, **given), expected) <= (
                MODEL_TOLERANCE
            )


@torch.no_grad()
def test_one_condition_serves_all_rows() -> None:
    ours, theirs = pair(XL)
    sample, context, added = normal(2, 4, 12, 10), normal(4, 5, 20, seed=1), told(1)
    rows = {name: repeated(tensor, 4) for name, tensor in added.items()}
    expected = theirs(repeated(sample, 2), TIME, context, added_cond_kwargs=rows).sample
    assert relative_error(ours(sample, TIME, context, **added), expected) <= MODEL_TOLERANCE


@pytest.mark.parametrize(("B", "k"), [(2, 1), (1, 2), (3, 2)])
@torch.no_grad()
def test_controlnet(B: int, k: int) -> None:
    ours, theirs = pair(CONTROLNET)
    our_unet, their_unet = pair(XL)
    sample, context, added = normal(B, 4, 12, 10), normal(k * B, 5, 20, seed=1), told(k * B)
    image = normal(B, 3, 24, 20, seed=2).sigmoid()
    down, mid = ours(sample, TIME, context, image, **added)
    expected = theirs(
        repeated(sample, k),
        TIME,
        context,
        repeated(image, k),
        added_cond_kwargs=added,
    )
    for a, b in zip((*down, mid), (*expected[0], expected[1]), strict=True):
        assert relative_error(a, b) <= MODEL_TOLERANCE
    emb = ours.embed(TIME, None, **added)
    again, _ = ours(sample, TIME, context, image, emb=emb)
    assert all(torch.equal(a, b) for a, b in zip(again, down, strict=True))
    steered = our_unet(
        sample,
        TIME,
        context,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
        **added,
    )
    reference = their_unet(
        repeated(sample, k),
        TIME,
        context,
        added_cond_kwargs=added,
        down_block_additional_residuals=expected[0],
        mid_block_additional_residual=expected[1],
    ).sample
    assert relative_error(steered, reference) <= MODEL_TOLERANCE


@pytest.mark.parametrize("change", ["text_embeds", "time_ids"])
@torch.no_grad()
def test_a_change_is_noticed(change: str) -> None:
    ours, _ = pair(XL)
    sample, context, added = normal(1, 4, 12, 10), normal(1, 5, 20, seed=1), told(1)
    other = ours(sample, TIME, context, **{**added, change: added[change] + 1})
    assert relative_error(other, ours(sample, TIME, context, **added)) > 1e-4


def test_what_is_missing_is_told() -> None:
    ours, _ = pair(XL)
    plain = UNet2DConditionModel(replace(XL, addition_embed_type=None, **dict.fromkeys(WIDTHS)))
    inputs = normal(1, 4, 8, 8), TIME, normal(1, 5, 20)
    with pytest.raises(ValueError, match="needs text_embeds and time_ids"):
        ours(*inputs)
    with pytest.raises(ValueError, match="for addition_embed_type text_time only"):
        plain.embed_added_conditions(**told(1))
    with pytest.raises(ValueError, match="needs addition_time_embed_dim and"):
        replace(XL, addition_time_embed_dim=None)


WIDTHS = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")


@pytest.mark.parametrize("config", [XL, CONTROLNET])
def test_names_and_shapes_of_the_weights(config: UNet2DConditionConfig | ControlNetConfig) -> None:
    ours, theirs = pair(config)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }


SDXL = UNet2DConditionConfig(
    block_out_channels=(320, 640, 1280),
    cross_attention=(False, True, True),
    attention_heads=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)


def test_the_real_size() -> None:
    """Tensors and numbers of stabilityai/stable-diffusion-xl-base-1.0's UNet."""
    with torch.device("meta"):
        ours = UNet2DConditionModel(SDXL).state_dict()
        theirs = reference_unet(SDXL).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert (len(ours), sum(tensor.numel() for tensor in ours.values())) == (1680, 2_567_463_684)
