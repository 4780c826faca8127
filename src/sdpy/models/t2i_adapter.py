"""T2I-Adapter: a small network that looks at an image once, and steers the UNet on its way down.

Source: "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image
Diffusion Models" (Mou et al., 2023), section 3.2; names of parameters as in diffusers'
``T2IAdapter``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.unet import UNet2DConditionConfig

ADAPTER_TYPES = ("full_adapter", "full_adapter_xl", "light_adapter")
"""For Stable Diffusion 1.x; for XL; a smaller one for 1.x."""

HALVING_LEVELS: dict[str, tuple[int, ...]] = {
    "full_adapter": (1, 2, 3),
    "full_adapter_xl": (2,),
    "light_adapter": (1, 2, 3),
}
"""The levels that begin with half the resolution, of four."""


@dataclass(frozen=True)
class T2IAdapterConfig:
    """Sizes of an adapter. The defaults are those of the full one for Stable Diffusion 1.x.

    ``in_channels`` are those of the image that it is shown: 3, or 1 for a grey one. ``channels``
    has one entry for each of the four levels; a light adapter's last two have the same, and one
    entry. A level has ``num_res_blocks`` ResNets. ``downscale_factor`` is the number of pixels
    along the side of a position of the first level. For ``adapter_type`` see `ADAPTER_TYPES`.
    """

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = "full_adapter"

    def __post_init__(self) -> None:
        if self.adapter_type not in ADAPTER_TYPES:
            raise ValueError(f"adapter_type {self.adapter_type}: use one of {ADAPTER_TYPES}")
        if len(self.level_channels) != 4:
            raise ValueError(f"{len(self.channels)} channels for an {self.adapter_type}")

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level's features."""
        is_light = self.adapter_type == "light_adapter"
        return (*self.channels, *self.channels[-1:]) if is_light else self.channels

    @property
    def unshuffled_channels(self) -> int:
        """Channels of the image with all pixels of a position side by side."""
        return self.in_channels * self.downscale_factor**2


def adapter_type_for(unet: UNet2DConditionConfig) -> str | None:
    """The full adapter whose features have the resolutions at which a UNet takes them.

    A level that attends to the prompt takes them before it halves the resolution, any other level
    afterwards; what the levels leave over goes to the middle. None where none fits.
    """
    attends = unet.cross_attention
    last = len(attends) - 1
    halvings = [i if attends[i] or i == last else i + 1 for i in range(len(attends))]
    halvings.append(last)  # the middle
    for name in ("full_adapter", "full_adapter_xl"):
        first = 1 if name == "full_adapter_xl" else 0
        own = [first + sum(level <= i for level in HALVING_LEVELS[name]) for i in range(4)]
        if own == halvings[:4]:
            return name
    return None


class AdapterResnetBlock(nn.Module):
    """Two convolutions with a ReLU between them, added to the input.

    Args:
        channels: of the input and the result.
        kernel_size: of the second convolution.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.block2(torch.relu(self.block1(x)))


class AdapterBlock(nn.Module):
    """A level of a full adapter: perhaps half the resolution, other channels, then ResNets."""

    def __init__(self, in_channels: int, out_channels: int, resnets: int, *, halve: bool) -> None:
        super().__init__()
        self.downsample = nn.AvgPool2d(2, ceil_mode=True) if halve else None
        self.in_conv = None
        if in_channels != out_channels:
            self.in_conv = nn.Conv2d(in_channels, out_channels, 1)
        self.resnets = nn.Sequential(
            *(AdapterResnetBlock(out_channels, kernel_size=1) for _ in range(resnets))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W), or half of H and W, rounded up."""
        if self.downsample is not None:
            x = self.downsample(x)
        if self.in_conv is not None:
            x = self.in_conv(x)
        return self.resnets(x)


class LightAdapterBlock(nn.Module):
    """A level of a light adapter, whose ResNets have a quarter of its channels."""

    def __init__(self, in_channels: int, out_channels: int, resnets: int, *, halve: bool) -> None:
        super().__init__()
        inner = out_channels // 4
        self.downsample = nn.AvgPool2d(2, ceil_mode=True) if halve else None
        self.in_conv = nn.Conv2d(in_channels, inner, 1)
        self.resnets = nn.Sequential(
            *(AdapterResnetBlock(inner, kernel_size=3) for _ in range(resnets))
        )
        self.out_conv = nn.Conv2d(inner, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W), or half of H and W, rounded up."""
        if self.downsample is not None:
            x = self.downsample(x)
        return self.out_conv(self.resnets(self.in_conv(x)))


class AdapterLevels(nn.Module):
    """All of an adapter's layers, below the module that diffusers has around them."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        is_light = config.adapter_type == "light_adapter"
        channels, halving = config.level_channels, HALVING_LEVELS[config.adapter_type]
        self.unshuffle = nn.PixelUnshuffle(config.downscale_factor)
        self.conv_in = None
        first = config.unshuffled_channels
        if not is_light:
            self.conv_in = nn.Conv2d(first, channels[0], 3, padding=1)
            first = channels[0]
        block = LightAdapterBlock if is_light else AdapterBlock
        self.body = nn.ModuleList(
            block(before, channels[i], config.num_res_blocks, halve=i in halving)
            for i, before in enumerate((first, *channels[:-1]))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """See `T2IAdapter.forward`."""
        x = self.unshuffle(image)
        if self.conv_in is not None:
            x = self.conv_in(x)
        features = []
        for block in self.body:
            x = block(x)
            features.append(x)
        return features


class T2IAdapter(nn.Module):
    """The adapter.

    Its weights are all so large that streaming takes them away, so that none tells where it runs.
    """

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = AdapterLevels(config)

    def forward(self, image: Tensor) -> list[Tensor]:
        """What is to be added to the UNet on its way down.

        Args:
            image: (B, in_channels, H, W) in [0, 1]: edges, depth, a pose, ... Where H or W is no
                multiple of ``downscale_factor``, the last row or column is repeated until it is.

        Returns:
            Four tensors, ``down_intrablock_additional_residuals`` of
            `UNet2DConditionModel.forward`.
        """
        factor = self.config.downscale_factor
        right, below = (-side % factor for side in (image.shape[-1], image.shape[-2]))
        if right or below:
            image = F.pad(image, (0, right, 0, below), mode="replicate")
        return self.adapter(image)
