"""The sizes of models as diffusers' and transformers' JSON files have them.

`sdpy.zoo.configs` reads what is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdpy.components import components_with_role
from sdpy.models import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    CLIPTextConfig,
    ControlNetConfig,
    ControlNetUnionConfig,
    T2IAdapterConfig,
    UNet2DConditionConfig,
)
from sdpy.models.taesd import LATENT_MAGNITUDE
from sdpy.schedulers import NoiseConfig
from sdpy.schedulers.registry import SCHEDULERS
from sdpy.zoo.variants import ModelVariant


def unet_json(config: UNet2DConditionConfig, sample_size: int) -> dict[str, Any]:
    """``unet/config.json``; ``sample_size`` is the side of the latents."""
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": config.addition_embed_type,
        "addition_time_embed_dim": config.addition_time_embed_dim,
        "attention_head_dim": list(config.attention_heads),
        "block_out_channels": list(config.block_out_channels),
        "center_input_sample": False,
        "cross_attention_dim": config.cross_attention_dim,
        "down_block_types": [_block("Down", attends) for attends in config.cross_attention],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_scale_factor": 1,
        "mid_block_type": config.mid_block_type,
        "norm_eps": 1e-05,
        "norm_num_groups": config.norm_num_groups,
        "only_cross_attention": config.only_cross_attention,
        "out_channels": config.out_channels,
        "projection_class_embeddings_input_dim": config.projection_class_embeddings_input_dim,
        "reverse_transformer_layers_per_block": config.reverse_transformer_layers_per_block,
        "sample_size": sample_size,
        "time_cond_proj_dim": config.time_cond_proj_dim,
        "transformer_layers_per_block": config.transformer_layers_per_block,
        "up_block_types": [_block("Up", attends) for attends in reversed(config.cross_attention)],
        "use_linear_projection": config.use_linear_projection,
    }


def controlnet_json(config: ControlNetConfig) -> dict[str, Any]:
    """``config.json`` of a ControlNet's own folder."""
    unet = unet_json(config.unet, 0)
    of_unets = {
        *("center_input_sample", "out_channels", "reverse_transformer_layers_per_block"),
        *("sample_size", "time_cond_proj_dim", "up_block_types"),
    }
    return {
        **{name: value for name, value in unet.items() if name not in of_unets},
        "_class_name": "ControlNetModel",
        "conditioning_channels": config.conditioning_channels,
        "conditioning_embedding_out_channels": list(config.conditioning_embedding_out_channels),
        "controlnet_conditioning_channel_order": config.controlnet_conditioning_channel_order,
        "global_pool_conditions": config.global_pool_conditions,
    }


def controlnet_union_json(config: ControlNetUnionConfig) -> dict[str, Any]:
    """``config.json`` of a ControlNet-Union's own folder."""
    shared = controlnet_json(config)
    del shared["mid_block_type"]
    return {
        **shared,
        "_class_name": "ControlNetUnionModel",
        "num_control_type": config.num_control_type,
        "num_proj_channel": config.num_proj_channel,
        "num_trans_channel": config.num_trans_channel,
        "num_trans_head": config.num_trans_head,
        "num_trans_layer": config.num_trans_layer,
    }


def t2i_adapter_json(config: T2IAdapterConfig) -> dict[str, Any]:
    """``config.json`` of a T2I-Adapter's own folder."""
    return {
        "_class_name": "T2IAdapter",
        "adapter_type": config.adapter_type,
        "channels": list(config.channels),
        "downscale_factor": config.downscale_factor,
        "in_channels": config.in_channels,
        "num_res_blocks": config.num_res_blocks,
    }


def _block(direction: str, attends: bool) -> str:
    return f"CrossAttn{direction}Block2D" if attends else f"{direction}Block2D"


