"""The tables of samplers' steps against the samplers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdpy.schedulers import SCHEDULERS, NoiseConfig, Scheduler, make_scheduler
from sdpy.schedulers.dpmsolver_multistep import DPMSolverMultistepScheduler
from sdpy.schedulers.linear import LONGEST_WINDOW, LinearSteps, linear_steps
from sdpy.schedulers.noise import draw_noise
from sdpy.schedulers.thresholding import DynamicThresholding
from support.compare import relative_error

SHAPE = (2, 4, 6, 5)
TOLERANCE = 1e-11


def scheduler_of(name: str, steps: int, skip: int = 0, **noise: Any) -> Scheduler:
    """A sampler with as much noise as it can add."""
    info = SCHEDULERS[name]
    scheduler = make_scheduler(name, NoiseConfig(**noise), eta=None if info.eta is None else 1.0)
    scheduler.set_timesteps(steps, skip)
    return scheduler


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(SHAPE[0])]


def prediction(latents: Tensor, i: int) -> Tensor:
    """Stands for the network, and is not linear."""
    return torch.sin(3 * latents + i)


def run(scheduler: Scheduler, latents: Tensor, mask: Tensor) -> Tensor:
    """A loop that puts back what it keeps after each step, as inpainting does."""
    known, noise = torch.cos(latents), latents
    timesteps, numbers = scheduler.timesteps, generators()
    for i, timestep in enumerate(timesteps):
        seen = scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(prediction(seen, i), timestep, latents, numbers)
        kept = known
        if i + 1 < len(timesteps):
            kept = scheduler.add_noise(known, noise, timesteps[i + 1])
        latents = mask * latents + (1 - mask) * kept
    return latents


def run_by_table(table: LinearSteps, latents: Tensor, mask: Tensor) -> Tensor:
    """The same without the scheduler."""
    known, noise = torch.cos(latents), latents
    numbers = generators()
    past: list[list[Tensor]] = [[], [], []]  # newest first
    for i, (weights, scale, factors) in enumerate(
        zip(table.weights, table.scales, table.known, strict=True)
    ):
        drawn = draw_noise(latents, numbers) if table.draws[i] else torch.zeros_like(latents)
        new = (latents, prediction(latents * scale, i), drawn)
        for kept, one in zip(past, new, strict=True):
            kept.insert(0, one)
        latents = sum(
            (
                weight * one
                for row, kept in zip(weights, past, strict=True)
                for weight, one in zip(row, kept, strict=False)
            ),
            torch.zeros_like(latents),
        )
        latents = mask * latents + (1 - mask) * (factors[0] * known + factors[1] * noise)
    return latents


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_a_table_does_what_the_sampler_does(name: str, steps: int) -> None:
    numbers = torch.Generator().manual_seed(7)
    latents = torch.randn(SHAPE, dtype=torch.float64, generator=numbers)
    mask = (torch.randn(SHAPE, generator=numbers) > 0).double()
    for options in ({}, {"prediction_type": "v_prediction"}):
        scheduler = scheduler_of(name, steps, **options)
        table = linear_steps(scheduler)
        assert table is not None
        assert len(table.draws) == len(scheduler.timesteps)
        expected = run(scheduler, latents, mask)
        assert relative_error(run_by_table(table, latents, mask), expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["dpm++-3m-sde", "unipc", "pndm", "dpm++-sde"])
def test_where_steps_are_skipped_and_the_last_timestep_is_pure_noise(name: str) -> None:
    latents = torch.randn(SHAPE, dtype=torch.float64)
    everything = torch.ones(SHAPE, dtype=torch.float64)
    noise = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    scheduler = scheduler_of(name, 12, skip=5, **noise)
    table = linear_steps(scheduler)
    assert table is not None
    expected = run(scheduler, latents, everything)
    assert relative_error(run_by_table(table, latents, everything), expected) <= TOLERANCE


def test_how_far_samplers_look_back() -> None:
    windows = {}
    for name in SCHEDULERS:
        table = linear_steps(scheduler_of(name, 20))
        assert table is not None
        windows[name] = table.window
    assert windows["ddim"] == windows["euler-a"] == windows["lcm"] == 1
    assert windows["dpm++-2m"] == windows["heun"] == 2
    assert windows["lms"] == 4
    assert windows["unipc"] > 10  # the corrected latents go on and on


def test_what_looks_back_too_far_has_no_table() -> None:
    assert linear_steps(scheduler_of("unipc", LONGEST_WINDOW + 20)) is None
    assert linear_steps(scheduler_of("ddpm", LONGEST_WINDOW + 20)) is not None


def test_thresholding_has_no_table() -> None:
    for thresholding, linear in ((DynamicThresholding(), False), (None, True)):
        scheduler = DPMSolverMultistepScheduler(NoiseConfig(), thresholding=thresholding)
        scheduler.set_timesteps(6)
        assert (linear_steps(scheduler) is not None) == linear


def test_the_scheduler_stays_as_it_is() -> None:
    latents = torch.randn(SHAPE, dtype=torch.float64)
    everything = torch.ones(SHAPE, dtype=torch.float64)
    scheduler, untouched = scheduler_of("dpm++-2m", 8), scheduler_of("dpm++-2m", 8)
    linear_steps(scheduler)
    assert torch.equal(run(scheduler, latents, everything), run(untouched, latents, everything))
