"""The stage that distils the trained UNet into one for few steps.

Source: "Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step Inference"
(Luo et al., 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from scripts.demo.training.data import (
    CaptionSet,
    device_generator,
    load_latents,
    step_generator,
)
from scripts.demo.training.diffusion import add_noise, predicted_clean, predicted_noise
from scripts.demo.training.log import Log, worker, workers
from scripts.demo.training.models import (
    CONSISTENCY_FILE,
    GUIDANCE_CHANNELS,
    load_denoiser,
    student_config,
)
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.trainer import Trainer, autocast, full_precision, prepare
from sdpy.checkpoints import write_checkpoint
from sdpy.models import UNet2DConditionConfig, UNet2DConditionModel
from sdpy.runtime.devices import seeded_generator
from sdpy.schedulers import NoiseConfig
from sdpy.schedulers.consistency import DISTILLED_STEPS
from sdpy.schedulers.lcm import LCMScheduler
from sdpy.schedulers.noise import make_alphas_cumprod

GUIDANCE_SCALES = (2.0, 6.0)
"""Range of guidance scales whose effect the student learns."""

REPORTED_STEPS = 4
REPORTED_SAMPLES = 16
"""Steps and samples by which the finished student is compared with its teacher."""

ROBUSTNESS = 1e-3
"""Errors below this are squared in the loss; larger ones count as they are (pseudo-Huber)."""


def distil_consistency(options: TrainingOptions) -> None:
    """Teach a copy of the UNet to predict at once where the guided trajectory will end.

    Writes ``unet_lcm.safetensors`` in float16, for ``--unet-weights`` with ``--scheduler lcm``.

    Source: "Latent Consistency Models" (Luo et al., 2023), algorithm 1, with the DDIM solver over
    one of its 50 parts at a time, and the student itself, without gradient, as the target.
    """
    teacher = prepare(load_denoiser(options))
    trainer = Trainer(
        replace(options, learning_rate=options.consistency_learning_rate),
        "consistency",
        {"unet": make_student(teacher["unet"], options.recipe.variant.unet)},
        options.consistency_samples // options.batch,
        log_every=50,
    )
    latents, captions = load_latents(options), CaptionSet(options)
    alphas = make_alphas_cumprod(options.recipe.variant.noise).float().to(options.device)

    def loss_at(step: int) -> Tensor:
        batch = draw_batch(options, step, latents, captions)
        return consistency_loss(options, trainer.models["unet"], teacher, alphas, batch)

    for _ in trainer.train(loss_at):
        pass
    if worker() == 0:
        path = options.run / CONSISTENCY_FILE
        report_steps(options, trainer.averages["unet"], teacher, captions, trainer.log)
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


def draw_batch(options: TrainingOptions, step: int, latents: Tensor, captions: CaptionSet) -> Batch:
    """This process's share of the batch of a training step, the same for the same seed.

    Everything is drawn on the device.
    """
    rng = step_generator(options, "consistency", step)
    generator, device = device_generator(options, rng), latents.device
    size = (options.batch,)
    index = torch.randint(len(latents), size, generator=generator, device=device)
    noise = torch.randn((*size, *latents.shape[1:]), generator=generator, device=device)
    parts = torch.randint(1, DISTILLED_STEPS + 1, size, generator=generator, device=device)
    low, high = GUIDANCE_SCALES
    scales = low + (high - low) * torch.rand(size, generator=generator, device=device)
    tokens = captions.draw(index, generator)
    mine = slice(worker(), None, workers())
    length = options.recipe.variant.noise.num_train_timesteps // DISTILLED_STEPS
    start = length * parts[mine] - 1
    return Batch(
        clean=latents[index[mine]].float(),
        noise=noise[mine],
        start=start,
        goal=start - length,
        scales=scales[mine],
        tokens=torch.cat([captions.empty.expand_as(tokens[mine]), tokens[mine]]),
    )


def consistency_loss(
    options: TrainingOptions,
    student: nn.Module,
    teacher: nn.ModuleDict,
    alphas: Tensor,
    batch: Batch,
) -> Tensor:
    """How much the student's predictions of the end differ, from here and one solver step on."""
    start, goal = batch.start, batch.goal
    timestep_cond = embed_scales(batch.scales)
    noisy = add_noise(alphas, batch.clean, batch.noise, start)
    with torch.no_grad(), autocast(options):
        with full_precision(options):
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


