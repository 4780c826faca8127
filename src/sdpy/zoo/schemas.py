"""What the configuration files of models may say: one table for each class of networks.

All keys that diffusers 0.42 and transformers 5 know are there. Those that the weights' shapes show
as well are checked for their type; loading finds out whether they fit. A key with which a network
would compute something that ours does not is refused, unless it has its default.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpy.checkpoints import ModelFolder, config_beside
from sdpy.components import COMPONENTS
from sdpy.errors import WeightsError
from sdpy.models.t2i_adapter import ADAPTER_TYPES
from sdpy.schedulers import BETA_SCHEDULES, PREDICTION_TYPES
from sdpy.schema import (
    Key,
    Table,
    Validated,
    either,
    flag,
    listed,
    number,
    one_of,
    only,
    told,
    validate,
    whole,
    without_effect,
)

_LAYERS = whole(1, 100)
_CHANNELS = whole(1, 2**16)
_DEPTHS = listed(either(_LAYERS, listed(_LAYERS)), or_one=True)

# What UNets and ControlNets have in common.
_UNET_BASE: Table = {
    "act_fn": only("silu", "swish"),
    "addition_embed_type": one_of("text_time"),
    "addition_embed_type_num_heads": only(64),
    "addition_time_embed_dim": _CHANNELS,
    "attention_head_dim": listed(_CHANNELS, or_one=True),
    "block_out_channels": listed(_CHANNELS),
    "class_embed_type": only(),
    "cross_attention_dim": listed(_CHANNELS, or_one=True),
    "down_block_types": listed(one_of("CrossAttnDownBlock2D", "DownBlock2D")),
    "downsample_padding": only(1),
    "encoder_hid_dim": only(),
    "encoder_hid_dim_type": only(),
    "flip_sin_to_cos": only(True),
    "freq_shift": only(0),
    "in_channels": _CHANNELS,
    "layers_per_block": listed(_LAYERS, or_one=True),
    "mid_block_scale_factor": only(1),
    "mid_block_type": one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
    "norm_eps": only(1e-5),
    "norm_num_groups": _CHANNELS,
    "num_attention_heads": listed(_CHANNELS, or_one=True),
    "num_class_embeds": only(),
    "only_cross_attention": listed(flag(), or_one=True),
    "projection_class_embeddings_input_dim": _CHANNELS,
    "resnet_time_scale_shift": only("default"),
    "transformer_layers_per_block": _DEPTHS,
    "use_linear_projection": flag(),
    # A matter of precision, which attention here has anyway.
    **without_effect("upcast_attention"),
}

UNET: Table = {
    **_UNET_BASE,
    "attention_type": only("default"),
    "center_input_sample": only(False),
    "class_embeddings_concat": only(False),
    "conv_in_kernel": only(3),
    "conv_out_kernel": only(3),
    "cross_attention_norm": only(False),
    "dual_cross_attention": only(False),
    "mid_block_only_cross_attention": flag(),
    "out_channels": _CHANNELS,
    "resnet_out_scale_factor": only(1),
    "resnet_skip_time_act": only(False),
    "reverse_transformer_layers_per_block": _DEPTHS,
    "sample_size": listed(whole(1, 4096), longest=2, or_one=True),
    "time_cond_proj_dim": _CHANNELS,
    "time_embedding_act_fn": only(),
    "time_embedding_dim": only(),
    "time_embedding_type": only("positional"),
    "timestep_post_act": only(),
    "up_block_types": listed(one_of("CrossAttnUpBlock2D", "UpBlock2D")),
    **without_effect("dropout"),
}

CONTROLNET: Table = {
    **_UNET_BASE,
    "conditioning_channels": _CHANNELS,
    "conditioning_embedding_out_channels": listed(_CHANNELS),
    "controlnet_conditioning_channel_order": one_of("rgb", "bgr"),
    "global_pool_conditions": flag(),
}

CONTROLNET_UNION: Table = {
    **CONTROLNET,
    "controlnet_conditioning_channel_order": only("rgb"),
    "num_control_type": whole(1, 1000),
    "num_proj_channel": _CHANNELS,
    "num_trans_channel": _CHANNELS,
    "num_trans_head": _CHANNELS,
    "num_trans_layer": _LAYERS,
}

T2I_ADAPTER: Table = {
    "adapter_type": one_of(*ADAPTER_TYPES),
    "channels": listed(_CHANNELS),
    "downscale_factor": whole(1, 256),
    "in_channels": _CHANNELS,
    "num_res_blocks": _LAYERS,
}

AUTOENCODER_KL: Table = {
    "act_fn": only("silu", "swish"),
    "block_out_channels": listed(_CHANNELS),
    "down_block_types": listed(one_of("DownEncoderBlock2D")),
    "force_upcast": flag(),
    "in_channels": _CHANNELS,
    "latent_channels": _CHANNELS,
    "latents_mean": only(),
    "latents_std": only(),
    "layers_per_block": _LAYERS,
    "mid_block_add_attention": only(True),
    "norm_num_groups": _CHANNELS,
    "out_channels": _CHANNELS,
    "scaling_factor": number(1e-6, 1e6),
    "shift_factor": only(0),
    "up_block_types": listed(one_of("UpDecoderBlock2D")),
    "use_post_quant_conv": only(True),
    "use_quant_conv": only(True),
    **without_effect("sample_size"),
}

AUTOENCODER_TINY: Table = {
    "act_fn": only("relu"),
    "block_out_channels": listed(_CHANNELS),
    "decoder_block_out_channels": listed(_CHANNELS),
    "encoder_block_out_channels": listed(_CHANNELS),
    "in_channels": _CHANNELS,
    "latent_channels": _CHANNELS,
    "latent_magnitude": only(3),
    "latent_shift": only(0.5),
    "num_decoder_blocks": listed(_LAYERS),
    "num_encoder_blocks": listed(_LAYERS),
    "out_channels": _CHANNELS,
    "scaling_factor": only(1),
    "shift_factor": only(0),
    "upsample_fn": only("nearest"),
    "upsampling_scaling_factor": only(2),
    **without_effect("force_upcast"),
}

# What transformers writes into the file of any model, of all its versions, and what only training
# or text generation uses.
_TRANSFORMERS = (
    *("add_cross_attention", "architectures", "attention_dropout", "bad_words_ids"),
    *("begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward"),
    *("cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample"),
    *("dropout", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id"),
    *("exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id"),
    *("forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_factor"),
    *("initializer_range", "is_decoder", "is_encoder_decoder", "label2id", "length_penalty"),
    *("max_length", "min_length", "model_type", "no_repeat_ngram_size", "num_beam_groups"),
    *("num_beams", "num_return_sequences", "output_attentions", "output_hidden_states"),
    *("output_scores", "pad_token_id", "prefix", "problem_type", "projection_dim"),
    *("pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict"),
    *("return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params"),
    *("temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings"),
    *("tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript"),
    *("transformers_version", "typical_p", "use_bfloat16", "use_cache"),
)

CLIP_TEXT: Table = {
    "hidden_act": one_of("quick_gelu", "gelu"),
    "hidden_size": _CHANNELS,
    "intermediate_size": _CHANNELS,
    "layer_norm_eps": only(1e-5),
    "max_position_embeddings": whole(3, 2**16),
    "num_attention_heads": _CHANNELS,
    "num_hidden_layers": _LAYERS,
    "use_attention_mask": only(False),
    "vocab_size": whole(1, 2**24),
    **without_effect(*_TRANSFORMERS),
}

TABLES: dict[str, Table] = {
    "CLIPTextModel": CLIP_TEXT,
    "CLIPTextModelWithProjection": CLIP_TEXT,
    "UNet2DConditionModel": UNET,
    "AutoencoderKL": AUTOENCODER_KL,
    "AutoencoderTiny": AUTOENCODER_TINY,
    "ControlNetModel": CONTROLNET,
    "ControlNetUnionModel": CONTROLNET_UNION,
    "T2IAdapter": T2I_ADAPTER,
}
"""By the classes' names, as ``_class_name`` and the table of components give them. What the file of
any other class says is taken as it is."""

# What makes a sampler; the user chooses it, and not the file.
_OF_SAMPLERS = (
    *("algorithm_type", "corrector_order", "disable_corrector", "dynamic_thresholding_ratio"),
    *("euler_at_final", "final_sigmas_type", "lambda_min_clipped", "lower_order_final"),
    *("original_inference_steps", "predict_x0", "predictor_order", "rho", "sample_max_value"),
    *("clip_sample_range", "skip_prk_steps", "solver_order", "solver_p", "solver_type"),
    *("stochastic_sampling", "tau_func", "timestep_scaling", "use_beta_sigmas"),
    *("use_exponential_sigmas", "use_lu_lambdas", "variance_type"),
    # These belong to settings that are refused.
    *("base_image_seq_len", "base_shift", "flow_shift", "max_image_seq_len", "max_shift"),
    *("shift", "shift_terminal", "time_shift_type"),
    # Old files have them; diffusers drops them.
    *("predict_epsilon", "tensor_format", "trained_timesteps"),
)

SCHEDULER: Table = {
    "beta_end": number(1e-9, 0.999),
    "beta_schedule": one_of(*BETA_SCHEDULES),
    "beta_start": number(1e-9, 0.999),
    "clip_sample": told(False),
    "interpolation_type": told("linear"),
    "invert_sigmas": only(False),
    # Noise comes from the seed of the image.
    "noise_sampler_seed": told(),
    "num_train_timesteps": whole(2, 100_000),
    "prediction_type": one_of(*PREDICTION_TYPES),
    "rescale_betas_zero_snr": flag(),
    "set_alpha_to_one": told(False),
    # Of models that were trained in the manner of EDM, on other noise.
    "sigma_data": only(),
    "sigma_max": told(),
    "sigma_min": told(),
    "sigma_schedule": only(),
    "steps_offset": told(0, 1),
    "thresholding": told(False),
    "timestep_spacing": one_of("leading", "trailing", "linspace"),
    "timestep_type": told("discrete"),
    "trained_betas": listed(number(1e-9, 0.9999999), longest=100_000),
    "use_dynamic_shifting": only(False),
    "use_flow_sigmas": only(False),
    "use_karras_sigmas": flag(),
    **dict.fromkeys(_OF_SAMPLERS, Key("", lambda value: True)),
}


def check_config(component: str, found: Any, path: str | os.PathLike[str]) -> Validated:
    """What a component's ``config.json`` says, by the table of the class that it names.

    The settings of a whole CLIP model's text part are taken for the text encoder's.

    Raises:
        WeightsError: it says what cannot be, or what sdpy does not compute.
    """
    classes = COMPONENTS[component].classes
    if isinstance(found, dict):
        if "CLIPTextModel" in classes and isinstance(found.get("text_config"), dict):
            found = found["text_config"]
        named = found.get("_class_name")
        classes = (named,) if named in classes else classes
    table = TABLES.get(classes[0])
    return validate(found, table, path) if found and table is not None else Validated(found)


def told_beside(component: str, weights: Path) -> Validated:
    """What the ``config.json`` in the folder of a component's weights says; nothing without one.

    A file that belongs to something else, by the class that it names, says nothing of the weights.

    Raises:
        WeightsError: it is broken, or says what cannot be or what sdpy does not compute.
    """
    found = config_beside(weights)
    named = found.get("_class_name")
    listed = found.get("architectures")
    names = {named} if isinstance(named, str) else set(listed if isinstance(listed, list) else ())
    if names and names.isdisjoint(COMPONENTS[component].classes):
        return Validated({})
    return check_config(component, found, weights.parent / "config.json")


def check_folder(folder: ModelFolder) -> tuple[ModelFolder, tuple[str, ...]]:
    """A diffusers folder with what its configuration files say, checked, and what is to be told.

    Raises:
        WeightsError: a file says what cannot be, or what sdpy does not compute.
    """
    checked = {
        name: check_scheduler(found, folder.path / name / "scheduler_config.json")
        if name == "scheduler"
        else check_config(name, found, folder.path / name / "config.json")
        for name, found in folder.configs.items()
    }
    configs = {name: one.values for name, one in checked.items()}
    notices = tuple(text for one in checked.values() for text in one.notices)
    return replace(folder, configs=configs), notices


def check_scheduler(found: Any, path: str | os.PathLike[str]) -> Validated:
    """What a ``scheduler_config.json`` says; ``_class_name`` is kept.

    Raises:
        WeightsError: it says what cannot be, or what sdpy does not compute.
    """
    if not found:
        return Validated({})
    checked = validate(found, SCHEDULER, path)
    betas, steps = checked.values.get("trained_betas"), found.get("num_train_timesteps", 1000)
    if betas is not None and len(betas) != steps:
        raise WeightsError(
            f"{path}: 'trained_betas' has {len(betas)} numbers, but has to have one for each "
            f"of {steps} 'num_train_timesteps'; take the file that belongs to the weights"
        )
    name = found.get("_class_name")
    kept = {"_class_name": name} if isinstance(name, str) else {}
    return Validated({**checked.values, **kept}, checked.notices)
