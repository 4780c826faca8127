"""The trained models: reading them from a run's states, and writing them as sdpy's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from scripts.demo.recipes import Recipe
from scripts.demo.training.data import MERGES_FILE, merges_of
from scripts.demo.training.log import Log
from scripts.demo.training.options import TrainingOptions
from sdpy.checkpoints import read_checkpoint, write_checkpoint
from sdpy.models import (
    AutoencoderKL,
    CLIPTextModel,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from sdpy.zoo.bundle import TURBO, Bundle, write_bundle

CONSISTENCY_FILE = "unet_lcm.safetensors"
"""The UNet for few steps."""

GUIDANCE_CHANNELS = 64
"""Width of its guidance scale's embedding."""


def load_denoiser(options: TrainingOptions) -> nn.ModuleDict:
    """UNet (``unet``) and text encoder (``text``) with the averaged weights."""
    variant = options.recipe.variant
    models = nn.ModuleDict(
        {"unet": UNet2DConditionModel(variant.unet), "text": CLIPTextModel(variant.text_encoder)}
    )
    state = torch.load(options.run / "denoiser.pt", map_location="cpu", weights_only=True)
    models.load_state_dict(state["averages"])
    return models.to(options.device).requires_grad_(False)


def load_autoencoder(options: TrainingOptions) -> AutoencoderKL:
    """The autoencoder on normalised latents, with the polished decoder where there is one."""
    vae = AutoencoderKL(options.recipe.variant.vae)
    vae.load_state_dict(torch.load(options.run / "latents.pt", mmap=True, weights_only=True)["vae"])
    polished = options.run / "decoder.pt"
    if polished.exists():
        load_averages(vae, polished)
    return vae.to(options.device).requires_grad_(False)


def load_averages(vae: AutoencoderKL, state_file: Path) -> None:
    """Give an autoencoder the averaged weights of a stage that trained it."""
    state = torch.load(state_file, map_location="cpu", weights_only=True)["averages"]
    vae.load_state_dict({name.removeprefix("vae."): value for name, value in state.items()})


def student_config(config: UNet2DConditionConfig) -> UNet2DConditionConfig:
    """The sizes of the UNet for few steps, which takes the guidance scale as an input."""
    return replace(config, time_cond_proj_dim=GUIDANCE_CHANNELS)


def write_models(
    folder: Path, recipe: Recipe, networks: Mapping[str, nn.Module], merges: str, dtype: torch.dtype
) -> None:
    """Write networks and merges as the files of a bundled model.

    Args:
        folder: to write to.
        recipe: by which they are made.
        networks: by component, and the UNet for few steps as `TURBO` if there is one.
        merges: of the tokenizer, as the text of their file.
        dtype: of the weights.
    """
    variant = recipe.variant
    configs = {**variant.configs, "tiny_vae": variant.tiny_vae}
    if TURBO in networks:
        configs[TURBO] = student_config(variant.unet)
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in networks.items():
        write_checkpoint(folder / f"{name}.ot", network.to(dtype).state_dict())
    (folder / MERGES_FILE).write_text(merges, encoding="utf-8")
    write_bundle(folder, Bundle(recipe.name, variant.summary, variant.sample_size, configs))


def write_averages(options: TrainingOptions, folder: Path, dtype: torch.dtype) -> None:
    """Write the averaged weights of a run's stages so far as a bundled model."""
    denoiser = load_denoiser(options)
    networks = {
        "text_encoder": denoiser["text"],
        "unet": denoiser["unet"],
        "vae": load_autoencoder(options),
    }
    student = options.run / CONSISTENCY_FILE
    if student.exists():
        networks[TURBO] = UNet2DConditionModel(student_config(options.recipe.variant.unet))
        networks[TURBO].load_state_dict(dict(read_checkpoint(student).tensors))
    merges = (options.run / MERGES_FILE).read_text(encoding="utf-8")
    write_models(folder, options.recipe, networks, merges, dtype)


def write_untrained(recipe: Recipe, folder: Path) -> None:
    """Write a bundled model of a recipe's sizes that has learned nothing, to measure its speed."""
    torch.manual_seed(0)
    variant = recipe.variant
    networks = {
        "text_encoder": CLIPTextModel(variant.text_encoder),
        "unet": UNet2DConditionModel(variant.unet),
        "vae": AutoencoderKL(variant.vae),
        TURBO: UNet2DConditionModel(student_config(variant.unet)),
    }
    write_models(folder, recipe, networks, merges_of(recipe), torch.float16)


def export(options: TrainingOptions) -> None:
    """Write everything that is bundled so far, in float16."""
    folder = options.bundle_folder
    write_averages(options, folder, torch.float16)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    Log(options, "export")(f"{size / 1e6:.1f} MB in {folder.name}/")


def results(options: TrainingOptions) -> list[Path]:
    """The files of a run that are worth keeping: exported weights, sheets, log and options."""
    suffixes = {".ot", ".safetensors", ".png", ".txt", ".json"}
    folders = (options.run, options.bundle_folder)
    files = (file for folder in folders for file in sorted(folder.iterdir()))
    kept = {file.name: file for file in files if file.suffix in suffixes}
    kept.pop(CONSISTENCY_FILE, None)  # it has been exported
    return list(kept.values())
