"""The levels of the UNet: going down, the middle, going up.

Every level is a sequence of ResNets, each followed by a transformer where the level attends to
the prompt, and a change of resolution at its end. Each result on the way down is kept as a skip
and joined to the input of the ResNet that mirrors it on the way up. Skips are numbered in the order
in which they arise: 0 is the result of the input convolution. The layers on the way up have the
numbers of the skips that they take, and run from the last to 0.

B is the number of samples, k that of contexts for each of them: see `sdpy.models.rows`. Feature
maps have B rows until a transformer, or an embedding, brings in what depends on the context. They
have k B rows at the end of the first level, within which all large UNets attend or are told of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor, nn

from sdpy.models.attention import Transformer2DModel
from sdpy.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from sdpy.models.rows import add_rows, join_channels, repeat_rows


@dataclass(frozen=True)
class LevelConfig:
    """What the ResNets and transformers of one level have in common."""

    channels: int
    time_embed_dim: int
    norm_num_groups: int
    norm_eps: float
    cross_attention: bool
    cross_attention_dim: int
    only_cross_attention: bool
    heads: int
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

    def transformers(self, layers: Iterable[int]) -> nn.ModuleList | None:
        """Transformers of so many layers, or None at a level that does not attend to the prompt."""
        if not self.cross_attention:
            return None
        return nn.ModuleList(
            Transformer2DModel(
                self.channels,
                self.cross_attention_dim,
                heads=self.heads,
                layers=count,
                norm_num_groups=self.norm_num_groups,
                linear_projection=self.linear_projection,
                only_cross_attention=self.only_cross_attention,
            )
            for count in layers
        )


class DownBlock2D(nn.Module):
    """One level on the way down; each ResNet's transformer has its ``transformer_layers``."""

    def __init__(
        self,
        level: LevelConfig,
        *,
        in_channels: int,
        transformer_layers: Sequence[int],
        downsample: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            level.resnet(in_channels if i == 0 else level.channels)
            for i in range(len(transformer_layers))
        )
        self.attentions = level.transformers(transformer_layers)
        self.downsamplers = (
            nn.ModuleList([Downsample2D(level.channels, asymmetric_padding=False)])
            if downsample
            else None
        )

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        context: Tensor,
        count: int | None = None,
        additional_residual: Tensor | None = None,
    ) -> list[Tensor]:
        """``x`` (B or k B, C, H, W) -> the level's skips, or the first ``count``.

        ``additional_residual``, with 1, B or k B rows, is added to the last layer's result; at a
        level that does not attend to the prompt to the last skip, of half the resolution if it has
        that.
        """
        skips = []
        last = len(self.resnets) - 1
        is_halved_first = self.attentions is None and self.downsamplers is not None
        for i, resnet in islice(enumerate(self.resnets), count):
            x = resnet(x, emb)
            if self.attentions is not None:
                x = self.attentions[i](x, context)
            if i == last and additional_residual is not None and not is_halved_first:
                x = add_rows(x, additional_residual)
            skips.append(x)
        if self.downsamplers is not None and len(skips) != count:
            x = self.downsamplers[0](x)
            if additional_residual is not None and is_halved_first:
                x = add_rows(x, additional_residual)
            skips.append(x)
        return skips


class DownBlocks(nn.ModuleList):
    """The way down: the levels from the highest resolution to the lowest."""

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        context: Tensor,
        count: int | None = None,
        additional_residuals: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """Go all the way down, or only until there are ``count`` skips.

        Args:
            x: (B, C, H, W), the result of the input convolution.
            emb: (1, B or k B, time_embed_dim).
            context: (k B, S, cross_attention_dim).
            count: of skips, at least 1; None for all.
            additional_residuals: of the first levels; see `DownBlock2D.forward`.

        Returns:
            The skips, of which the first is ``x`` and the last goes to the middle. Those at the
            borders of levels have k B rows, the others B or k B.
        """
        skips = [repeat_rows(x, len(context))]
        for i, block in enumerate(self):
            if len(skips) == count:
                break
            missing = None if count is None else count - len(skips)
            residual = additional_residuals[i] if i < len(additional_residuals) else None
            skips += block(x, emb, context, missing, residual)
            x = skips[-1] = repeat_rows(skips[-1], len(context))
        return skips


