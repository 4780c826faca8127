"""What a run would compute, without computing it: operations, samples and times of the stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scripts.demo.training.autoencoder import CROP, CROPPED_SHARE
from scripts.demo.training.clock import stage_seconds
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.renderer import drawing_processes
from sdpy.benchmark.figures import table
from sdpy.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel

TIMED_SCENES = 16
"""Scenes that are drawn to learn how fast this machine draws."""


@dataclass(frozen=True)
class Work:
    """What one sample of a stage costs.

    Attributes:
        samples: what is counted, for people.
        flops: floating-point operations, forward and backward.
        count: samples without a limit of time.
    """

    samples: str
    flops: float
    count: int


def stage_work(options: TrainingOptions) -> dict[str, Work]:
    """The cost of a sample of each stage that computes with networks."""
    size = options.recipe.size
    crop, image = autoencoder_flops(options, CROP), autoencoder_flops(options, size)
    encode, decode = halves_flops(options)
    forward, training = denoiser_flops(options)
    total = options.autoencoder_crops + options.autoencoder_images
    cropped = options.autoencoder_crops / max(total, 1)
    if options.minutes is not None:
        # The time is shared, and crops take less of it each.
        crops, images = CROPPED_SHARE / crop, (1 - CROPPED_SHARE) / image
        cropped = crops / (crops + images)
    return {
        "autoencoder": Work(
            f"crops of {CROP} and whole images", cropped * crop + (1 - cropped) * image, total
        ),
        "latents": Work("images", encode, options.images),
        "denoiser": Work("latents", training, options.denoiser_samples),
        "decoder": Work("images", encode + 3 * decode, options.decoder_images),
        "consistency": Work("latents", training + 3 * forward, options.consistency_samples),
    }


def autoencoder_flops(options: TrainingOptions, side: int) -> float:
    """Operations of a training step of the autoencoder on one image."""
    with torch.device("meta"):
        vae = AutoencoderKL(options.recipe.variant.vae)
        image = torch.empty(1, 3, side, side)
    return count_flops(lambda: vae.decode(vae.encode(image).mean).sum())


def halves_flops(options: TrainingOptions) -> tuple[float, float]:
    """Operations of encoding an image, and of decoding one."""
    size = options.recipe.size
    with torch.device("meta"), torch.no_grad():
        vae = AutoencoderKL(options.recipe.variant.vae)
        image = torch.empty(1, 3, size, size)
        latents = torch.empty(1, *options.recipe.latents_shape)
        return count_flops(lambda: vae.encode(image).mean), count_flops(lambda: vae.decode(latents))


def denoiser_flops(options: TrainingOptions) -> tuple[float, float]:
    """Operations of a prediction for one sample, and of a training step on it."""
    variant = options.recipe.variant
    with torch.device("meta"):
        unet, text = UNet2DConditionModel(variant.unet), CLIPTextModel(variant.text_encoder)
        latents = torch.empty(1, *options.recipe.latents_shape)
        timestep = torch.zeros(1)
        tokens = torch.zeros(1, variant.text_encoder.max_position_embeddings, dtype=torch.long)

    def predict() -> Tensor:
        return unet(latents, timestep, text(tokens)).sum()

    with torch.no_grad():
        forward = count_flops(predict)
    return forward, count_flops(predict)


def count_flops(compute: Callable[[], Tensor]) -> float:
    """Operations of a computation, and of its gradients if it has any."""
    with FlopCounterMode(display=False) as counter:
        result = compute()
        if result.requires_grad:
            result.backward()
    return float(counter.get_total_flops())


def seconds_a_scene(options: TrainingOptions) -> float:
    """Seconds in which one core of this machine draws a scene, without its captions."""
    started = time.perf_counter()
    for index in range(TIMED_SCENES):
        options.recipe.scenes.draw(
            options.recipe.scenes.scene_at(index, options.seed), options.recipe.size
        )
    return (time.perf_counter() - started) / TIMED_SCENES


def describe_run(options: TrainingOptions, teraflops: float, cores: int | None = None) -> str:
    """A Markdown table of the stages: time, operations a sample, samples.

    Args:
        options: of the run.
        teraflops: that the device reaches in these networks, in 10**12 operations a second.
        cores: that the machine has; None for as many as this one. Each draws as fast as here.
    """
    cores = drawing_processes(cores)
    work: Mapping[str, Work] = stage_work(options)
    used: dict[str, float] = {}
    drawn = options.images
    rows = []
    for stage in options.recipe.shares:
        limit = stage_seconds(options, stage, used)
        operations, samples = "", ""
        seconds = 0.0 if limit is None else limit
        if stage == "render":
            each = seconds_a_scene(options) / cores
            time_to_draw = limit
            if limit is not None and options.draws_beside_training:
                time_to_draw = limit + (stage_seconds(options, "autoencoder", used) or 0.0)
            if time_to_draw is not None:
                drawn = min(options.images, int(time_to_draw / each))
            if not options.draws_beside_training:
                seconds = drawn * each
            samples = f"{drawn:,} images, {cores} cores"
            if options.draws_beside_training:
                samples += ", until the autoencoder is trained"
        elif stage in work:
            one = work[stage]
            each = one.flops / (teraflops * 1e12)
            count = one.count if limit is None else int(limit / each)
            if stage == "latents":
                count = drawn
            seconds = count * each
            operations, samples = f"{one.flops / 1e9:.1f}", f"{count:,} {one.samples}"
        used[stage] = seconds
        rows.append([stage, f"{seconds:.0f} s" if seconds else "", operations, samples])
    return table(["stage", "time", "GFLOP a sample", "samples"], rows)
