"""ControlNet beside diffusers', alone and together with the UNet that it steers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from parity.test_models import SD1_UNET, SD2_UNET
from sdpy.models import (
    ControlNetConfig,
    ControlNetModel,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from support.compare import MODEL_TOLERANCE, normal, randomise, relative_error
from support.references import reference_controlnet, reference_unet

SD1 = ControlNetConfig(SD1_UNET, conditioning_embedding_out_channels=(4, 8, 12, 16))
CONTROLNETS = {
    "sd1": SD1,
    "sd2": replace(SD1, unet=SD2_UNET),
    "one layer": replace(SD1, unet=replace(SD1_UNET, layers_per_block=1)),
    "three levels": ControlNetConfig(
        UNet2DConditionConfig(
            block_out_channels=(24, 32, 64),
            cross_attention=(False, True, True),
            attention_heads=(2, 4, 8),
            layers_per_block=1,
            cross_attention_dim=20,
            norm_num_groups=8,
        ),
        conditioning_channels=1,
        conditioning_embedding_out_channels=(8, 4),
    ),
    "one resolution": replace(SD1, conditioning_embedding_out_channels=(5,)),
}


def pair(config: ControlNetConfig, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    ours, theirs = randomise(ControlNetModel(config), seed), reference_controlnet(config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def unet_pair(config: UNet2DConditionConfig) -> tuple[nn.Module, nn.Module]:
    ours, theirs = randomise(UNet2DConditionModel(config), seed=9), reference_unet(config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def inputs(
    config: ControlNetConfig, size: tuple[int, int] = (8, 12)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factor = 1 << (len(config.conditioning_embedding_out_channels) - 1)
    image = normal(2, config.conditioning_channels, *(factor * s for s in size), seed=3)
    return (
        normal(2, 4, *size, seed=1),
        torch.tensor([3, 757]),
        normal(2, 7, config.unet.cross_attention_dim, seed=2),
        image.sigmoid(),
    )


@pytest.mark.parametrize("name", CONTROLNETS)
@torch.no_grad()
def test_residuals(name: str) -> None:
    config = CONTROLNETS[name]
    ours, theirs = pair(config)
    for size in ((8, 12), (5, 9)):
        down, mid = ours(*inputs(config, size))
        expected = theirs(*inputs(config, size))
        assert len(down) == len(expected.down_block_res_samples)
        for a, b in zip((*down, mid), (*expected[0], expected[1]), strict=True):
            assert relative_error(a, b) <= MODEL_TOLERANCE


@torch.no_grad()
def test_one_image_serves_a_whole_batch() -> None:
    ours, _ = pair(SD1)
    sample, timestep, context, image = inputs(SD1)
    repeated = ours(sample, timestep, context, image[:1].expand(2, -1, -1, -1))
    down, mid = ours(sample, timestep, context, image[:1])
    for a, b in zip((*down, mid), (*repeated[0], repeated[1]), strict=True):
        assert relative_error(a, b) <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", CONTROLNETS)
@torch.no_grad()
def test_the_steered_unet(name: str) -> None:
    config = CONTROLNETS[name]
    ours, theirs = pair(config)
    our_unet, their_unet = unet_pair(config.unet)
    sample, timestep, context, image = inputs(config)
    down, mid = ours(sample, timestep, context, image)
    steered = our_unet(
        sample,
        timestep,
        context,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    )
    expected = their_unet(
        sample,
        timestep,
        context,
        down_block_additional_residuals=theirs(sample, timestep, context, image)[0],
        mid_block_additional_residual=theirs(sample, timestep, context, image)[1],
    ).sample
    assert relative_error(steered, expected) <= MODEL_TOLERANCE
    assert relative_error(our_unet(sample, timestep, context), expected) > 1e-2


@torch.no_grad()
def test_a_change_of_any_weight_is_noticed() -> None:
    config = replace(SD1, unet=replace(SD1_UNET, layers_per_block=1))
    ours, theirs = pair(config)

    def run(model: nn.Module) -> Tensor:
        result = model(*inputs(config))
        down, mid = result[0], result[1]
        return torch.cat([x.flatten() for x in (*down, mid)])

    expected = run(ours)
    assert relative_error(run(theirs), expected) <= MODEL_TOLERANCE
    for name, parameter in theirs.named_parameters():
        saved = parameter.clone()
        parameter.copy_(saved.flip(0) if saved.shape[0] > 1 else 2 * saved)
        assert relative_error(run(theirs), expected) > 10 * MODEL_TOLERANCE, name
        parameter.copy_(saved)


FULL_SIZE = {
    # tensors and numbers of lllyasviel/control_v11p_sd15_canny
    "sd15": (ControlNetConfig(), 340, 361_279_120),
    "sd21": (
        ControlNetConfig(
            UNet2DConditionConfig(
                attention_heads=(5, 10, 20, 20),
                cross_attention_dim=1024,
                use_linear_projection=True,
            )
        ),
        340,
        None,
    ),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_names_and_shapes_of_the_weights(name: str) -> None:
    config, tensors, numbers = FULL_SIZE[name]
    with torch.device("meta"):
        ours = ControlNetModel(config).state_dict()
        theirs = reference_controlnet(config).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert len(ours) == tensors
    if numbers is not None:
        assert sum(tensor.numel() for tensor in ours.values()) == numbers
