"""The networks of Stable Diffusion, written in plain torch; each with a frozen configuration."""

from __future__ import annotations

from sdpy.models.clip import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from sdpy.models.controlnet import ControlNetConfig, ControlNetModel
from sdpy.models.controlnet_union import ControlNetUnionConfig, ControlNetUnionModel
from sdpy.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from sdpy.models.taesd import AutoencoderTiny, AutoencoderTinyConfig
from sdpy.models.unet import UNet2DConditionConfig, UNet2DConditionModel
from sdpy.models.vae import AutoencoderKL, AutoencoderKLConfig, DiagonalGaussian

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "AutoencoderTiny",
    "AutoencoderTinyConfig",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "ControlNetConfig",
    "ControlNetModel",
    "ControlNetUnionConfig",
    "ControlNetUnionModel",
    "DiagonalGaussian",
    "T2IAdapter",
    "T2IAdapterConfig",
    "UNet2DConditionConfig",
    "UNet2DConditionModel",
]
