"""The sizes of what a network's convolutions are given, against those that they see."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sdpy.models import (
    AutoencoderKL,
    AutoencoderTiny,
    AutoencoderTinyConfig,
    ControlNetConfig,
    ControlNetModel,
)
from sdpy.optimizations.exact.convolutions import Convolution, ConvolutionTrace
from support.compare import normal
from support.tiny import TINY, tiny_model


def networks() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    vae = tiny_model("vae")
    assert isinstance(vae, AutoencoderKL)
    tiny_vae = AutoencoderTiny(AutoencoderTinyConfig(channels=4))
    config = ControlNetConfig(unet=TINY.unet, conditioning_embedding_out_channels=(4, 6, 8, 10))
    noise = (normal(2, 4, 16, 8), torch.tensor(981), normal(2, 77, 32))
    image, latents = normal(1, 3, 32, 16), normal(1, 4, 8, 16)
    return {
        "unet": (tiny_model("unet"), noise),
        "controlnet": (ControlNetModel(config), (*noise, normal(1, 3, 128, 64))),
        "encoder": (vae.encoder, (image,)),
        "decoder": (vae.decoder, (latents,)),
        "tiny encoder": (tiny_vae.encoder, (image,)),
        "tiny decoder": (tiny_vae.decoder, (latents,)),
    }


@pytest.mark.parametrize("name", networks())
@torch.inference_mode()
def test_the_sizes_are_those_that_the_convolutions_see(name: str) -> None:
    network, (sample, *others) = networks()[name]
    seen: dict[str, Convolution] = {}

    def look(place: str, module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        # A ControlNet sees its image once, for all samples.
        shape = torch.Size((len(sample), *inputs[0].shape[1:]))
        seen[place] = Convolution(place, module, shape)

    for place, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(partial(look, place))
    network(sample, *others)
    found = {c.name: c for c in ConvolutionTrace(network).at(sample.shape)}
    assert found.keys() == seen.keys()
    for place, convolution in seen.items():
        if not place.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
            assert found[place].input_shape[:2] == convolution.input_shape[:2]
            # The encoder pads what it halves by one.
            assert found[place].positions == convolution.positions


@pytest.mark.parametrize(
    ("name", "height", "doubled"),
    [("unet", 16, True), ("unet", 15, False), ("decoder", 15, True), ("tiny decoder", 16, False)],
)
def test_tells_which_convolutions_see_a_doubled_map(name: str, height: int, doubled: bool) -> None:
    """Not where an odd side was halved before, so that its double is too large."""
    network, (sample, *_) = networks()[name]
    shape = torch.Size((*sample.shape[:2], height, 16))
    found = {c.name for c in ConvolutionTrace(network).at(shape) if c.doubled}
    upsamplers = {n for n, _ in network.named_modules() if n.endswith("upsamplers.0.conv")}
    assert found == (upsamplers if doubled else set())
    assert bool(upsamplers) == (name != "tiny decoder")
