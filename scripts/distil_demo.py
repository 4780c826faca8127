"""Distil the trained demo model into faster ones: a tiny autoencoder, and a UNet for few steps.

    python scripts/distil_demo.py runs/demo tiny-vae
    torchrun --nproc-per-node 2 scripts/distil_demo.py runs/demo consistency

Both need the states of ``scripts/train_demo.py`` in ``RUN``, log and resume as its stages do, and
write what the options of ``sdpy generate --model demo`` take:

    tiny-vae      ``RUN/tiny_vae.safetensors`` for --vae-weights
    consistency   ``RUN/unet_lcm.safetensors`` for --unet-weights, with --scheduler lcm --steps 4

Both are float16, as the bundled weights are, and not bundled themselves.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

import demo_scenes as scenes
import train_demo
from sdpy.checkpoints import write_checkpoint
from sdpy.models import AutoencoderTiny, UNet2DConditionModel
from sdpy.models.embeddings import guidance_scale_embedding
from sdpy.schedulers.consistency import DISTILLED_STEPS
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.zoo.variants import DEMO
from train_demo import (
    MERGES_FILE,
    Training,
    Vocabulary,
    autocast,
    encode_captions,
    hash_name,
    load_denoiser,
    load_pictures,
    psnr,
    reconstruction_loss,
    worker,
    workers,
)

TINY_VAE_FILE, CONSISTENCY_FILE = "tiny_vae.safetensors", "unet_lcm.safetensors"


@dataclass(frozen=True)
class Options(train_demo.Options):
    """How much to distil."""

    tiny_vae_pictures: int = 24_000
    tiny_vae_learning_rate: float = 1e-3
    consistency_samples: int = 32_000
    consistency_learning_rate: float = 2e-4


# --- tiny autoencoder -----------------------------------------------------------------------------


def distil_autoencoder(options: Options) -> None:
    """Teach a tiny autoencoder the latents of the real one, and to paint pictures from these."""
    data = torch.load(options.run / "latents.pt", mmap=True, weights_only=True)["latents"]
    pictures = load_pictures(options)
    torch.manual_seed(options.seed)
    training = Training(
        replace(options, learning_rate=options.tiny_vae_learning_rate),
        "tiny-vae",
        {"vae": AutoencoderTiny(DEMO.tiny_vae)},
        options.tiny_vae_pictures // options.batch,
    )
    vae = training.models["vae"]
    while not training.done:
        rng = np.random.default_rng([options.seed, hash_name("tiny-vae"), training.step])
        index = np.sort(rng.integers(len(data), size=options.batch))
        batch = torch.from_numpy(pictures[index]).permute(0, 3, 1, 2).to(options.device)
        picture, latents = batch.float() / 127.5 - 1, data[index].float().to(options.device)
        with autocast(options):
            encoded, painted = vae.encode(picture).mean, vae.decode(latents)
        error = F.mse_loss(encoded.float(), latents)
        training.update(reconstruction_loss(painted.float(), picture) + error)
        if training.step % 50 == 0:
            likeness = psnr(F.mse_loss(painted.float().clamp(-1, 1), picture).item())
            training.log(
                f"step {training.step} of {training.steps}, {likeness:.2f} dB, latents "
                f"{error:.4f}, {training.minutes:.1f} min"
            )
    average = training.averages["vae"]
    train_demo.report_reconstruction(options, average, training.log)
    write_checkpoint(options.run / TINY_VAE_FILE, average.half().state_dict())


# --- consistency ----------------------------------------------------------------------------------

GUIDANCE_CHANNELS = 64
"""Width of the guidance scale's embedding."""

GUIDANCE_SCALES = (2.0, 6.0)
"""Between which the student learns what guidance does."""

ROBUSTNESS = 1e-3
"""The loss is the absolute error, but for errors below this."""


def distil_consistency(options: Options) -> None:
    """Teach a copy of the UNet to see at once where the guided walk that it is on will end.

    Source: "Latent Consistency Models" (Luo et al., 2023), algorithm 1, with the DDIM solver over
    one of its 50 parts at a time, and the student itself, without gradient, as the target.
    """
    teacher = load_denoiser(options)
    training = Training(
        replace(options, learning_rate=options.consistency_learning_rate),
        "consistency",
        {"unet": make_student(teacher["unet"])},
        options.consistency_samples // options.batch,
    )
    data = torch.load(options.run / "latents.pt", mmap=True, weights_only=True)["latents"]
    words = Vocabulary(options.run / MERGES_FILE)
    alphas = make_alphas_cumprod(DEMO.noise).float().to(options.device)
    losses: list[float] = []
    while not training.done:
        walks = draw_walks(options, training.step, data, words)
        loss = consistency_loss(options, training.models["unet"], teacher, alphas, walks)
        training.update(loss)
        losses.append(loss.item())
        if training.step % 50 == 0:
            training.log(
                f"step {training.step} of {training.steps}, loss {sum(losses) / len(losses):.4f}, "
                f"{training.minutes:.1f} min"
            )
            losses = []
    if worker() == 0:
        path = options.run / CONSISTENCY_FILE
        write_checkpoint(path, training.averages["unet"].half().state_dict())