Velocity = Callable[[Tensor, int], Tensor]
"""What a network predicts for latents at a timestep."""


@torch.no_grad()
def report_steps(
    options: TrainingOptions,
    student: nn.Module,
    teacher: nn.ModuleDict,
    captions: CaptionSet,
    log: Log,
) -> None:
    """Log how far the student is, in each step of sampling, from where its teacher would end.

    Both start from the same latents, those that the student has got to. The teacher's end from the
    first noise would tell nothing of later steps: noise that is added anew leads to another image,
    also from a student that makes no mistake.
    """
    variant = options.recipe.variant
    count = min(REPORTED_SAMPLES, options.batch, len(captions.ids))
    index = torch.arange(count, device=options.device)
    generators = [seeded_generator(seed) for seed in range(count)]
    shape = options.recipe.latents_shape
    noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(options.device)
    with full_precision(options):
        words = captions.draw(index, torch.Generator(options.device).manual_seed(0))
        context = teacher["text"](torch.cat([captions.empty.expand_as(words), words]))
    scales = torch.full((count,), variant.guidance_scale, device=options.device)
    timestep_cond = embed_scales(scales)

    def predicted(latents: Tensor, timestep: int) -> Tensor:
        start = torch.full((count,), timestep, device=options.device)
        with autocast(options):
            velocity = student(latents, start, context[count:], timestep_cond=timestep_cond)
        return velocity.float()

    def guided(latents: Tensor, timestep: int) -> Tensor:
        start = torch.full((2 * count,), timestep, device=options.device)
        with autocast(options):
            both = teacher["unet"](torch.cat([latents, latents]), start, context)
        negative, positive = both.float().chunk(2)
        return negative + variant.guidance_scale * (positive - negative)

    errors = step_errors(variant.noise, predicted, guided, noise, REPORTED_STEPS, generators)
    told = ", ".join(f"{100 * error:.1f}" for error in errors)
    log(f"{REPORTED_STEPS} steps: {told} % off the teacher's ends")


def step_errors(
    noise: NoiseConfig,
    student: Velocity,
    teacher: Velocity,
    latents: Tensor,
    steps: int,
    generators: list[torch.Generator],
) -> list[float]:
    """How far the student is from the teacher's end in each step of sampling, relative to this.

    Args:
        noise: of both.
        student: predicts the velocity that means the end of the trajectory.
        teacher: predicts the velocity at a place, guidance included.
        latents: (B, C, h, w) that sampling starts from.
        steps: of sampling, with `LCMScheduler`.
        generators: one for each sample, of the noise that is added between steps.
    """
    alphas = make_alphas_cumprod(noise).float().to(latents.device)
    scheduler = LCMScheduler(noise)
    scheduler.set_timesteps(steps)
    errors = []
    for timestep in map(int, scheduler.timesteps):
        velocity = student(latents, timestep)
        start = torch.full((len(latents),), timestep, device=latents.device)
        found = predicted_clean(alphas, latents, velocity, start)
        end = trajectory_end(alphas, teacher, latents, timestep)
        errors.append(((found - end).norm() / end.norm()).item())
        latents = scheduler.step(velocity, timestep, latents, generators)
    return errors


def trajectory_end(alphas: Tensor, velocity: Velocity, latents: Tensor, timestep: int) -> Tensor:
    """Where the solver of the distillation ends, part by part, from latents at a timestep."""
    length = len(alphas) // DISTILLED_STEPS
    while timestep >= 0:
        start = torch.full((len(latents),), timestep, device=latents.device)
        latents = ddim_step(alphas, latents, velocity(latents, timestep), start, start - length)
        timestep -= length
    return latents


def embed_scales(scales: Tensor) -> Tensor:
    """`sdpy.models.embeddings.guidance_scale_embedding` of scales (B,), on their device."""
    half = GUIDANCE_CHANNELS // 2
    exponents = torch.arange(half, device=scales.device) / (half - 1)
    angles = 1000 * (scales[:, None] - 1) * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def make_student(teacher: nn.Module, config: UNet2DConditionConfig) -> UNet2DConditionModel:
    """A copy of the UNet that takes the guidance scale as input, and does not yet heed it."""
    student = UNet2DConditionModel(student_config(config))
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
