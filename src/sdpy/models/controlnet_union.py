"""ControlNet-Union: one ControlNet for many kinds of images, which is told of what kind one is.

Source: "ControlNet++" (xinsir, 2024), https://github.com/xinsir6/ControlNetPlus; names of
parameters as in diffusers' ``ControlNetUnionModel``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.controlnet import ControlNetBase, ControlNetConfig
from sdpy.models.embeddings import TimestepEmbedding, timestep_embedding
from sdpy.models.rows import add_rows, check_rows


@dataclass(frozen=True)
class ControlNetUnionConfig(ControlNetConfig):
    """Sizes of a ControlNet-Union, which goes with UNets of ``addition_embed_type`` "text_time".

    ``num_control_type`` is the number of kinds of images, ``num_trans_channel`` and
    ``num_proj_channel`` are the channels of the UNet's first level, and ``num_trans_layer`` is the
    number of layers that look at the images. ``num_trans_head`` changes nothing: see
    `SingleTokenAttention`.
    """

    num_control_type: int = 6
    num_trans_channel: int = 320
    num_trans_head: int = 8
    num_trans_layer: int = 1
    num_proj_channel: int = 320

    def __post_init__(self) -> None:
        if self.unet.addition_time_embed_dim is None:
            raise ValueError("a ControlNet-Union needs addition_time_embed_dim")
        channels = self.unet.block_out_channels[0]
        if not channels == self.num_trans_channel == self.num_proj_channel:
            raise ValueError(
                f"num_trans_channel {self.num_trans_channel} and num_proj_channel "
                f"{self.num_proj_channel} for a first level of {channels} channels"
            )


class SingleTokenAttention(nn.Module):
    """Self-attention of a sequence of one token, which is a projection of that token.

    The authors' program, and diffusers, have the tokens of a sample attend to the same token of the
    other samples of a batch. For a single image, of which guidance makes equal rows, that is each
    token by itself; so it is here for any batch, as no image may depend on its neighbours. The
    projections to queries and keys then have no effect. They are there because files hold them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * channels))
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) -> (B, C)."""
        value = self.in_proj_weight.chunk(3)[2], self.in_proj_bias.chunk(3)[2]
        return self.out_proj(F.linear(x, *value))


class ResidualAttentionMlp(nn.Module):
    """Two linear layers with CLIP's approximation of GELU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(channels, 4 * channels)
        self.c_proj = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) -> (B, C)."""
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x))


class ResidualAttentionBlock(nn.Module):
    """A layer of a transformer, as CLIP has them, of one token."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = SingleTokenAttention(channels)
        self.ln_1 = nn.LayerNorm(channels, eps=1e-5)
        self.mlp = ResidualAttentionMlp(channels)
        self.ln_2 = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) -> (B, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class ControlNetUnionModel(ControlNetBase):
    """The steering network.

    Raises:
        ValueError: a level's channels do not divide into its heads or norm groups.
    """

    def __init__(self, config: ControlNetUnionConfig) -> None:
        super().__init__(config)
        self.config = config
        channels, kinds = config.num_trans_channel, config.num_control_type
        self.task_embedding = nn.Parameter(torch.empty(kinds, channels))
        self.transformer_layes = nn.ModuleList(  # diffusers' name, and the files'
            ResidualAttentionBlock(channels) for _ in range(config.num_trans_layer)
        )
        self.spatial_ch_projs = nn.Linear(channels, config.num_proj_channel)
        sinusoids = config.unet.addition_time_embed_dim
        assert sinusoids is not None, "the configuration was checked"
        self._type_sinusoids = sinusoids
        self.control_add_embedding = TimestepEmbedding(
            sinusoids * kinds, config.unet.time_embed_dim
        )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        images: Sequence[Tensor],
        control_types: Sequence[int],
        scales: Sequence[float],
        *,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """What is to be added to the UNet's skips and to its middle; see `ControlNetModel.forward`.

        Args:
            sample, timestep, encoder_hidden_states, text_embeds, time_ids: as there.
            images: at least one, each as ``controlnet_cond`` there.
            control_types: of what kind each is, from 0.
            scales: how much each counts. That of a single one is a factor of the result; those of
                several are factors of what the network is shown.

        Raises:
            ValueError: as there.
        """
        context = encoder_hidden_states
        check_rows(sample, context)
        emb = self.embed(timestep, None, text_embeds, time_ids)
        emb = add_rows(emb, self.embed_types(control_types))
        x = self.conv_in(sample)
        alone = len(images) == 1
        for image, kind, scale in zip(images, control_types, scales, strict=True):
            x = add_rows(x, self.look_at(image, kind, 1.0 if alone else scale))
        down, mid = self.residuals(x, emb, context)
        if not alone:
            return down, mid
        return [scales[0] * one for one in down], scales[0] * mid

    def embed_types(self, control_types: Sequence[int]) -> Tensor:
        """What every ResNet is told of the kinds of images, (1, time_embed_dim)."""
        flags = torch.zeros(self.config.num_control_type, device=self.device)
        for kind in control_types:
            flags[kind] = 1  # a list that is copied to a GPU would have to be waited for
        sinusoids = timestep_embedding(flags, self._type_sinusoids).view(1, -1)
        # On a CPU, products of a single row are rounded otherwise than those of two.
        return self.control_add_embedding(sinusoids.to(self.dtype).expand(2, -1))[:1]

    def look_at(self, image: Tensor, control_type: int, scale: float) -> Tensor:
        """What an image adds to the latents' features.

        Args:
            image: (B or 1, conditioning_channels, f H, f W).
            control_type: its kind.
            scale: how much it counts.

        Returns:
            (B or 1, C, H, W).
        """
        shown = self.embed_image(image)
        token = scale * (shown.mean(dim=(2, 3)) + self.task_embedding[control_type])
        for layer in self.transformer_layes:
            token = layer(token)
        return scale * (shown + self.spatial_ch_projs(token)[:, :, None, None])
