"""diffusers' and transformers' models and schedulers for configurations of sdpy."""

from __future__ import annotations

import diffusers
import transformers
from torch import Tensor, nn

from sdpy.models import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    CLIPTextConfig,
    ControlNetConfig,
    ControlNetUnionConfig,
    T2IAdapterConfig,
    UNet2DConditionConfig,
)
from sdpy.schedulers import NoiseConfig


def reference_text_encoder(config: CLIPTextConfig, **changes: object) -> nn.Module:
    return transformers.CLIPTextModel(_text_config(config, **changes)).eval()


def reference_text_encoder_2(config: CLIPTextConfig, **changes: object) -> nn.Module:
    sizes = _text_config(config, projection_dim=config.projection_dim, **changes)
    return transformers.CLIPTextModelWithProjection(sizes).eval()


def _text_config(config: CLIPTextConfig, **changes: object) -> transformers.CLIPTextConfig:
    options = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": config.hidden_act,
        "bos_token_id": config.vocab_size - 2,
        "eos_token_id": config.vocab_size - 1,
    }
    return transformers.CLIPTextConfig(**{**options, **changes})


def reference_unet(config: UNet2DConditionConfig, **changes: object) -> nn.Module:
    attends = config.cross_attention
    options = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.block_out_channels,
        "down_block_types": [_block("Down", a) for a in attends],
        "up_block_types": [_block("Up", a) for a in reversed(attends)],
        # the number of heads, in spite of its name
        "attention_head_dim": config.attention_heads,
        "layers_per_block": config.layers_per_block,
        "transformer_layers_per_block": config.transformer_layers_per_block,
        "only_cross_attention": config.only_cross_attention,
        "cross_attention_dim": config.cross_attention_dim,
        "use_linear_projection": config.use_linear_projection,
        "norm_num_groups": config.norm_num_groups,
        "time_cond_proj_dim": config.time_cond_proj_dim,
        "reverse_transformer_layers_per_block": config.reverse_transformer_layers_per_block,
        "mid_block_type": config.mid_block_type,
        **_added_conditions(config),
    }
    return diffusers.UNet2DConditionModel(**{**options, **changes}).eval()


def _added_conditions(config: UNet2DConditionConfig) -> dict[str, object]:
    return {
        "addition_embed_type": config.addition_embed_type,
        "addition_time_embed_dim": config.addition_time_embed_dim,
        "projection_class_embeddings_input_dim": config.projection_class_embeddings_input_dim,
    }


def _block(direction: str, attends: bool) -> str:
    return f"CrossAttn{direction}Block2D" if attends else f"{direction}Block2D"


def reference_controlnet(config: ControlNetConfig, **changes: object) -> nn.Module:
    unet = config.unet
    options = {
        "in_channels": unet.in_channels,
        "conditioning_channels": config.conditioning_channels,
        "conditioning_embedding_out_channels": config.conditioning_embedding_out_channels,
        "block_out_channels": unet.block_out_channels,
        "down_block_types": [_block("Down", a) for a in unet.cross_attention],
        # the number of heads, in spite of its name
        "attention_head_dim": unet.attention_heads,
        "layers_per_block": unet.layers_per_block,
        "transformer_layers_per_block": unet.transformer_layers_per_block,
        "cross_attention_dim": unet.cross_attention_dim,
        "use_linear_projection": unet.use_linear_projection,
        "norm_num_groups": unet.norm_num_groups,
        "mid_block_type": unet.mid_block_type,
        **_added_conditions(unet),
    }
    return diffusers.ControlNetModel(**{**options, **changes}).eval()


def reference_controlnet_union(config: ControlNetUnionConfig) -> nn.Module:
    unet = config.unet
    return diffusers.ControlNetUnionModel(
        in_channels=unet.in_channels,
        conditioning_channels=config.conditioning_channels,
        conditioning_embedding_out_channels=config.conditioning_embedding_out_channels,
        block_out_channels=unet.block_out_channels,
        down_block_types=[_block("Down", a) for a in unet.cross_attention],
        # the number of heads, in spite of its name
        attention_head_dim=unet.attention_heads,
        layers_per_block=unet.layers_per_block,
        transformer_layers_per_block=unet.transformer_layers_per_block,
        cross_attention_dim=unet.cross_attention_dim,
        use_linear_projection=unet.use_linear_projection,
        norm_num_groups=unet.norm_num_groups,
        num_control_type=config.num_control_type,
        num_trans_channel=config.num_trans_channel,
        num_trans_head=config.num_trans_head,
        num_trans_layer=config.num_trans_layer,
        num_proj_channel=config.num_proj_channel,
        **_added_conditions(unet),
    ).eval()


def reference_t2i_adapter(config: T2IAdapterConfig) -> nn.Module:
    return diffusers.T2IAdapter(
        in_channels=config.in_channels,
        channels=list(config.channels),
        num_res_blocks=config.num_res_blocks,
        downscale_factor=config.downscale_factor,
        adapter_type=config.adapter_type,
    ).eval()


def reference_vae(config: AutoencoderKLConfig, **changes: object) -> nn.Module:
    levels = len(config.block_out_channels)
    options = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": config.block_out_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
    }
    return diffusers.AutoencoderKL(**{**options, **changes}).eval()


def reference_tiny_vae(config: AutoencoderTinyConfig) -> nn.Module:
    return diffusers.AutoencoderTiny(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        latent_channels=config.latent_channels,
        encoder_block_out_channels=(config.channels,) * len(config.encoder_blocks),
        decoder_block_out_channels=(config.channels,) * len(config.decoder_blocks),
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks,
    ).eval()


def reference_ddim(noise: NoiseConfig, timestep_spacing: str) -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(
        num_train_timesteps=noise.num_train_timesteps,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        beta_schedule="scaled_linear",
        prediction_type=noise.prediction_type,
        rescale_betas_zero_snr=noise.rescale_betas_zero_snr,
        timestep_spacing=timestep_spacing,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )


def text_encoder_state(reference: nn.Module) -> dict[str, Tensor]:
    """The weights by the names of the published files; transformers 5 drops their prefix."""
    return {
        f"text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in reference.state_dict().items()
    }


def load_text_encoder(reference: nn.Module, ours: dict[str, Tensor], **options: bool) -> None:
    """Give ``reference`` the weights of a text encoder of sdpy, prefixed or not as it wants."""
    prefixed = any(name.startswith("text_model.") for name in reference.state_dict())
    state = {n if prefixed else n.removeprefix("text_model."): t for n, t in ours.items()}
    reference.load_state_dict(state, **options)
