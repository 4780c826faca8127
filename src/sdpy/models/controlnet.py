"""ControlNet: a copy of the UNet's way down that looks at an image and steers the UNet by it.

Source: "Adding Conditional Control to Text-to-Image Diffusion Models" (Zhang et al., 2023); names
of parameters as in diffusers' ``ControlNetModel``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.rows import check_rows
from sdpy.models.unet import (
    UNet2DConditionConfig,
    UNetBase,
    make_down_blocks,
    make_mid_block,
    skip_channels,
)


@dataclass(frozen=True)
class ControlNetConfig:
    """Sizes of a ControlNet. The defaults are those for Stable Diffusion 1.x.

    ``unet`` is the UNet's that it steers, as an ordinary one takes 4 channels: the mask and the
    masked image of inpainting are not shown to a ControlNet.
    ``conditioning_embedding_out_channels`` has one entry a resolution, from the image's down to
    the latents'. ``controlnet_conditioning_channel_order`` is that in which it was shown colours,
    ``rgb`` or ``bgr``. With ``global_pool_conditions`` it adds the mean over all positions.
    """

    unet: UNet2DConditionConfig = UNet2DConditionConfig()
    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = "rgb"
    global_pool_conditions: bool = False


class ControlNetConditioningEmbedding(nn.Module):
    """From the image to a feature map of the latents' resolution, by convolutions."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        channels = config.conditioning_embedding_out_channels
        self.downsample_factor = 1 << (len(channels) - 1)
        self.conv_in = nn.Conv2d(config.conditioning_channels, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for here, below in zip(channels, channels[1:], strict=False):
            self.blocks.append(nn.Conv2d(here, here, 3, padding=1))
            self.blocks.append(nn.Conv2d(here, below, 3, padding=1, stride=2))
        out_channels = config.unet.block_out_channels[0]
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, conditioning_channels, f H, f W) -> (B, C, H, W), f doubled at each resolution."""
        x = F.silu(self.conv_in(image))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlNetBase(UNetBase):
    """What all ControlNets have in common: the UNet's way down, and what is made of its skips.

    Args:
        config: sizes.
    """

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config.unet)
        self._flips_colours = config.controlnet_conditioning_channel_order == "bgr"
        self._pools = config.global_pool_conditions
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(config)
        self.down_blocks = make_down_blocks(config.unet)
        self.mid_block = make_mid_block(config.unet)
        # The "zero convolutions": training begins with weights of 0, hence without any influence.
        self.controlnet_down_blocks = nn.ModuleList(
            nn.Conv2d(skip, skip, 1) for skip in skip_channels(config.unet)
        )
        lowest = config.unet.block_out_channels[-1]
        self.controlnet_mid_block = nn.Conv2d(lowest, lowest, 1)

    def embed_image(self, controlnet_cond: Tensor) -> Tensor:
        """(B, conditioning_channels, f H, f W) in [0, 1] -> (B, C, H, W)."""
        image = controlnet_cond.flip(1) if self._flips_colours else controlnet_cond
        return self.controlnet_cond_embedding(image)

    def residuals(self, x: Tensor, emb: Tensor, context: Tensor) -> tuple[list[Tensor], Tensor]:
        """What is to be added to the UNet's skips and to its middle, of what the way begins with.

        Args:
            x: (B, C, H, W), latents and image.
            emb: (1, B or k B, time_embed_dim).
            context: (k B, S, cross_attention_dim).
        """
        skips = self.down_blocks(x, emb, context)
        x = self.go_through_middle(skips[-1], emb, context)
        down_residuals = [
            convolution(skip)
            for convolution, skip in zip(self.controlnet_down_blocks, skips, strict=True)
        ]
        mid_residual = self.controlnet_mid_block(x)
        if self._pools:
            down_residuals = [one.mean(dim=(2, 3), keepdim=True) for one in down_residuals]
            mid_residual = mid_residual.mean(dim=(2, 3), keepdim=True)
        return down_residuals, mid_residual


class ControlNetModel(ControlNetBase):
    """The steering network.

    Raises:
        ValueError: a level's channels do not divide into its heads or norm groups.
    """

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        self.config = config

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        *,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        emb: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """What is to be added to the UNet's skips and to its middle, in the weights' dtype.

        Args:
            sample: (B, in_channels, H, W) noisy latents, as the UNet sees them.
            timestep: (B,) or a scalar tensor, in steps of the training schedule.
            encoder_hidden_states: (k B, S, cross_attention_dim) prompt embeddings, k for each
                sample, as for the UNet.
            controlnet_cond: (B or 1, conditioning_channels, f H, f W) in [0, 1], the image that
                steers: edges, depth, a pose, ...; its colours in the order RGB.
            text_embeds, time_ids, emb: as for the UNet, but by the ControlNet's own `embed`.

        Returns:
            ``down_block_additional_residuals`` and ``mid_block_additional_residual`` of
            `UNet2DConditionModel.forward`, with B or k B rows as the skips have them.

        Raises:
            ValueError: the number of contexts is no multiple of that of samples, or
                ``text_embeds`` and ``time_ids`` are missing.
        """
        context = encoder_hidden_states
        check_rows(sample, context)
        if emb is None:
            emb = self.embed(timestep, None, text_embeds, time_ids)
        x = self.conv_in(sample) + self.embed_image(controlnet_cond)
        return self.residuals(x, emb, context)
