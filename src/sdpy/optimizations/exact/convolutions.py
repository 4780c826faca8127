"""The convolutions of a network, and the sizes of what they are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from sdpy.models.controlnet import ControlNetConditioningEmbedding
from sdpy.models.resnet import Upsample2D


@dataclass(frozen=True)
class Convolution:
    """A convolution of the model.

    Attributes:
        name: its dotted name.
        module: itself.
        input_shape: (B, C, H, W) of what it is given.
        doubled: whether that is made by the `Upsample2D` that it is in, and twice as large as what
            this is given.
    """

    name: str
    module: nn.Conv2d
    input_shape: torch.Size
    doubled: bool = False

    @property
    def positions(self) -> int:
        """Places of the kernel."""
        B, _, H, W = self.input_shape
        return B * (H // self.module.stride[0]) * (W // self.module.stride[0])


def find_convolutions(network: nn.Module, input_shape: torch.Size) -> Iterator[Convolution]:
    """The convolutions of a network, and the shapes of their inputs; computes nothing.

    Torch could tell the shapes by running the network on the meta device, but what it needs for
    that takes it more than a second to import. So this follows the layers in the order in which
    they were registered, which is the one in which our networks call them, as far as it matters
    for sizes. Odd sides are taken to be halved and doubled as even ones are, and a ControlNet's
    1x1 convolutions, which stand behind the rest, to see the smallest map.

    Args:
        network: a UNet, a ControlNet, or an encoder or decoder.
        input_shape: (B, C, H, W) of what it is given, for a UNet or a ControlNet with as many rows
            as there are contexts, which all but its first layers have.
    """
    B, _, H, W = input_shape
    odd = False  # whether such a side was halved
    upsampling: Upsample2D | None = None
    for name, module in network.named_modules():
        if isinstance(module, Upsample2D):
            upsampling = module
        if isinstance(module, Upsample2D | nn.Upsample):
            H, W = 2 * H, 2 * W
        elif isinstance(module, ControlNetConditioningEmbedding):
            H, W = module.downsample_factor * H, module.downsample_factor * W
        elif isinstance(module, nn.Conv2d):
            doubled = upsampling is not None and module is upsampling.conv and not odd
            yield Convolution(name, module, torch.Size((B, module.in_channels, H, W)), doubled)
            odd |= any(side % module.stride[0] for side in (H, W))
            H, W = (-(-side // stride) for side, stride in zip((H, W), module.stride, strict=True))