def vae_json(config: AutoencoderKLConfig, sample_size: int) -> dict[str, Any]:
    """``vae/config.json``; ``sample_size`` is the side of the images."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": config.force_upcast,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "out_channels": config.out_channels,
        "sample_size": sample_size,
        "scaling_factor": config.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def tiny_vae_json(config: AutoencoderTinyConfig) -> dict[str, Any]:
    """``vae/config.json`` of a tiny autoencoder."""
    return {
        "_class_name": "AutoencoderTiny",
        "act_fn": "relu",
        "decoder_block_out_channels": [config.channels] * len(config.decoder_blocks),
        "encoder_block_out_channels": [config.channels] * len(config.encoder_blocks),
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "latent_magnitude": LATENT_MAGNITUDE,
        "num_decoder_blocks": list(config.decoder_blocks),
        "num_encoder_blocks": list(config.encoder_blocks),
        "out_channels": config.out_channels,
        "scaling_factor": config.scaling_factor,
    }


def text_encoder_json(config: CLIPTextConfig, pad_id: int | None) -> dict[str, Any]:
    """``text_encoder/config.json``."""
    end = config.vocab_size - 1
    return {
        "architectures": [
            "CLIPTextModel" if config.projection_dim is None else "CLIPTextModelWithProjection"
        ],
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "hidden_act": config.hidden_act,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "clip_text_model",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "pad_token_id": end if pad_id is None else pad_id,
        "projection_dim": config.hidden_size
        if config.projection_dim is None
        else config.projection_dim,
        "vocab_size": config.vocab_size,
    }


def scheduler_json(
    noise: NoiseConfig, timestep_spacing: str, sampler: str = "ddim"
) -> dict[str, Any]:
    """``scheduler/scheduler_config.json``; ``sampler`` is one that diffusers has."""
    return {
        "_class_name": scheduler_class(sampler),
        "beta_end": noise.beta_end,
        "beta_schedule": noise.beta_schedule,
        "beta_start": noise.beta_start,
        "clip_sample": False,
        "num_train_timesteps": noise.num_train_timesteps,
        "prediction_type": noise.prediction_type,
        "rescale_betas_zero_snr": noise.rescale_betas_zero_snr,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "trained_betas": None if noise.trained_betas is None else list(noise.trained_betas),
        # diffusers does not know the original program's spacing; this is the nearest.
        "timestep_spacing": "leading" if timestep_spacing == "original" else timestep_spacing,
    }


def scheduler_class(sampler: str) -> str:
    """What diffusers calls a sampler; that of DDIM where it has none under its name."""
    classes = (name for name in SCHEDULERS[sampler].aliases if name.endswith("Scheduler"))
    return next(classes, "DDIMScheduler")


def model_index_json(
    variant: ModelVariant, classes: Mapping[str, tuple[str, str]], *, has_tokenizer: bool
) -> dict[str, Any]:
    """``model_index.json`` of a pipeline.

    Args:
        variant: of the model.
        classes: library and class of its components, by name.
        has_tokenizer: whether its text encoders' tokenizers are there.
    """
    none: list[str | None] = [None, None]
    encoders = components_with_role("text_encoder")
    tokenizers = {
        str(row.tokenizer): ["transformers", "CLIPTokenizer"]
        if has_tokenizer and row.name in classes
        else none
        for row in (encoders if variant.size_conditions else encoders[:1])
    }
    return {
        "_class_name": _pipeline_class(variant),
        "feature_extractor": none,
        "image_encoder": none,
        "scheduler": ["diffusers", scheduler_class(variant.scheduler)],
        "text_encoder": none,
        **tokenizers,
        **{name: list(named) for name, named in classes.items()},
        **_pipeline_options(variant, none),
    }


def _pipeline_class(variant: ModelVariant) -> str:
    xl = "XL" if variant.size_conditions else ""
    if "aesthetic_score" in variant.size_conditions:
        return "StableDiffusionXLImg2ImgPipeline"
    inpaints = variant.unet.in_channels > variant.unet.out_channels
    return f"StableDiffusion{xl}{'Inpaint' if inpaints else ''}Pipeline"


def _pipeline_options(variant: ModelVariant, none: list[str | None]) -> dict[str, Any]:
    if not variant.size_conditions:
        return {"requires_safety_checker": False, "safety_checker": none}
    options: dict[str, Any] = {"force_zeros_for_empty_prompt": variant.force_zeros_for_empty_prompt}
    if "aesthetic_score" in variant.size_conditions:
        options["requires_aesthetics_score"] = True
    return options
