"""The trained models: reading them from a run's states, and writing them as sdpy's files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from scripts.demo.training.data import MERGES_FILE
from scripts.demo.training.log import Log
from scripts.demo.training.options import TrainingOptions
from sdpy.checkpoints import write_checkpoint
from sdpy.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel


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


def write_models(options: TrainingOptions, folder: Path, dtype: torch.dtype) -> None:
    """Write the averaged weights and the merges under the names of the bundled model's files."""
    denoiser = load_denoiser(options)
    folder.mkdir(parents=True, exist_ok=True)
    models = {
        "unet": denoiser["unet"],
        "text_encoder": denoiser["text"],
        "vae": load_autoencoder(options),
    }
    for component, model in models.items():
        (name,) = options.recipe.variant.files.of(component)
        write_checkpoint(folder / name, model.to(dtype).state_dict())
    merges = (options.run / MERGES_FILE).read_text(encoding="utf-8")
    (folder / MERGES_FILE).write_text(merges, encoding="utf-8")


def export(options: TrainingOptions) -> None:
    """Write the averaged weights as float16, and the merges, into the bundle's folder."""
    assert options.bundle is not None
    write_models(options, options.bundle, torch.float16)
    size = sum(file.stat().st_size for file in options.bundle.iterdir() if file.is_file())
    Log(options, "export")(f"{size / 1e6:.1f} MB in {options.bundle.name}/")


def results(options: TrainingOptions) -> list[Path]:
    """The files of a run that are worth keeping: exported weights, sheets, log and options."""
    folders = [options.run] if options.bundle is None else [options.run, options.bundle]
    suffixes = {".ot", ".safetensors", ".png", ".txt", ".json"}
    files = (file for folder in folders for file in sorted(folder.iterdir()))
    return list({file.name: file for file in files if file.suffix in suffixes}.values())
