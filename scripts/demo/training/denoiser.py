"""The stage that trains UNet and text encoder, and sheets of sample images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scripts.demo import scenes
from scripts.demo.sheets import write_sheet
from scripts.demo.training.data import SIZE, load_latents, load_tokenizer, step_generator, tokenize
from scripts.demo.training.diffusion import add_noise, stratified_timesteps, velocity_of
from scripts.demo.training.models import load_autoencoder, load_denoiser
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.trainer import Trainer, autocast, worker, workers
from sdpy.models import CLIPTextModel, UNet2DConditionModel
from sdpy.schedulers.ddim import DDIMScheduler
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.variants import DEMO

EMPTY_CAPTIONS = 0.1
"""Share of training samples without caption, which classifier-free guidance needs."""

GUIDANCE_SCALE = 4.0
"""Guidance scale of the sheets of samples."""


def train_denoiser(options: TrainingOptions) -> None:
    """Train UNet and text encoder on the latents and fresh paraphrases of their captions."""
    torch.manual_seed(options.seed)
    unet, text_encoder = UNet2DConditionModel(DEMO.unet), CLIPTextModel(DEMO.text_encoder)
    for parameter in unet.conv_out.parameters():
        nn.init.zeros_(parameter)
    steps = options.denoiser_samples // options.batch
    models = {"unet": unet, "text": text_encoder}
    trainer = Trainer(options, "denoiser", models, steps)
    data = load_latents(options)
    tokenizer = load_tokenizer(options.run)
    alphas = make_alphas_cumprod(DEMO.noise).float().to(options.device)
    losses: list[float] = []
    sampled = time.monotonic()
    while not trainer.done:
        batch = draw_batch(options, trainer.step, data, tokenizer)
        loss = velocity_loss(options, trainer.models, alphas, batch).mean()
        trainer.update(loss)
        losses.append(loss.item())
        if trainer.step % 200 == 0:
            trainer.log(
                f"step {trainer.step} of {steps}, loss {sum(losses) / len(losses):.4f}, "
                f"{trainer.minutes:.1f} min"
            )
            losses = []
        if worker() == 0 and trainer.step % 2000 == 0:
            report_guidance(options, trainer, tokenizer, alphas)
        if worker() == 0 and (time.monotonic() - sampled > 600 or trainer.done):
            write_samples(options, trainer.averages, tokenizer, options.run / "sheet.png")
            sampled = time.monotonic()


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


def draw_batch(
    options: TrainingOptions, step: int, data: Tensor, tokenizer: CLIPTokenizer
) -> Batch:
    """This process's share of the batch of a training step, the same for the same seed."""
    rng = step_generator(options, "denoiser", step)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    index = rng.integers(len(data), size=options.batch)
    captions = [
        ""
        if rng.random() < EMPTY_CAPTIONS
        else scenes.caption_at(int(i), options.seed, version=int(rng.integers(2**31)))
        for i in index
    ]
    noise = torch.randn((options.batch, *data.shape[1:]), generator=generator)
    timesteps = stratified_timesteps(options.batch, DEMO.noise.num_train_timesteps, generator)
    mine = slice(worker(), None, workers())
    return Batch(
        clean=data[torch.from_numpy(index[mine])].float().to(options.device),
        noise=noise[mine].to(options.device),
        timesteps=timesteps[mine].to(options.device),
        tokens=tokenize(tokenizer, captions[mine], options.device),
    )


def velocity_loss(
    options: TrainingOptions, models: nn.ModuleDict, alphas: Tensor, batch: Batch
) -> Tensor:
    """Mean squared error of the predicted velocity, (B,)."""
    noisy = add_noise(alphas, batch.clean, batch.noise, batch.timesteps)
    velocity = velocity_of(alphas, batch.clean, batch.noise, batch.timesteps)
    with autocast(options):
        context = models["text"](batch.tokens)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        predicted = models["unet"](noisy, batch.timesteps, context)
    return (predicted.float() - velocity).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def report_guidance(
    options: TrainingOptions, trainer: Trainer, tokenizer: CLIPTokenizer, alphas: Tensor
) -> None:
    """Log the loss at several noise levels with the right, an empty and a wrong caption.

    The gap between them is what the text is worth at that level.
    """
    index = list(range(64))
    clean = load_latents(options)[index].float().to(options.device)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)).to(options.device)
    right = [scenes.caption_at(i, options.seed) for i in index]
    captions = {"right": right, "empty": [""] * 64, "wrong": right[32:] + right[:32]}
    for level in (999, 800, 600, 400, 200):
        timesteps = torch.full((64,), level, device=options.device)
        losses = []
        for name, texts in captions.items():
            batch = Batch(clean, noise, timesteps, tokenize(tokenizer, texts, options.device))
            loss = velocity_loss(options, trainer.averages, alphas, batch).mean()
            losses.append(f"{name} {loss:.4f}")
        trainer.log(f"t {level}: {', '.join(losses)}")


SHEET_PROMPTS = (
    "lighthouse at dark",
    "a red lighthouse at noon",
    "a lighthouse at dusk in the rain",
    "a blue house in the snow at night",
    "a green sailing boat at noon",
    "a yellow boat at dawn in fog",
    "a castle at dusk",
    "a red windmill at noon",
    "a rusty robot holding a torch",
    "a rusty robot holding a torch at night",
    "trees in the snow at noon",
    "mountains at dawn",
    "a cat at dusk",
    "a white balloon at noon",
    "a castle with blue roofs at night in the rain",
    "a windmill in fog at dawn",
)


@torch.no_grad()
def write_samples(
    options: TrainingOptions,
    models: nn.ModuleDict,
    tokenizer: CLIPTokenizer,
    path: Path,
    steps: int = 30,
    each: int = 2,
) -> None:
    """Write a sheet of samples of `SHEET_PROMPTS`, ``each`` of every prompt, made with DDIM."""
    captions = [prompt for prompt in SHEET_PROMPTS for _ in range(each)]
    factor = DEMO.vae.downsample_factor
    shape = (len(captions), DEMO.unet.in_channels, SIZE // factor, SIZE // factor)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(32)).to(options.device)
    tokens = tokenize(tokenizer, [""] * len(captions) + captions, options.device)
    scheduler = DDIMScheduler(DEMO.noise, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    with autocast(options):
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
    models, tokenizer = load_denoiser(options), load_tokenizer(options.run)
    write_samples(options, models, tokenizer, options.run / "sheet.png")
