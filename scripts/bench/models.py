"""The random weights that both programs are measured with."""

from __future__ import annotations

import compileall
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sdpy
from scripts.bench.jobs import TINY_VAE_FILE, Job

if TYPE_CHECKING:  # at run time this would import torch
    from sdpy.zoo.variants import ModelVariant


def sizes() -> dict[str, ModelVariant]:
    """The variants that can be measured; imports torch."""
    from sdpy.models import AutoencoderKLConfig, CLIPTextConfig, UNet2DConditionConfig
    from sdpy.zoo.variants import SD15, SDXL

    tiny = replace(SD15, sample_size=64).with_configs(
        text_encoder=CLIPTextConfig(
            vocab_size=600,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
        ),
        # Heads and groups are those that sdpy assumes where no config.json tells them.
        unet=UNet2DConditionConfig(
            block_out_channels=(16, 24),
            cross_attention=(True, False),
            attention_heads=(8, 8),
            layers_per_block=1,
            cross_attention_dim=32,
            norm_num_groups=8,
        ),
        vae=AutoencoderKLConfig(
            block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=8
        ),
    )
    tiny_xl = replace(SDXL, sample_size=64).with_configs(
        text_encoder=replace(tiny.text_encoder, num_hidden_layers=3),
        text_encoder_2=CLIPTextConfig(
            vocab_size=tiny.text_encoder.vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=1,
            hidden_act="gelu",
            projection_dim=64,
        ),
        unet=replace(
            SDXL.unet,
            block_out_channels=(64, 128),
            cross_attention=(False, True),
            attention_heads=(1, 2),
            layers_per_block=1,
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=32 + 64,
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=64 + 6 * 16,
        ),
        vae=replace(tiny.vae, scaling_factor=SDXL.vae.scaling_factor, force_upcast=True),
    )
    return {"sd15": SD15, "sdxl": SDXL, "tiny": tiny, "tiny-xl": tiny_xl}


def prepare(job: Job) -> dict[str, Any]:
    """Write the random weights where there are none yet, and count the arithmetic.

    sdpy's modules are compiled, as they are where it is installed.
    """
    import torch

    from sdpy.benchmark.arithmetic import count_flops
    from sdpy.benchmark.weights import write_random_model

    compileall.compile_dir(str(Path(sdpy.__file__).parent), quiet=1)
    variant = sizes()[job.size]
    write_random_model(Path(job.folder), variant)
    _write_tiny_vae(Path(job.tiny_vae_folder), variant)
    if job.sdpy_model is not None:
        _write_ot(Path(job.folder), Path(job.sdpy_model), variant)
    factor = variant.vae.downsample_factor
    latent_size = (job.height // factor, job.width // factor)
    guided = job.guidance_scale != 1
    flops = count_flops(variant, latent_size, unet_batch=2 if guided else 1)
    return {"flops": flops, "torch": torch.__version__, "threads": torch.get_num_threads()}


def _write_tiny_vae(folder: Path, variant: ModelVariant) -> None:
    """A tiny autoencoder beside the model, as a folder of diffusers."""
    from sdpy.benchmark.weights import random_weights
    from sdpy.checkpoints import write_checkpoint
    from sdpy.zoo.classes import config_json, make_model

    path = folder / TINY_VAE_FILE
    if path.exists():
        return
    folder.mkdir(exist_ok=True)
    config = config_json("vae", variant.tiny_vae, variant)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_checkpoint(path, random_weights(make_model("vae", variant.tiny_vae)))


def _write_ot(folder: Path, target: Path, variant: ModelVariant) -> None:
    from sdpy.benchmark.weights import model_files
    from sdpy.checkpoints import read_checkpoint, write_checkpoint

    target.mkdir(exist_ok=True)
    files = model_files(folder, variant)
    for component, source in files.weights.items():
        path = target / variant.files.of(component)[0]
        if not path.exists():
            write_checkpoint(path, read_checkpoint(source).tensors)
    text = files.vocabulary.read_text(encoding="utf-8")
    (target / "bpe_simple_vocab_16e6.txt").write_text(text, encoding="utf-8")
