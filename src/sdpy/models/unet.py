"""The UNet that predicts the noise (or velocity) in latents, given the time and the prompt.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al., 2022);
names of parameters as in diffusers' ``UNet2DConditionModel``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.base import ModelMixin
from sdpy.models.embeddings import TimestepEmbedding, timestep_embedding
from sdpy.models.rows import add_rows, check_rows
from sdpy.models.unet_blocks import (
    DownBlock2D,
    DownBlocks,
    LevelConfig,
    MidBlock2D,
    UpBlock2D,
    UpBlocks,
)

TransformerLayers = int | tuple[int | tuple[int, ...], ...]
"""Layers of the transformers: of all, of those of each level, or of each of a level's blocks."""

MID_BLOCK_TYPES = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)
"""Two ResNets around a transformer; a single ResNet; nothing at all."""


@dataclass(frozen=True)
class UNet2DConditionConfig:
    """Sizes of a UNet. The defaults are those of Stable Diffusion 1.x.

    The tuples have one entry a level, from the highest resolution to the lowest:
    ``block_out_channels``, ``cross_attention`` (does the level attend to the prompt),
    ``attention_heads`` and, where levels differ, ``layers_per_block``, ``only_cross_attention``
    (does the level attend to the prompt where others attend to themselves) and
    ``transformer_layers_per_block``. An entry of the latter may be a tuple itself, of a number for
    each of the level's ``layers_per_block`` transformers; then
    ``reverse_transformer_layers_per_block`` says them for the way up, from the lowest resolution to
    the highest, with one number more a level. The middle has the last level's heads, and as many
    layers as its first transformer; for ``mid_block_type`` see `MID_BLOCK_TYPES`.

    ``time_cond_proj_dim`` is the width of the guidance scale's embedding in UNets that take one
    (latent consistency models); None in all others. UNets of ``addition_embed_type`` "text_time"
    (Stable Diffusion XL) are told the prompt's pooled embedding and sizes of the image:
    ``addition_time_embed_dim`` sinusoids for each of these numbers, and
    ``projection_class_embeddings_input_dim`` channels together with the former.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    cross_attention: tuple[bool, ...] = (True, True, True, False)
    attention_heads: tuple[int, ...] = (8, 8, 8, 8)
    layers_per_block: int | tuple[int, ...] = 2
    only_cross_attention: bool | tuple[bool, ...] = False
    transformer_layers_per_block: TransformerLayers = 1
    reverse_transformer_layers_per_block: TransformerLayers | None = None
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    cross_attention_dim: int = 768
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    time_cond_proj_dim: int | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        if not levels == len(self.cross_attention) == len(self.attention_heads):
            raise ValueError(
                f"{levels} block_out_channels, {len(self.cross_attention)} cross_attention and "
                f"{len(self.attention_heads)} attention_heads: one of each a level is needed"
            )
        for name in ("layers_per_block", "only_cross_attention"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ValueError(f"{len(value)} {name} for {levels} levels")
        if self.mid_block_type not in MID_BLOCK_TYPES:
            raise ValueError(f"mid_block_type {self.mid_block_type}: use one of {MID_BLOCK_TYPES}")
        if not any(self.cross_attention) and self.mid_block_type != MID_BLOCK_TYPES[0]:
            raise ValueError("neither a level nor the middle attends to the prompt")
        if self.addition_embed_type not in (None, "text_time"):
            raise ValueError(f"addition_embed_type {self.addition_embed_type}: use text_time")
        widths = (self.addition_time_embed_dim, self.projection_class_embeddings_input_dim)
        if self.addition_embed_type is not None and None in widths:
            raise ValueError(
                "addition_embed_type text_time needs addition_time_embed_dim and "
                "projection_class_embeddings_input_dim"
            )

    @property
    def time_embed_dim(self) -> int:
        """Channels of the time embedding: four times those of the first level."""
        return 4 * self.block_out_channels[0]

    def layers(self, level: int) -> int:
        """ResNets of a level on the way down; on the way up there is one more."""
        layers = self.layers_per_block
        return layers if isinstance(layers, int) else layers[level]

    def attends_only_to_prompt(self, level: int) -> bool:
        """Whether a level's transformers do not attend to themselves; the middle's always do."""
        only = self.only_cross_attention
        return only if isinstance(only, bool) else only[level]

    def transformer_layers(self, level: int) -> tuple[int, ...]:
        """Layers of each transformer of a level on the way down, in the order of their use.

        Raises:
            ValueError: there is not one number for each level, or for each block of one.
        """
        numbers = self._of_level(self.transformer_layers_per_block, level)
        return _of_each(numbers, self.layers(level))

    def reverse_transformer_layers(self, level: int) -> tuple[int, ...]:
        """The same for the way up; ``level`` still counts from the highest resolution.

        Raises:
            ValueError: as above, or the way down has a number for each block, the way up none.
        """
        reverse, blocks = self.reverse_transformer_layers_per_block, self.layers(level) + 1
        if reverse is not None:
            return _of_each(self._of_level(reverse, -1 - level), blocks)
        numbers = self._of_level(self.transformer_layers_per_block, level)
        if not isinstance(numbers, int):
            raise ValueError(
                f"transformer_layers_per_block has {numbers} for level {level}: "
                "reverse_transformer_layers_per_block is needed, too"
            )
        return _of_each(numbers, blocks)

    def _of_level(self, layers: TransformerLayers, level: int) -> int | tuple[int, ...]:
        if isinstance(layers, int):
            return layers
        if len(layers) != len(self.block_out_channels):
            raise ValueError(
                f"{len(layers)} numbers of transformer layers for "
                f"{len(self.block_out_channels)} levels"
            )
        return layers[level]


def _of_each(numbers: int | tuple[int, ...], blocks: int) -> tuple[int, ...]:
    numbers = (numbers,) * blocks if isinstance(numbers, int) else numbers
    if len(numbers) != blocks:
        raise ValueError(f"{len(numbers)} numbers of transformer layers for {blocks} blocks")
    return numbers


class UNetBase(ModelMixin):
    """What a UNet and a ControlNet have in common: how they begin, and what they are told.

    Args:
        config: sizes of the UNet.
    """

    mid_block: MidBlock2D | None

    def __init__(self, config: UNet2DConditionConfig) -> None:
        super().__init__()
        channels, time_embed_dim = config.block_out_channels[0], config.time_embed_dim
        self._sinusoids, self._added_sinusoids = channels, config.addition_time_embed_dim
        self.conv_in = nn.Conv2d(config.in_channels, channels, 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels, time_embed_dim, config.time_cond_proj_dim)
        self.add_embedding = (
            None
            if config.projection_class_embeddings_input_dim is None
            else TimestepEmbedding(config.projection_class_embeddings_input_dim, time_embed_dim)
        )

    def embed(
        self,
        timestep: Tensor,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """All that every ResNet is told, (1, B or k B, time_embed_dim), in the weights' dtype.

        Args:
            timestep: (B,) or a scalar tensor.
            timestep_cond: see `embed_time`.
            text_embeds, time_ids: see `embed_added_conditions`.

        Raises:
            ValueError: the network needs ``text_embeds`` and ``time_ids``.
        """
        emb = self.embed_time(timestep.reshape(-1), timestep_cond)
        if self.add_embedding is None:
            return emb
        if text_embeds is None or time_ids is None:
            raise ValueError("addition_embed_type text_time needs text_embeds and time_ids")
        return add_rows(emb, self.embed_added_conditions(text_embeds, time_ids))

    def embed_time(self, timesteps: Tensor, timestep_cond: Tensor | None = None) -> Tensor:
        """Embed timesteps, and the guidance scale in UNets that were trained to take it.

        Args:
            timesteps: (1 or N,), in steps of the training schedule.
            timestep_cond: (1 or N, time_cond_proj_dim), see `guidance_scale_embedding`.

        Returns:
            (N, time_embed_dim), in the dtype of the weights.
        """
        rows = len(timesteps) if timestep_cond is None else max(len(timesteps), len(timestep_cond))
        # On a CPU, products of a single row are rounded otherwise than those of two.
        timesteps = timesteps.expand(2) if rows == 1 else timesteps
        sinusoids = timestep_embedding(timesteps, self._sinusoids).to(self.dtype)
        cond = None if timestep_cond is None else timestep_cond.to(self.dtype)
        return self.time_embedding(sinusoids, cond)[:rows]

    def embed_added_conditions(self, text_embeds: Tensor, time_ids: Tensor) -> Tensor:
        """Embed what networks of ``addition_embed_type`` "text_time" are told beside the time.

        Args:
            text_embeds: (N, P) pooled embeddings of prompts.
            time_ids: (N, 6): height and width of the image that was resized, top and left of what
                was cropped from it, height and width of the result, in pixels.

        Returns:
            (N, time_embed_dim), to be added to `embed_time`'s, in the dtype of the weights.

        Raises:
            ValueError: the network has no such embedding.

        Source: "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis"
        (Podell et al., 2023), section 2.2.
        """
        if self.add_embedding is None or self._added_sinusoids is None:
            raise ValueError("text_embeds and time_ids are for addition_embed_type text_time only")
        sinusoids = timestep_embedding(time_ids.flatten(), self._added_sinusoids)
        added = torch.cat([text_embeds, sinusoids.view(len(time_ids), -1).to(text_embeds)], dim=-1)
        return self.add_embedding(added.to(self.dtype))

    def go_through_middle(
        self, x: Tensor, emb: Tensor, context: Tensor, additional_residual: Tensor | None = None
    ) -> Tensor:
        """(B or k B, C, H, W) -> (k B, C, H, W), or itself if the network has no middle.

        ``additional_residual``, with 1, B or k B rows, is added to the middle's result.
        """
        if self.mid_block is None:
            return x
        x = self.mid_block(x, emb, context)
        return x if additional_residual is None else add_rows(x, additional_residual)


class UNet2DConditionModel(UNetBase):
    """The denoising network.

    Raises:
        ValueError: a level's channels do not divide into its heads or norm groups.
    """

    def __init__(self, config: UNet2DConditionConfig) -> None:
        super().__init__(config)
        self.config = config
        self.down_blocks = make_down_blocks(config)
        self.mid_block = make_mid_block(config)
        self.up_blocks = make_up_blocks(config)
        channels = config.block_out_channels[0]
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-5)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        emb: Tensor | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] = (),
    ) -> Tensor:
        """Predict the noise, or what else the weights were trained to predict.

        Args:
            sample: (B, in_channels, H, W) noisy latents, any H and W.
            timestep: (B,) or a scalar tensor, in steps of the training schedule.
            encoder_hidden_states: (k B, S, cross_attention_dim) prompt embeddings, k for each
                sample: rows i, B + i, 2 B + i, ... belong to sample i. What does not depend on
                them is computed once.
            timestep_cond: (1 or B, time_cond_proj_dim) `guidance_scale_embedding`, only for UNets
                that have such a width.
            text_embeds: (1, B or k B, P) pooled prompt embeddings, for UNets of
                ``addition_embed_type`` "text_time", and
            time_ids: (1, B or k B, 6) sizes: see `embed_added_conditions`.
            emb: (1, B or k B, time_embed_dim), what `embed` makes of the time and the conditions,
                if that was done before; these are not looked at then.
            down_block_additional_residuals: what ControlNets add to the skips, one tensor of each
                skip's size, with B or k B rows.
            mid_block_additional_residual: what they add to the middle's result.
            down_intrablock_additional_residuals: what T2I-Adapters add on the way down, with 1, B
                or k B rows: one tensor for each level, and one for the middle where it takes part.

        Returns:
            (k B, out_channels, H, W), in the dtype of the weights.

        Raises:
            ValueError: the number of contexts is no multiple of that of samples, or
                ``text_embeds`` and ``time_ids`` are missing.
        """
        context = encoder_hidden_states
        check_rows(sample, context)
        if emb is None:
            emb = self.embed(timestep, timestep_cond, text_embeds, time_ids)

        features = down_intrablock_additional_residuals
        skips = self.down_blocks(self.conv_in(sample), emb, context, additional_residuals=features)
        x = self.go_through_middle(skips[-1], emb, context, self.residual_of_middle(features))
        if down_block_additional_residuals is not None:
            skips = add_residuals(skips, down_block_additional_residuals)
        if mid_block_additional_residual is not None:
            x = add_rows(x, mid_block_additional_residual)
        x = self.up_blocks(x, skips, emb, context)
        return self.predict(x)

    def residual_of_middle(self, features: Sequence[Tensor]) -> Tensor | None:
        """Of what T2I-Adapters add, that which the levels on the way down leave over."""
        left = features[len(self.config.block_out_channels) :]
        return left[0] if left else None

    def predict(self, x: Tensor) -> Tensor:
        """The result of the way up, (k B, C, H, W), to that of the UNet."""
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def add_residuals(skips: Sequence[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    """What a ControlNet adds to the skips, as many as there are."""
    return [add_rows(skip, residual) for skip, residual in zip(skips, residuals, strict=True)]


# The half that a ControlNet copies, and the other one


def make_down_blocks(config: UNet2DConditionConfig) -> DownBlocks:
    """The levels on the way down; all but the last end with half the resolution."""
    channels = config.block_out_channels
    return DownBlocks(
        DownBlock2D(
            _level(config, i),
            in_channels=channels[max(i - 1, 0)],
            transformer_layers=config.transformer_layers(i),
            downsample=i < len(channels) - 1,
        )
        for i in range(len(channels))
    )


def make_mid_block(config: UNet2DConditionConfig) -> MidBlock2D | None:
    """The middle, if there is one."""
    last = len(config.block_out_channels) - 1
    if config.mid_block_type is None:
        return None
    attends = config.mid_block_type == "UNetMidBlock2DCrossAttn"
    layers = config.transformer_layers(last)[0] if attends else None
    return MidBlock2D(_level(config, last, attend=attends), transformer_layers=layers)


def make_up_blocks(config: UNet2DConditionConfig) -> UpBlocks:
    """The levels on the way up; all but the last end with twice the resolution."""
    channels = config.block_out_channels
    layers = [config.layers(i) + 1 for i in range(len(channels))]
    skips = skip_channels(config)
    return UpBlocks(
        UpBlock2D(
            _level(config, i),
            in_channels=channels[min(i + 1, len(channels) - 1)],
            skip_channels=skips[sum(layers[:i]) : sum(layers[: i + 1])],
            transformer_layers=config.reverse_transformer_layers(i),
            upsample=i > 0,
        )
        for i in reversed(range(len(channels)))
    )


def skip_channels(config: UNet2DConditionConfig) -> list[int]:
    """Channels of the skips, in the order in which they arise: the input, then level by level."""
    channels = config.block_out_channels
    skips = [channels[0]]
    for i, count in enumerate(channels):
        skips += [count] * (config.layers(i) + (i < len(channels) - 1))
    return skips


def _level(config: UNet2DConditionConfig, i: int, *, attend: bool | None = None) -> LevelConfig:
    return LevelConfig(
        channels=config.block_out_channels[i],
        time_embed_dim=config.time_embed_dim,
        norm_num_groups=config.norm_num_groups,
        norm_eps=1e-5,
        cross_attention=config.cross_attention[i] if attend is None else attend,
        cross_attention_dim=config.cross_attention_dim,
        only_cross_attention=attend is None and config.attends_only_to_prompt(i),
        heads=config.attention_heads[i],
        linear_projection=config.use_linear_projection,
    )
