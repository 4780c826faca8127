"""Distil the trained demo model into faster ones: a tiny autoencoder, and a UNet for few steps.

    python -m scripts.demo.distil runs/demo tiny-vae
    torchrun --nproc-per-node 2 -m scripts.demo.distil runs/demo consistency

Both need the states of `scripts.demo.train` in ``RUN``, log and resume as its stages do, and write
what the options of ``sdpy generate --model demo`` take:

    tiny-vae      ``RUN/tiny_vae.safetensors`` for --vae-weights
    consistency   ``RUN/unet_lcm.safetensors`` for --unet-weights, with --scheduler lcm --steps 4

Both are float16, as the bundled weights are, and not bundled themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.demo import scenes
from scripts.demo.sheets import psnr
from scripts.demo.training.autoencoder import reconstruction_loss, report_reconstruction
from scripts.demo.training.data import (
    load_images,
    load_latents,
    load_tokenizer,
    step_generator,
    to_tensor,
    tokenize,
)
from scripts.demo.training.diffusion import add_noise, predicted_clean, predicted_noise
from scripts.demo.training.models import load_denoiser
from scripts.demo.training.options import TrainingOptions, join_workers, parse_arguments
from scripts.demo.training.trainer import Trainer, autocast, worker, workers
from sdpy.checkpoints import write_checkpoint
from sdpy.models import AutoencoderTiny, UNet2DConditionModel
from sdpy.models.embeddings import guidance_scale_embedding
from sdpy.schedulers.consistency import DISTILLED_STEPS
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.variants import DEMO

TINY_VAE_FILE, CONSISTENCY_FILE = "tiny_vae.safetensors", "unet_lcm.safetensors"


@dataclass(frozen=True)
class DistillationOptions(TrainingOptions):
    """How much to distil.

    Attributes:
        tiny_vae_images: images that the tiny autoencoder is trained on.
        tiny_vae_learning_rate: greatest learning rate of its optimiser.
        consistency_samples: latents that the UNet for few steps is trained on.
        consistency_learning_rate: greatest learning rate of its optimiser.
    """

    tiny_vae_images: int = 24_000
    tiny_vae_learning_rate: float = 1e-3
    consistency_samples: int = 32_000
    consistency_learning_rate: float = 2e-4


# --- tiny autoencoder -----------------------------------------------------------------------------


def distil_autoencoder(options: DistillationOptions) -> None:
    """Teach a tiny autoencoder the latents of the real one, and to decode these to images."""
    data = load_latents(options)
    images = load_images(options)
    torch.manual_seed(options.seed)
    vae = AutoencoderTiny(DEMO.tiny_vae)
    trainer = Trainer(
        replace(options, learning_rate=options.tiny_vae_learning_rate),
        "tiny-vae",
        {"vae": vae},
        options.tiny_vae_images // options.batch,
    )
    while not trainer.done:
        rng = step_generator(options, "tiny-vae", trainer.step)
        index = np.sort(rng.integers(len(data), size=options.batch))
        image = to_tensor(images[index], options.device)
        latents = data[torch.from_numpy(index)].float().to(options.device)
        with autocast(options):
            encoded, decoded = vae.encode(image).mean, vae.decode(latents)
        error = F.mse_loss(encoded.float(), latents)
        trainer.update(reconstruction_loss(decoded.float(), image) + error)
        if trainer.step % 50 == 0:
            quality = psnr(F.mse_loss(decoded.float().clamp(-1, 1), image).item())
            trainer.log(
                f"step {trainer.step} of {trainer.steps}, {quality:.2f} dB, latents "
                f"{error:.4f}, {trainer.minutes:.1f} min"
            )
    average = trainer.averages["vae"]
    report_reconstruction(options, average, trainer.log)
    write_checkpoint(options.run / TINY_VAE_FILE, average.half().state_dict())


# --- consistency ----------------------------------------------------------------------------------

GUIDANCE_CHANNELS = 64
"""Width of the guidance scale's embedding."""

GUIDANCE_SCALES = (2.0, 6.0)
"""Range of guidance scales whose effect the student learns."""

ROBUSTNESS = 1e-3
"""Errors below this are squared in the loss; larger ones count as they are (pseudo-Huber)."""


def distil_consistency(options: DistillationOptions) -> None:
    """Teach a copy of the UNet to predict at once where the guided trajectory will end.

    Source: "Latent Consistency Models" (Luo et al., 2023), algorithm 1, with the DDIM solver over
    one of its 50 parts at a time, and the student itself, without gradient, as the target.
    """
    teacher = load_denoiser(options)
    trainer = Trainer(
        replace(options, learning_rate=options.consistency_learning_rate),
        "consistency",
        {"unet": make_student(teacher["unet"])},
        options.consistency_samples // options.batch,
    )
    data = load_latents(options)
    tokenizer = load_tokenizer(options.run)
    alphas = make_alphas_cumprod(DEMO.noise).float().to(options.device)
    losses: list[float] = []
    while not trainer.done:
        batch = draw_batch(options, trainer.step, data, tokenizer)
        loss = consistency_loss(options, trainer.models["unet"], teacher, alphas, batch)
        trainer.update(loss)
        losses.append(loss.item())
        if trainer.step % 50 == 0:
            trainer.log(
                f"step {trainer.step} of {trainer.steps}, loss {sum(losses) / len(losses):.4f}, "
                f"{trainer.minutes:.1f} min"
            )
            losses = []
    if worker() == 0:
        path = options.run / CONSISTENCY_FILE
        write_checkpoint(path, trainer.averages["unet"].half().state_dict())


