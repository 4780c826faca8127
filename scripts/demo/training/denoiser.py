"""The stage that trains UNet and text encoder, and sheets of sample images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scripts.demo.sheets import write_sheet
from scripts.demo.training.data import (
    EMPTY_CAPTIONS,
    CaptionSet,
    device_generator,
    load_latents,
    load_tokenizer,
    step_generator,
)
from scripts.demo.training.diffusion import add_noise, stratified_timesteps, velocity_of
from scripts.demo.training.log import worker, workers
from scripts.demo.training.models import load_autoencoder, load_denoiser
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.renderer import tokenize
from scripts.demo.training.trainer import Trainer, autocast, full_precision
from sdpy.models import CLIPTextModel, UNet2DConditionModel
from sdpy.schedulers.ddim import DDIMScheduler
from sdpy.schedulers.noise import make_alphas_cumprod

GUIDANCE_SCALE = 4.0
"""Guidance scale of the sheets of samples."""

SHEET_SECONDS = 600
"""Time between two sheets of samples, where the time of the training is not limited."""


def train_denoiser(options: TrainingOptions) -> None:
    """Train UNet and text encoder on the latents and the many captions of their images."""
    torch.manual_seed(options.seed)
    variant = options.recipe.variant
    unet, text_encoder = UNet2DConditionModel(variant.unet), CLIPTextModel(variant.text_encoder)
    for parameter in unet.conv_out.parameters():
        nn.init.zeros_(parameter)
    steps = options.denoiser_samples // options.batch
    models = {"unet": unet, "text": text_encoder}
    trainer = Trainer(options, "denoiser", models, steps, log_every=200)
    latents, captions = load_latents(options), CaptionSet(options)
    alphas = make_alphas_cumprod(variant.noise).float().to(options.device)

    def loss_at(step: int) -> Tensor:
        batch = draw_batch(options, step, latents, captions)
        return velocity_loss(options, trainer.models, alphas, batch).mean()

    sampled = trainer.clock.elapsed
    for step in trainer.train(loss_at):
        if worker() > 0:
            continue
        if step % 2000 == 0:
            report_guidance(options, trainer, latents, alphas)
        timed = trainer.clock.limit is not None
        if trainer.done or (not timed and trainer.clock.elapsed - sampled > SHEET_SECONDS):
            write_samples(options, trainer.averages, options.run / "sheet.png")
            sampled = trainer.clock.elapsed


@dataclass(frozen=True)
class Batch:
    """Samples that the denoiser is trained on.

    Attributes:
        clean: (B, C, h, w) latents.
        noise: (B, C, h, w), standard normal.
        timesteps: (B,) int64.
        tokens: (B, T) of the captions.
    """

    clean: Tensor
    noise: Tensor
    timesteps: Tensor
    tokens: Tensor


def draw_batch(options: TrainingOptions, step: int, latents: Tensor, captions: CaptionSet) -> Batch:
    """This process's share of the batch of a training step, the same for the same seed.

    Everything is drawn on the device.
    """
    rng = step_generator(options, "denoiser", step)
    generator = device_generator(options, rng)
    device = latents.device
    index = torch.randint(len(latents), (options.batch,), generator=generator, device=device)
    tokens = captions.draw(index, generator, EMPTY_CAPTIONS)
    noise = torch.randn((options.batch, *latents.shape[1:]), generator=generator, device=device)
    count = options.recipe.variant.noise.num_train_timesteps
    timesteps = stratified_timesteps(options.batch, count, generator)
    mine = slice(worker(), None, workers())
    return Batch(latents[index[mine]].float(), noise[mine], timesteps[mine], tokens[mine])


def velocity_loss(
    options: TrainingOptions, models: nn.ModuleDict, alphas: Tensor, batch: Batch
) -> Tensor:
    """Mean squared error of the predicted velocity, (B,)."""
    noisy = add_noise(alphas, batch.clean, batch.noise, batch.timesteps)
    velocity = velocity_of(alphas, batch.clean, batch.noise, batch.timesteps)
    with autocast(options):
        with full_precision(options):
            context = models["text"](batch.tokens)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        predicted = models["unet"](noisy, batch.timesteps, context)
    return (predicted.float() - velocity).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def report_guidance(
    options: TrainingOptions, trainer: Trainer, latents: Tensor, alphas: Tensor
) -> None:
    """Log the loss at several noise levels with the right, an empty and a wrong caption.

    The gap between them is what the text is worth at that level.
    """
    index = list(range(min(64, len(latents))))
    half = len(index) // 2
    clean = latents[index].float()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)).to(options.device)
    right = [options.recipe.scenes.caption_at(i, options.seed) for i in index]
    captions = {"right": right, "empty": [""] * len(index), "wrong": right[half:] + right[:half]}
    for level in (999, 800, 600, 400, 200):
        timesteps = torch.full((len(index),), level, device=options.device)
        losses = []
        for name, texts in captions.items():
            batch = Batch(clean, noise, timesteps, token_ids(options, texts))
            loss = velocity_loss(options, trainer.averages, alphas, batch).mean()
            losses.append(f"{name} {loss:.4f}")
        trainer.log(f"t {level}: {', '.join(losses)}")


def token_ids(options: TrainingOptions, captions: list[str]) -> Tensor:
    """Token ids (B, T) of captions, on the device."""
    length = options.recipe.variant.text_encoder.max_position_embeddings
    ids = tokenize(load_tokenizer(options), captions, length)
    return torch.from_numpy(ids).to(options.device)


@torch.no_grad()
def write_samples(
    options: TrainingOptions,
    models: nn.ModuleDict,
    path: Path,
    steps: int = 30,
    each: int = 2,
) -> None:
    """Write a sheet of samples of the recipe's prompts, ``each`` of every one, made with DDIM."""
    captions = [prompt for prompt in options.recipe.scenes.prompts for _ in range(each)]
    shape = (len(captions), *options.recipe.latents_shape)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(32)).to(options.device)
    tokens = token_ids(options, [""] * len(captions) + captions)
    scheduler = DDIMScheduler(options.recipe.variant.noise, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    with autocast(options):
        with full_precision(options):
            context = models["text"](tokens)
        for timestep in scheduler.timesteps:
            both = torch.cat([latents, latents]).contiguous(memory_format=torch.channels_last)
            t = torch.as_tensor(timestep, device=options.device)
            negative, positive = models["unet"](both, t, context).float().chunk(2)
            velocity = negative + GUIDANCE_SCALE * (positive - negative)
            latents = scheduler.step(velocity, timestep, latents)
    vae = load_autoencoder(options)
    write_sheet(path, torch.cat([vae.decode(batch).cpu() for batch in latents.split(8)]), columns=8)


def sample(options: TrainingOptions) -> None:
    """Write a sheet of samples with the averaged weights of the denoiser's last state."""
    write_samples(options, load_denoiser(options), options.run / "sheet.png")
