"""The convolutions of a network, and the sizes of what they are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from sdpy.models.controlnet import ControlNetConditioningEmbedding
from sdpy.models.resnet import Upsample2D
from sdpy.optimizations.exact.tiling import TiledUpsample2D


@dataclass(frozen=True)
class Convolution:
    """A convolution of a network, and what it is given.

    Attributes:
        name: its dotted name in the network.
        module: itself.
        input_shape: (B, C, H, W) of what it is given.
        doubled: whether that is made by the `Upsample2D` that it is in, and twice as large as what
            this is given.
        itemsize: bytes of a number of the weights when it runs.
    """

    name: str
    module: nn.Conv2d
    input_shape: torch.Size
    doubled: bool = False
    itemsize: int = 4

    @property
    def positions(self) -> int:
        """The number of places at which the kernel is put."""
        B, _, H, W = self.input_shape
        return B * (H // self.module.stride[0]) * (W // self.module.stride[0])

    @property
    def in_channels(self) -> int:
        """Channels of what it is given."""
        return self.module.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self.module.out_channels

    @property
    def kernel(self) -> int:
        """Height of the kernel."""
        return self.module.kernel_size[0]

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights when it runs."""
        return self.itemsize * self.module.weight.numel()


@dataclass(frozen=True)
class _Convolve:
    name: str
    module: nn.Conv2d
    upsamples: bool
    """Whether it belongs to an `Upsample2D`."""


@dataclass(frozen=True)
class _Enlarge:
    factor: int


class ConvolutionTrace:
    """The convolutions of a network in the order in which they run, as far as it concerns sizes.

    Torch could tell the shapes by running the network on the meta device, but what it needs for
    that takes it more than a second to import. So this follows the layers in the order in which
    they were registered, which is the one in which our networks call them, as far as it matters
    for sizes. Odd sides are taken to be halved and doubled as even ones are, and a ControlNet's
    1x1 convolutions, which stand behind the rest, to see the smallest map.

    Args:
        network: a UNet, a ControlNet, or an encoder or decoder, before its layers are replaced.
    """

    def __init__(self, network: nn.Module) -> None:
        self._events = tuple(_events(network))

    def at(self, input_shape: torch.Size, itemsize: int = 4) -> list[Convolution]:
        """The convolutions with the shapes of their inputs, where the network is given that one.

        Args:
            input_shape: (B, C, H, W).
            itemsize: bytes of a number.
        """
        B, _, H, W = input_shape
        was_odd = False  # whether a side was halved that was odd
        found: list[Convolution] = []
        for event in self._events:
            if isinstance(event, _Enlarge):
                H, W = event.factor * H, event.factor * W
                continue
            module = event.module
            shape = torch.Size((B, module.in_channels, H, W))
            doubled = event.upsamples and not was_odd
            found.append(Convolution(event.name, module, shape, doubled, itemsize))
            was_odd |= any(side % module.stride[0] for side in (H, W))
            H, W = (-(-side // stride) for side, stride in zip((H, W), module.stride, strict=True))
        return found


def _events(network: nn.Module) -> Iterator[_Convolve | _Enlarge]:
    upsampling: Upsample2D | TiledUpsample2D | None = None
    for name, module in network.named_modules():
        if isinstance(module, Upsample2D | TiledUpsample2D):
            upsampling = module
            yield _Enlarge(2)
        elif isinstance(module, nn.Upsample):
            yield _Enlarge(2)
        elif isinstance(module, ControlNetConditioningEmbedding):
            yield _Enlarge(module.downsample_factor)
        elif isinstance(module, nn.Conv2d):
            yield _Convolve(name, module, upsampling is not None and module is upsampling.conv)
