"""Samplers beside the formulas of Crowson's k-diffusion, written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler
from torch import Tensor

from sdpy.errors import UsageError
from sdpy.pipelines.values import read_sigmas, show_sigmas
from sdpy.schedulers import NoiseConfig, Scheduler, make_scheduler
from sdpy.schedulers.noise import draw_noise
from sdpy.schedulers.sigmas import timesteps_at, training_sigmas
from support.compare import RUN_TOLERANCE, normal, relative_error

SHAPE = (2, 4, 6, 5)
WEIGHTS = normal(4, 4, 3, 3, seed=9).double() / 6
TRAINING = training_sigmas(NoiseConfig())

Denoiser = Callable[[Tensor, float], Tensor]


def network(x: Tensor, timestep: float) -> Tensor:
    x = torch.nn.functional.conv2d(x.double(), WEIGHTS, padding=1)
    return torch.tanh(x + math.sin(timestep / 50)) + 0.1 * x


def denoiser(x: Tensor, sigma: float) -> Tensor:
    """D(x; sigma) of a network that predicts the noise in latents of variance 1."""
    timestep = float(timesteps_at(np.array([sigma]), TRAINING)[0])
    return x - sigma * network(x / math.sqrt(sigma**2 + 1), timestep)


def ancestral(sigma: float, sigma_next: float) -> tuple[float, float]:
    up = min(sigma_next, (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
    return (sigma_next**2 - up**2) ** 0.5, up


def two_s_ancestral(
    model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Callable[[], Tensor]
) -> Tensor:
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        denoised = model(x, sigma)
        down, up = ancestral(sigma, sigma_next)
        if down == 0:
            x = x + (x - denoised) / sigma * (down - sigma)
        else:
            t, t_next = -math.log(sigma), -math.log(down)
            h = t_next - t
            s = t + h / 2
            x_2 = math.exp(-s) / math.exp(-t) * x - math.expm1(-h / 2) * denoised
            x = math.exp(-t_next) / math.exp(-t) * x - math.expm1(-h) * model(x_2, math.exp(-s))
        if sigma_next > 0:
            x = x + noise() * up
    return x


def sde(model: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Callable[[], Tensor]) -> Tensor:
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        denoised = model(x, sigma)
        if sigma_next == 0:
            x = x + (x - denoised) / sigma * (sigma_next - sigma)
            continue
        t, t_next = -math.log(sigma), -math.log(sigma_next)
        middle = math.exp(-(t + t_next) / 2)
        half = noise()
        down, up = ancestral(sigma, middle)
        x_2 = down / sigma * x - math.expm1(t + math.log(down)) * denoised + half * up
        denoised = model(x_2, middle)
        down, up = ancestral(sigma, sigma_next)
        whole = math.sqrt(sigma - middle) * half + math.sqrt(middle - sigma_next) * noise()
        whole = whole / math.sqrt(sigma - sigma_next)
        x = down / sigma * x - math.expm1(t + math.log(down)) * denoised + whole * up
    return x


def seeded() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(SHAPE[0])]


def run(scheduler: Scheduler, latents: Tensor) -> Tensor:
    generators = seeded()
    for timestep in scheduler.timesteps:
        output = network(scheduler.scale_model_input(latents, timestep), timestep).float()
        latents = scheduler.step(output, timestep, latents, generators)
    return latents


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 30])
@pytest.mark.parametrize(
    "options",
    [{}, {"sigmas": "karras"}, {"sigmas": "ays"}, {"timestep_spacing": "trailing"}],
    ids=str,
)
@pytest.mark.parametrize(("name", "formula"), [("dpm++-2s-a", two_s_ancestral), ("dpm++-sde", sde)])
def test_whole_loops(name: str, formula: Any, options: dict[str, str], steps: int) -> None:
    scheduler = make_scheduler(name, NoiseConfig(), **options)  # type: ignore[arg-type]
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == 2 * steps - 1
    latents = normal(*SHAPE) * scheduler.init_noise_sigma
    own: Any = scheduler
    sigmas = [*own.sigmas[::2], 0.0][: steps + 1]
    generators = seeded()
    expected = formula(denoiser, latents.double(), sigmas, lambda: draw_noise(latents, generators))
    assert relative_error(run(scheduler, latents), expected) <= RUN_TOLERANCE


def test_the_halves_of_a_step_share_their_noise_as_a_brownian_motion_does() -> None:
    """Its increments from the start to the middle, and from the start to the end."""
    sigma, middle, end = 10.0, 6.0, 1.0
    like = torch.zeros(400_000)
    tree = BrownianTreeNoiseSampler(like, end, sigma, seed=0)
    half = tree(torch.tensor(sigma), torch.tensor(middle))
    whole = tree(torch.tensor(sigma), torch.tensor(end))
    correlation = (half * whole).mean().item()
    assert correlation == pytest.approx(math.sqrt((sigma - middle) / (sigma - end)), abs=0.01)


# --- sigmas as numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["euler", "dpm++-2m", "dpm++-2s-a", "heun", "unipc"])
def test_sigmas_as_numbers_are_those_of_the_schedule(name: str) -> None:
    named = make_scheduler(name, NoiseConfig(), sigmas="ays")
    named.set_timesteps(10)
    plain: Any = make_scheduler("euler", NoiseConfig(), sigmas="ays")
    plain.set_timesteps(10)
    values = plain.sigmas[:-1]
    listed = make_scheduler(name, NoiseConfig(), sigmas=values)
    listed.set_timesteps(10)
    assert listed.timesteps == named.timesteps
    assert listed.init_noise_sigma == pytest.approx(named.init_noise_sigma)
    latents = normal(*SHAPE) * named.init_noise_sigma
    assert relative_error(run(listed, latents), run(named, latents)) <= 1e-6
    listed.set_timesteps(10, 4)
    assert len(listed.timesteps) < len(named.timesteps)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("euler", {"sigmas": (10.0, 1.0)}, "2 sigmas are as many steps, not 3"),
        ("euler", {"sigmas": (99.0, 1.0, 0.5)}, "begin at 14.615 or lower"),
        ("ddim", {"sigmas": (10.0, 1.0, 0.5)}, "ddim has sigmas of its own"),
        ("euler karras", {"sigmas": (10.0, 1.0, 0.5)}, "euler has 'karras'"),
        (
            "euler",
            {"sigmas": (10.0, 1.0, 0.5), "timestep_spacing": "trailing"},
            "come with timesteps: leave out 'trailing'",
        ),
    ],
)
def test_sigmas_that_cannot_be(name: str, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_scheduler(name, NoiseConfig(), **options).set_timesteps(3)


def test_the_option_takes_numbers_and_names() -> None:
    assert read_sigmas("14.6, 2.7,0.3") == read_sigmas([14.6, 2.7, 0.3, 0]) == (14.6, 2.7, 0.3)
    assert read_sigmas("karras") == "karras"
    assert read_sigmas(show_sigmas((14.6, 2.7))) == (14.6, 2.7)
    for wrong in ("1,2", "3,x", "0", "3,-1", "nan,1", "1e999,1"):
        with pytest.raises(UsageError, match="--sigmas"):
            read_sigmas(wrong)