@dataclass(frozen=True)
class Batch:
    """Samples on guided trajectories, each at a place of its own.

    Attributes:
        clean: (B, C, h, w) latents.
        noise: (B, C, h, w), standard normal.
        start: (B,) timesteps.
        goal: (B,) timesteps one part nearer to the end of the trajectory; -1 is the end.
        scales: (B,) guidance scales.
        tokens: (2 B, T) of empty prompts, then of the captions.
    """

    clean: Tensor
    noise: Tensor
    start: Tensor
    goal: Tensor
    scales: Tensor
    tokens: Tensor


def draw_batch(
    options: DistillationOptions, step: int, data: Tensor, tokenizer: CLIPTokenizer
) -> Batch:
    """This process's share of the batch of a training step, the same for the same seed."""
    rng = step_generator(options, "consistency", step)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn((options.batch, *data.shape[1:]), generator=generator)
    index, versions = rng.integers([[len(data)], [2**31]], size=(2, options.batch))
    parts = torch.from_numpy(rng.integers(1, DISTILLED_STEPS + 1, size=options.batch))
    scales = torch.from_numpy(rng.uniform(*GUIDANCE_SCALES, size=options.batch)).float()
    mine = slice(worker(), None, workers())
    captions = [
        scenes.caption_at(int(i), options.seed, version=int(version))
        for i, version in zip(index[mine], versions[mine], strict=True)
    ]
    length = DEMO.noise.num_train_timesteps // DISTILLED_STEPS
    start = (length * parts[mine] - 1).to(options.device)
    return Batch(
        clean=data[torch.from_numpy(index[mine])].float().to(options.device),
        noise=noise[mine].to(options.device),
        start=start,
        goal=start - length,
        scales=scales[mine].to(options.device),
        tokens=tokenize(tokenizer, [""] * len(captions) + captions, options.device),
    )


def consistency_loss(
    options: DistillationOptions,
    student: nn.Module,
    teacher: nn.ModuleDict,
    alphas: Tensor,
    batch: Batch,
) -> Tensor:
    """How much the student's predictions of the end differ, from here and one solver step on."""
    start, goal = batch.start, batch.goal
    embedded = [guidance_scale_embedding(scale, GUIDANCE_CHANNELS) for scale in batch.scales.cpu()]
    timestep_cond = torch.cat(embedded).to(options.device)
    noisy = add_noise(alphas, batch.clean, batch.noise, start)
    with torch.no_grad(), autocast(options):
        context = teacher["text"](batch.tokens)
        both = teacher["unet"](torch.cat([noisy, noisy]), torch.cat([start, start]), context)
        negative, positive = both.float().chunk(2)
        context = context[len(noisy) :]
        velocity = negative + batch.scales[:, None, None, None] * (positive - negative)
        nearer = ddim_step(alphas, noisy, velocity, start, goal)
        predicted = student(nearer, goal.clamp(min=0), context, timestep_cond=timestep_cond)
        target = predicted_clean(alphas, nearer, predicted.float(), goal)
    with autocast(options):
        predicted = student(noisy, start, context, timestep_cond=timestep_cond)
    difference = predicted_clean(alphas, noisy, predicted.float(), start) - target
    return ((difference**2 + ROBUSTNESS**2).sqrt() - ROBUSTNESS).mean()


def make_student(teacher: nn.Module) -> UNet2DConditionModel:
    """A copy of the UNet that takes the guidance scale as input, and does not yet heed it."""
    student = UNet2DConditionModel(replace(DEMO.unet, time_cond_proj_dim=GUIDANCE_CHANNELS))
    student.load_state_dict(teacher.state_dict(), strict=False)
    projection = student.time_embedding.cond_proj
    assert projection is not None
    nn.init.zeros_(projection.weight)
    return student


def ddim_step(
    alphas: Tensor, noisy: Tensor, velocity: Tensor, start: Tensor, goal: Tensor
) -> Tensor:
    """Where a predicted velocity leads from timesteps ``start`` (B,) to ``goal``.

    `sdpy.schedulers.ddim` takes whole batches from one timestep to the next, and cannot do this.
    """
    clean = predicted_clean(alphas, noisy, velocity, start)
    return add_noise(alphas, clean, predicted_noise(alphas, noisy, velocity, start), goal)


# --- command line ---------------------------------------------------------------------------------


STAGES: dict[str, Callable[[DistillationOptions], None]] = {
    "tiny-vae": distil_autoencoder,
    "consistency": distil_consistency,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages named on the command line."""
    names = ["device", "seed", "batch", *DistillationOptions.__annotations__]
    description = (__doc__ or "").split("\n")[0]
    options, stages = parse_arguments(
        description, DistillationOptions, names, list(STAGES), arguments
    )
    join_workers(options)
    for stage in stages:
        STAGES[stage](options)


if __name__ == "__main__":
    main()
