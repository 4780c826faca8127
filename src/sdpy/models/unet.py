"""The UNet that predicts the noise (or velocity) in latents, given the time and the prompt.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al., 2022);
names of parameters as in diffusers' ``UNet2DConditionModel``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class UNet2DConditionConfig:
    """Sizes of a UNet. The defaults are those of Stable Diffusion 1.x.

    The tuples have one entry a level, from the highest resolution to the lowest:
    ``block_out_channels``, ``cross_attention`` (does the level attend to the prompt) and
    ``attention_heads``. The middle attends to the prompt always, with the last level's heads.
    ``time_cond_proj_dim`` is the width of the guidance scale's embedding in UNets that take one
    (latent consistency models); None in all others.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    cross_attention: tuple[bool, ...] = (True, True, True, False)
    attention_heads: tuple[int, ...] = (8, 8, 8, 8)
    layers_per_block: int = 2
    transformer_layers_per_block: int = 1
    cross_attention_dim: int = 768
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    time_cond_proj_dim: int | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        if not levels == len(self.cross_attention) == len(self.attention_heads):
            raise ValueError(
                f"{levels} block_out_channels, {len(self.cross_attention)} cross_attention and "
                f"{len(self.attention_heads)} attention_heads: one of each a level is needed"
            )

    @property
    def time_embed_dim(self) -> int:
        """Channels of the time embedding: four times those of the first level."""
        return 4 * self.block_out_channels[0]


class UNet2DConditionModel(ModelMixin):
    """The denoising network.

    Raises:
        ValueError: a level's channels do not divide into its heads or norm groups.
    """

    def __init__(self, config: UNet2DConditionConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = make_time_embedding(config)
        self.down_blocks = make_down_blocks(config)
        self.mid_block = make_mid_block(config)
        self.up_blocks = make_up_blocks(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], eps=1e-5)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        timestep_cond: Tensor | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
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
            down_block_additional_residuals: what ControlNets add to the skips, one tensor of each
                skip's size, with B or k B rows.
            mid_block_additional_residual: what they add to the middle's result.

        Returns:
            (k B, out_channels, H, W), in the dtype of the weights.

        Raises:
            ValueError: the number of contexts is no multiple of that of samples.
        """
        context = encoder_hidden_states
        check_rows(sample, context)
        emb = self.embed_time(timestep.reshape(-1), timestep_cond)

        skips = self.down_blocks(self.conv_in(sample), emb, context)
        x = self.mid_block(skips[-1], emb, context)
        if down_block_additional_residuals is not None:
            skips = add_residuals(skips, down_block_additional_residuals)
        if mid_block_additional_residual is not None:
            x = add_rows(x, mid_block_additional_residual)
        x = self.up_blocks(x, skips, emb, context)
        return self.predict(x)

    def predict(self, x: Tensor) -> Tensor:
        """The result of the way up, (k B, C, H, W), to that of the UNet."""
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def embed_time(self, timesteps: Tensor, condition: Tensor | None = None) -> Tensor:
        """``timesteps`` (N,), ``condition`` (1 or N, time_cond_proj_dim) -> (N, time_embed_dim)."""
        sinusoids = timestep_embedding(timesteps, self.config.block_out_channels[0])
        condition = None if condition is None else condition.to(self.dtype)
        return self.time_embedding(sinusoids.to(self.dtype), condition)


def add_residuals(skips: Sequence[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    """What a ControlNet adds to the skips, as many as there are."""
    return [add_rows(skip, residual) for skip, residual in zip(skips, residuals, strict=True)]


# The half that a ControlNet copies


def make_time_embedding(config: UNet2DConditionConfig) -> TimestepEmbedding:
    """From sinusoids to the time embedding."""
    return TimestepEmbedding(
        config.block_out_channels[0], config.time_embed_dim, config.time_cond_proj_dim
    )


def make_down_blocks(config: UNet2DConditionConfig) -> DownBlocks:
    """The levels on the way down; all but the last end with half the resolution."""
    channels = config.block_out_channels
    return DownBlocks(
        DownBlock2D(
            _level(config, i),
            in_channels=channels[max(i - 1, 0)],
            layers=config.layers_per_block,
            downsample=i < len(channels) - 1,
        )
        for i in range(len(channels))
    )


def make_mid_block(config: UNet2DConditionConfig) -> MidBlock2D:
    """The middle."""
    return MidBlock2D(_level(config, len(config.block_out_channels) - 1, attend=True))


def make_up_blocks(config: UNet2DConditionConfig) -> UpBlocks:
    """The levels on the way up; all but the last end with twice the resolution."""
    channels, layers = config.block_out_channels, config.layers_per_block + 1
    skips = skip_channels(config)
    return UpBlocks(
        (
            UpBlock2D(
                _level(config, i),
                in_channels=channels[min(i + 1, len(channels) - 1)],
                skip_channels=skips[i * layers : (i + 1) * layers],
                upsample=i > 0,
            )
            for i in reversed(range(len(channels)))
        ),
        layers,
    )


def skip_channels(config: UNet2DConditionConfig) -> list[int]:
    """Channels of the skips, in the order in which they arise: the input, then level by level."""
    channels = config.block_out_channels
    skips = [channels[0]]
    for i, count in enumerate(channels):
        skips += [count] * (config.layers_per_block + (i < len(channels) - 1))
    return skips


def _level(config: UNet2DConditionConfig, i: int, *, attend: bool = False) -> LevelConfig:
    return LevelConfig(
        channels=config.block_out_channels[i],
        time_embed_dim=config.time_embed_dim,
        norm_num_groups=config.norm_num_groups,
        norm_eps=1e-5,
        cross_attention=config.cross_attention[i] or attend,
        cross_attention_dim=config.cross_attention_dim,
        heads=config.attention_heads[i],
        transformer_layers=config.transformer_layers_per_block,
        linear_projection=config.use_linear_projection,
    )