class MidBlock2D(nn.Module):
    """The middle, at the lowest resolution: a transformer between two ResNets, or a single ResNet.

    Args:
        level: the last one.
        transformer_layers: None for no transformer.
    """

    def __init__(self, level: LevelConfig, *, transformer_layers: int | None) -> None:
        super().__init__()
        resnets = 1 if transformer_layers is None else 2
        self.resnets = nn.ModuleList(level.resnet(level.channels) for _ in range(resnets))
        self.attentions = (
            None if transformer_layers is None else level.transformers([transformer_layers])
        )

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.resnets[0](x, emb)
        if self.attentions is None:
            return x
        x = self.attentions[0](x, context)
        return self.resnets[1](x, emb)


class UpBlock2D(nn.Module):
    """One level on the way up; ``skip_channels`` are those of its skips, by their numbers."""

    def __init__(
        self,
        level: LevelConfig,
        *,
        in_channels: int,
        skip_channels: Sequence[int],
        transformer_layers: Sequence[int],
        upsample: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            level.resnet((in_channels if i == 0 else level.channels) + skip)
            for i, skip in enumerate(reversed(skip_channels))
        )
        self.attentions = level.transformers(transformer_layers)
        self.upsamplers = nn.ModuleList([Upsample2D(level.channels)]) if upsample else None

    def forward(
        self,
        x: Tensor,
        skips: Sequence[Tensor],
        emb: Tensor,
        context: Tensor,
        *,
        first: int = 0,
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """Run as many layers as there are skips.

        Args:
            x: (B, C, H, W) from the layer before.
            skips: those of the layers, by their numbers: the last is used first.
            emb: (1, B or k B, time_embed_dim).
            context: (k B, S, cross_attention_dim).
            first: how many of the level's layers have been run already.
            size: height and width of what follows the level, to which its last layer's result is
                upsampled; None for twice its own.
        """
        end = first + len(skips)
        for i, skip in zip(range(first, end), reversed(skips), strict=True):
            x = self.resnets[i](join_channels(x, skip), emb)
            if self.attentions is not None:
                x = self.attentions[i](x, context)
        if self.upsamplers is not None and end == len(self.resnets):
            x = self.upsamplers[0](x, size=size)
        return x


class UpBlocks(nn.ModuleList):
    """The way up: the levels from the lowest resolution to the highest."""

    def __init__(self, blocks: Iterable[UpBlock2D]) -> None:
        made = list(blocks)
        super().__init__(made)
        self.layers = [len(block.resnets) for block in made]

    def forward(
        self, x: Tensor, skips: Sequence[Tensor], emb: Tensor, context: Tensor, last: int = 0
    ) -> Tensor:
        """Go up from the layer of the last of ``skips`` to that with the number ``last``.

        Args:
            x: (B, C, H, W), what comes from below: from the middle if these are all skips.
            skips: the first of those that the way down left, by their numbers.
            emb: (1, B or k B, time_embed_dim).
            context: (k B, S, cross_attention_dim).
            last: number of the last layer to run; with 0 the result is that of the way up.

        Returns:
            What the layer above is given.
        """
        for i, block in enumerate(self, start=1):
            begin = sum(self.layers[i:])  # the number of the level's last layer
            end = begin + self.layers[i - 1]
            used = skips[max(begin, last) : end]
            if used:
                size = skips[begin - 1].shape[-2:] if begin > 0 else None
                first = max(end - len(skips), 0)
                x = block(x, used, emb, context, first=first, size=size)
        return x
