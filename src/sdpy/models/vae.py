"""The autoencoder between images and latents.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al., 2022);
names of parameters as in diffusers' ``AutoencoderKL``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.attention import ScaledDotProductAttention
from sdpy.models.base import ModelMixin
from sdpy.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D

GROUP_NORM_EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """Sizes of an autoencoder. The defaults are those of Stable Diffusion 1.x and 2.x.

    ``block_out_channels`` goes from the image's resolution to the latents'.
    ``scaling_factor`` brings latents to unit variance before they are diffused.
    ``force_upcast`` says that the numbers on the way overflow in float16.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    force_upcast: bool = False

    @property
    def downsample_factor(self) -> int:
        """Pixels along the side of one latent."""
        return 1 << (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class DiagonalGaussian:
    """The encoder's result: a normal distribution for each number of (B, latent_channels, h, w)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> DiagonalGaussian:
        """``moments`` (B, 2 latent_channels, h, w): means, then log-variances, cut to [-30, 20]."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, torch.exp(0.5 * logvar.clamp(-30.0, 20.0)))

    def sample(self, noise: Tensor) -> Tensor:
        """Mean plus ``noise`` (standard normal, of the mean's shape) times deviation."""
        return self.mean + self.std * noise


class AutoencoderAttention(nn.Module):
    """Self-attention over all positions of a feature map, one head, added to its input."""

    def __init__(self, channels: int, *, norm_num_groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(norm_num_groups, channels, eps=GROUP_NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.attend: nn.Module = ScaledDotProductAttention()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, H * W, C)
        tokens = self.attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        tokens = self.to_out[0](tokens[:, 0])  # (B, H * W, C)
        return x + tokens.transpose(1, 2).reshape(x.shape)


class AutoencoderMidBlock(nn.Module):
    """Attention between two ResNets, at the latents' resolution."""

    def __init__(self, channels: int, *, norm_num_groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _resnet(channels, channels, norm_num_groups=norm_num_groups) for _ in range(2)
        )
        self.attentions = nn.ModuleList(
            [AutoencoderAttention(channels, norm_num_groups=norm_num_groups)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.resnets[0](x)
        x = self.attentions[0](x)
        return self.resnets[1](x)


class DownEncoderBlock2D(nn.Module):
    """One level of the encoder: ResNets, then half the resolution unless it is the last."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        norm_num_groups: int,
        downsample: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _resnet(
                in_channels if i == 0 else out_channels,
                out_channels,
                norm_num_groups=norm_num_groups,
            )
            for i in range(layers)
        )
        self.downsamplers = (
            nn.ModuleList([Downsample2D(out_channels, asymmetric_padding=True)])
            if downsample
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / 2 or H, W / 2 or W)."""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class UpDecoderBlock2D(nn.Module):
    """One level of the decoder: ResNets, then twice the resolution unless it is the last."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        norm_num_groups: int,
        upsample: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _resnet(
                in_channels if i == 0 else out_channels,
                out_channels,
                norm_num_groups=norm_num_groups,
            )
            for i in range(layers)
        )
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)]) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, 2 H or H, 2 W or W)."""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class Encoder(nn.Module):
    """Image -> moments of the latents' distribution."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels, config.norm_num_groups
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock2D(
                channels[max(i - 1, 0)],
                channels[i],
                layers=config.layers_per_block,
                norm_num_groups=groups,
                downsample=i < last,
            )
            for i in range(len(channels))
        )
        self.mid_block = AutoencoderMidBlock(channels[-1], norm_num_groups=groups)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 2 latent_channels, H / f, W / f)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents -> image."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = AutoencoderMidBlock(channels[0], norm_num_groups=groups)
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock2D(
                channels[max(i - 1, 0)],
                channels[i],
                layers=config.layers_per_block + 1,
                norm_num_groups=groups,
                upsample=i < last,
            )
            for i in range(len(channels))
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, latent_channels, h, w) -> (B, out_channels, h f, w f)."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(ModelMixin):
    """Encoder and decoder, with the 1x1 convolutions on either side of the latents.

    Latents here are as the networks give and take them; multiply by ``config.scaling_factor``
    before diffusing them, divide by it before decoding.

    Raises:
        ValueError: a level's channels do not divide into the norm groups.
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        latents = config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)
        self.decoder = Decoder(config)

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """``image`` (B, 3, H, W) in [-1, 1] -> distribution of latents (B, 4, H / f, W / f)."""
        return DiagonalGaussian.from_moments(self.quant_conv(self.encoder(image)))

    def decode(self, latents: Tensor) -> Tensor:
        """``latents`` (B, 4, h, w) -> image (B, 3, h f, w f), about [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(latents))


def _resnet(in_channels: int, out_channels: int, *, norm_num_groups: int) -> ResnetBlock2D:
    return ResnetBlock2D(
        in_channels,
        out_channels,
        time_embed_dim=None,
        norm_num_groups=norm_num_groups,
        eps=GROUP_NORM_EPS,
    )
