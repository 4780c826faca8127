"""The levels of the UNet: going down, the middle, going up.

Every level is a sequence of ResNets, each followed by a transformer where the level attends to
the prompt, and a change of resolution at its end. Each result on the way down is kept as a skip
and joined to the input of the ResNet that mirrors it on the way up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdpy.models.attention import Transformer2DModel
from sdpy.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D


@dataclass(frozen=True)
class LevelConfig:
    """What the ResNets and transformers of one level have in common."""

    channels: int
    time_embed_dim: int
    norm_num_groups: int
    norm_eps: float
    cross_attention: bool
    cross_attention_dim: int
    heads: int
    transformer_layers: int
    linear_projection: bool

    def resnet(self, in_channels: int) -> ResnetBlock2D:
        """A ResNet from ``in_channels`` to this level's channels."""
        return ResnetBlock2D(
            in_channels,
            self.channels,
            time_embed_dim=self.time_embed_dim,
            norm_num_groups=self.norm_num_groups,
            eps=self.norm_eps,
        )

    def transformers(self, count: int) -> nn.ModuleList | None:
        """``count`` transformers, or None at a level that does not attend to the prompt."""
        if not self.cross_attention:
            return None
        return nn.ModuleList(
            Transformer2DModel(
                self.channels,
                self.cross_attention_dim,
                heads=self.heads,
                layers=self.transformer_layers,
                norm_num_groups=self.norm_num_groups,
                linear_projection=self.linear_projection,
            )
            for _ in range(count)
        )


class DownBlock2D(nn.Module):
    """One level on the way down."""

    def __init__(
        self, level: LevelConfig, *, in_channels: int, layers: int, downsample: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            level.resnet(in_channels if i == 0 else level.channels) for i in range(layers)
        )
        self.attentions = level.transformers(layers)
        self.downsamplers = (
            nn.ModuleList([Downsample2D(level.channels, asymmetric_padding=False)])
            if downsample
            else None
        )

    def forward(self, x: Tensor, time_emb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``x`` (B, C, H, W) -> the level's result and the skips that it leaves, in order."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time_emb)
            if self.attentions is not None:
                x = self.attentions[i](x, context)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock2D(nn.Module):
    """The middle: a transformer between two ResNets, at the lowest resolution."""

    def __init__(self, level: LevelConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(level.resnet(level.channels) for _ in range(2))
        self.attentions = level.transformers(1)

    def forward(self, x: Tensor, time_emb: Tensor, context: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.resnets[0](x, time_emb)
        if self.attentions is not None:
            x = self.attentions[0](x, context)
        return self.resnets[1](x, time_emb)


class UpBlock2D(nn.Module):
    """One level on the way up; ``skip_channels`` are those of the skips, in the order of use."""

    def __init__(
        self,
        level: LevelConfig,
        *,
        in_channels: int,
        skip_channels: list[int],
        upsample: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            level.resnet((in_channels if i == 0 else level.channels) + skip)
            for i, skip in enumerate(skip_channels)
        )
        self.attentions = level.transformers(len(skip_channels))
        self.upsamplers = nn.ModuleList([Upsample2D(level.channels)]) if upsample else None

    def forward(self, x: Tensor, skips: list[Tensor], time_emb: Tensor, context: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> the level's result; takes its skips from the end of ``skips``."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), time_emb)
            if self.attentions is not None:
                x = self.attentions[i](x, context)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x, size=skips[-1].shape[-2:])
        return x
