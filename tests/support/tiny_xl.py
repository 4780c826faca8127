"""A Stable Diffusion XL with every part of the real one and hardly a size, as in `support.tiny`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import transformers
from torch import nn
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sdpy.models import CLIPTextConfig, UNet2DConditionConfig
from sdpy.zoo.classes import make_model
from sdpy.zoo.variants import SDXL, SDXL_REFINER, ModelVariant
from support.compare import randomise
from support.references import (
    load_text_encoder,
    reference_text_encoder,
    reference_text_encoder_2,
    reference_unet,
    reference_vae,
)
from support.tiny import MERGES, TINY

TINY_XL = replace(SDXL, sample_size=64, max_pixels=64 * 64).with_configs(
    text_encoder=replace(TINY.text_encoder, num_hidden_layers=3),
    text_encoder_2=CLIPTextConfig(
        vocab_size=TINY.text_encoder.vocab_size,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=6,
        hidden_act="gelu",
        projection_dim=48,
    ),
    unet=UNet2DConditionConfig(
        block_out_channels=(16, 24, 32),
        cross_attention=(False, True, True),
        attention_heads=(1, 2, 4),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=32 + 48,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 6 * 8,
    ),
    vae=replace(TINY.vae, scaling_factor=SDXL.vae.scaling_factor, force_upcast=True),
)
TINY_REFINER = replace(
    SDXL_REFINER,
    sample_size=64,
    max_pixels=64 * 64,
    configs={
        "text_encoder_2": TINY_XL.configs["text_encoder_2"],
        "unet": replace(
            TINY_XL.unet,
            cross_attention_dim=48,
            projection_class_embeddings_input_dim=48 + 5 * 8,
        ),
        "vae": TINY_XL.vae,
    },
)

REFERENCES: dict[str, Any] = {
    "text_encoder": reference_text_encoder,
    "text_encoder_2": reference_text_encoder_2,
    "unet": reference_unet,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def tiny_xl_model(variant: ModelVariant, name: str) -> nn.Module:
    """One of the networks with its random weights."""
    seed = 10 + list(variant.configs).index(name)
    return randomise(make_model(name, variant.configs[name]), seed)


def reference_models(variant: ModelVariant) -> dict[str, Any]:
    """diffusers' and transformers' networks with the weights of ours."""
    made: dict[str, Any] = {}
    for name, config in variant.configs.items():
        state = tiny_xl_model(variant, name).state_dict()
        if name == "vae":
            made[name] = reference_vae(config, scaling_factor=config.scaling_factor)
        else:
            made[name] = REFERENCES[name](config)
        if name == "text_encoder":
            load_text_encoder(made[name], state)
        else:
            made[name].load_state_dict(state)
    made["unet"].register_to_config(sample_size=variant.sample_size // 2)
    return made


def reference_tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> Any:
    """transformers' tokenizer for the tiny vocabulary, whose files are written into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = list(bytes_to_unicode().values())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in MERGES)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return transformers.CLIPTokenizerFast.from_pretrained(
        folder, model_max_length=77, pad_token=pad_token
    )


def reference_pipeline(
    kind: Callable[..., Any],
    variant: ModelVariant,
    folder: Path,
    scheduler: Any = None,
    **options: Any,
) -> Any:
    """A pipeline of diffusers for Stable Diffusion XL with the tiny models.

    Args:
        kind: its class, or what makes one.
        variant: sizes, on which the weights depend as well.
        folder: where the tokenizers' files are written.
        scheduler: None for Euler's.
        options: of the class.
    """
    models = reference_models(variant)
    tokenizer = reference_tokenizer(folder / "tokenizer")
    pipeline = kind(
        vae=models["vae"],
        text_encoder=models.get("text_encoder"),
        text_encoder_2=models["text_encoder_2"],
        tokenizer=tokenizer if "text_encoder" in models else None,
        tokenizer_2=reference_tokenizer(folder / "tokenizer_2", pad_token="!"),
        unet=models["unet"],
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER) if scheduler is None else scheduler,
        add_watermarker=False,
        **options,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_tiny_xl(folder: Path, variant: ModelVariant = TINY_XL) -> Path:
    """Have diffusers write a folder of the tiny models."""
    kind = (
        diffusers.StableDiffusionXLImg2ImgPipeline
        if "aesthetic_score" in variant.size_conditions
        else diffusers.StableDiffusionXLPipeline
    )
    options = {"force_zeros_for_empty_prompt": variant.force_zeros_for_empty_prompt}
    if kind is diffusers.StableDiffusionXLImg2ImgPipeline:
        options["requires_aesthetics_score"] = True
    pipeline = reference_pipeline(kind, variant, folder / "tokenizers", **options)
    pipeline.save_pretrained(folder)
    for name in ("tokenizer", "tokenizer_2"):  # transformers 5 writes no merges.txt
        if (folder / name).is_dir():
            shutil.copy(folder / "tokenizers" / name / "merges.txt", folder / name)
    return folder