@dataclass(frozen=True)
class Walks:
    """This process's share of a batch of guided walks, each at some place on its way.

    Attributes:
        clean: (B, C, h, w) latents.
        noise: likewise.
        start: (B,) timesteps.
        goal: (B,) one part nearer to the end; -1 is the end.
        scales: (B,) of guidance.
        tokens: (2 B, T) of empty prompts, then of the captions.
    """

    clean: Tensor
    noise: Tensor
    start: Tensor
    goal: Tensor
    scales: Tensor
    tokens: Tensor


def draw_walks(options: Options, step: int, data: Tensor, words: Vocabulary) -> Walks:
    """The walks of a training step, the same for the same seed."""
    rng = np.random.default_rng([options.seed, hash_name("consistency"), step])
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
    return Walks(
        clean=data[torch.from_numpy(index[mine])].float().to(options.device),
        noise=noise[mine].to(options.device),
        start=start,
        goal=start - length,
        scales=scales[mine].to(options.device),
        tokens=encode_captions(options, words, [""] * len(captions) + captions),
    )


def consistency_loss(
    options: Options, student: nn.Module, teacher: nn.ModuleDict, alphas: Tensor, walks: Walks
) -> Tensor:
    """How much the student's views of the end differ, from here and one solver's step ahead."""
    start, goal = walks.start, walks.goal
    embedded = [guidance_scale_embedding(scale, GUIDANCE_CHANNELS) for scale in walks.scales.cpu()]
    timestep_cond = torch.cat(embedded).to(options.device)
    noisy = mix(alphas, walks.clean, walks.noise, start)
    with torch.no_grad(), autocast(options):
        context = teacher["text"](walks.tokens)
        both = teacher["unet"](torch.cat([noisy, noisy]), torch.cat([start, start]), context)
        without, asked = both.float().chunk(2)
        context = context[len(noisy) :]
        velocity = without + walks.scales[:, None, None, None] * (asked - without)
        nearer = ddim_step(alphas, noisy, velocity, start, goal)
        seen = student(nearer, goal.clamp(min=0), context, timestep_cond=timestep_cond)
        target = predicted_end(alphas, nearer, seen.float(), goal)
    with autocast(options):
        seen = student(noisy, start, context, timestep_cond=timestep_cond)
    difference = predicted_end(alphas, noisy, seen.float(), start) - target
    return ((difference**2 + ROBUSTNESS**2).sqrt() - ROBUSTNESS).mean()


def make_student(teacher: nn.Module) -> UNet2DConditionModel:
    """A copy of the UNet that can be told the guidance scale, and does not heed it yet."""
    student = UNet2DConditionModel(replace(DEMO.unet, time_cond_proj_dim=GUIDANCE_CHANNELS))
    student.load_state_dict(teacher.state_dict(), strict=False)
    nn.init.zeros_(student.time_embedding.cond_proj.weight)
    return student


def mix(alphas: Tensor, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Latents (B, C, h, w) as noisy as the timesteps (B,) say; before the first, clean ones."""
    alpha = alpha_at(alphas, timesteps)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def ddim_step(
    alphas: Tensor, noisy: Tensor, velocity: Tensor, start: Tensor, goal: Tensor
) -> Tensor:
    """Where a predicted velocity leads from timesteps ``start`` (B,) to ``goal``."""
    alpha = alpha_at(alphas, start)
    noise = alpha.sqrt() * velocity + (1 - alpha).sqrt() * noisy
    return mix(alphas, predicted_end(alphas, noisy, velocity, start), noise, goal)


def predicted_end(alphas: Tensor, noisy: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
    """The clean latents that a predicted velocity means, which clean latents themselves are.

    This is the consistency function: its share of ``noisy`` is 1 before the first timestep and, at
    the earliest that is trained on, already below 1e-5.
    """
    alpha = alpha_at(alphas, timesteps)
    return alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity


def alpha_at(alphas: Tensor, timesteps: Tensor) -> Tensor:
    """``alphas_cumprod`` at the timesteps (B,), for latents; 1 before the first."""
    known = torch.where(timesteps < 0, 1.0, alphas[timesteps.clamp(min=0)])
    return known[:, None, None, None]


# --- command line ---------------------------------------------------------------------------------


STAGES: dict[str, Callable[[Options], None]] = {
    "tiny-vae": distil_autoencoder,
    "consistency": distil_consistency,
}


def main() -> None:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of states and logs")
    parser.add_argument("stage", choices=[*STAGES], nargs="+")
    defaults = vars(Options(run=Path()))
    for name in ("device", "seed", "batch", *Options.__annotations__):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(defaults[name]), default=defaults[name])
    values = vars(parser.parse_args())
    stages, options = values.pop("stage"), Options(**values)
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo" if options.device == "cpu" else "nccl")
    for stage in stages:
        STAGES[stage](options)


if __name__ == "__main__":
    main()
