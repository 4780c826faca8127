"""The sizes of ControlNet-Unions: those of ControlNets, and of what tells kinds of images apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sdpy.errors import WeightsError
from sdpy.models import ControlNetConfig, ControlNetUnionConfig
from sdpy.zoo.configs import Json, Outline, controlnet_beside, controlnet_config, count_in, size_in
from sdpy.zoo.variants import ModelVariant

TYPES = "task_embedding"
"""Only in ControlNet-Unions: what the network knows of each kind of images."""


def is_union(outline: Outline) -> bool:
    """Whether these are the names of a ControlNet-Union."""
    return TYPES in outline


def controlnet_union_config(outline: Outline, config: Json) -> ControlNetUnionConfig:
    """The sizes of a ControlNet-Union; see `sdpy.zoo.configs.unet_config`."""
    base = controlnet_config(outline, config)
    # Of these, too, there are as many for each type as for each size that a UNet is told.
    width = size_in(outline, "control_add_embedding.linear_1.weight", 1)
    sinusoids = width // max(size_in(outline, TYPES, 0), 1)
    base = replace(base, unet=replace(base.unet, addition_time_embed_dim=sinusoids))
    return _union(base, outline, config)


def union_beside(variant: ModelVariant, outline: Outline) -> ControlNetUnionConfig:
    """The sizes of a ControlNet-Union that goes with a variant's UNet.

    The kinds of images that it knows, and the layers that look at them, are its own.

    Raises:
        WeightsError: there is none for such UNets.
    """
    if variant.unet.addition_time_embed_dim is None:
        raise WeightsError(
            f"it is a ControlNet-Union for Stable Diffusion XL, and does not go with {variant.name}"
        )
    return _union(controlnet_beside(variant, outline), outline, {})


def _union(base: ControlNetConfig, outline: Outline, config: Json) -> ControlNetUnionConfig:
    channels = base.unet.block_out_channels[0]
    own: dict[str, Any] = {
        "num_control_type": size_in(outline, TYPES, 0),
        "num_trans_channel": channels,
        "num_trans_head": config.get("num_trans_head", 8),
        "num_trans_layer": count_in(outline, r"transformer_layes\.(\d+)\."),
        "num_proj_channel": channels,
    }
    return ControlNetUnionConfig(**vars(base), **own)
