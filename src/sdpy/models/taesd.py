"""TAESD: an autoencoder of a few convolutions that shares the latents of Stable Diffusion's.

It is much faster than `AutoencoderKL`, and its images are nearly as good.

Source: "Tiny AutoEncoder for Stable Diffusion" (Ollin Boer Bohan, 2023); names of parameters as in
diffusers' ``AutoencoderTiny``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdpy.models.base import ModelMixin
from sdpy.models.vae import DiagonalGaussian

# Latents are squeezed softly into this range before they are decoded.
LATENT_MAGNITUDE = 3.0


@dataclass(frozen=True)
class AutoencoderTinyConfig:
    """Sizes of a tiny autoencoder. The defaults are those of TAESD for Stable Diffusion 1.x, 2.x.

    ``encoder_blocks`` has one entry a resolution, from the image's to the latents';
    ``decoder_blocks`` from the latents' to the image's. Its latents have unit variance, hence
    the scaling factor of 1.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    channels: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0

    @property
    def downsample_factor(self) -> int:
        """Pixels along the side of one latent."""
        return 1 << (len(self.decoder_blocks) - 1)


class AutoencoderTinyBlock(nn.Module):
    """Three 3x3 convolutions with ReLUs between them, added to the input, and a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return torch.relu(self.conv(x) + x)


class EncoderTiny(nn.Module):
    """Image -> latents."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        channels = config.channels
        layers: list[nn.Module] = []
        for i, blocks in enumerate(config.encoder_blocks):
            if i == 0:
                layers.append(nn.Conv2d(config.in_channels, channels, 3, padding=1))
            else:
                layers.append(nn.Conv2d(channels, channels, 3, padding=1, stride=2, bias=False))
            layers += [AutoencoderTinyBlock(channels) for _ in range(blocks)]
        layers.append(nn.Conv2d(channels, config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [-1, 1] -> (B, latent_channels, H / f, W / f)."""
        return self.layers((image + 1) / 2)


class DecoderTiny(nn.Module):
    """Latents -> image."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        channels = config.channels
        layers: list[nn.Module] = [
            nn.Conv2d(config.latent_channels, channels, 3, padding=1),
            nn.ReLU(),
        ]
        last = len(config.decoder_blocks) - 1
        for i, blocks in enumerate(config.decoder_blocks):
            layers += [AutoencoderTinyBlock(channels) for _ in range(blocks)]
            if i < last:
                layers.append(nn.Upsample(scale_factor=2))
                layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        layers.append(nn.Conv2d(channels, config.out_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, latent_channels, h, w) -> (B, out_channels, h f, w f), about [-1, 1]."""
        x = torch.tanh(latents / LATENT_MAGNITUDE) * LATENT_MAGNITUDE
        return self.layers(x) * 2 - 1


class AutoencoderTiny(ModelMixin):
    """Encoder and decoder; they are used as those of `AutoencoderKL` are.

    Its latents are already scaled to unit variance, as ``config.scaling_factor`` of 1 says.
    """

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EncoderTiny(config)
        self.decoder = DecoderTiny(config)

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """``image`` (B, 3, H, W) in [-1, 1] -> latents (B, 4, H / f, W / f), without variance."""
        latents = self.encoder(image)
        return DiagonalGaussian(latents, torch.zeros_like(latents))

    def decode(self, latents: Tensor) -> Tensor:
        """``latents`` (B, 4, h, w) -> image (B, 3, h f, w f), about [-1, 1], not clamped."""
        return self.decoder(latents)
