"""The OCaml program's schedule, spelled out, and its formula worked out again in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sdpy.models import AutoencoderKL, AutoencoderKLConfig
from sdpy.schedulers import NoiseConfig
from sdpy.schedulers.ddim import DDIMScheduler

Model = Callable[[Tensor, int], Tensor]

# fmt: off
THIRTY_STEPS = [
    990, 957, 924, 891, 858, 825, 792, 759, 726, 693,
    660, 627, 594, 561, 528, 495, 462, 429, 396, 363,
    330, 297, 264, 231, 198, 165, 132, 99, 66, 33,
]
# fmt: on


def scheduler_of(steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(NoiseConfig(), timestep_spacing="original")
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize(
    ("steps", "timesteps"),
    [
        (30, THIRTY_STEPS),
        (1, [1000]),
        (2, [1000, 500]),
        (3, [999, 666, 333]),
        (4, [1000, 750, 500, 250]),
        (501, list(range(501, 0, -1))),
        (1000, list(range(1000, 0, -1))),
    ],
)
def test_timesteps(steps: int, timesteps: list[int]) -> None:
    assert scheduler_of(steps).timesteps == tuple(timesteps)


def alphas_by_hand() -> np.ndarray:
    roots = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=np.float64)
    return np.cumprod(1 - roots**2)


@pytest.mark.parametrize(
    ("steps", "indices"),
    [
        (1, [(999, 0)]),
        (2, [(999, 499), (500, 0)]),
        (3, [(999, 666), (666, 333), (333, 0)]),
        (30, list(zip(THIRTY_STEPS, [*THIRTY_STEPS[1:], 0], strict=True))),
    ],
)
def test_indices_read_at_each_step(steps: int, indices: list[tuple[int, int]]) -> None:
    """With a prediction of 0 a step multiplies by ``sqrt(a_prev / a_t)``, which tells them."""
    scheduler, alphas = scheduler_of(steps), alphas_by_hand()
    one = torch.ones(1, dtype=torch.float64)
    for timestep, (now, previous) in zip(scheduler.timesteps, indices, strict=True):
        factor = scheduler.step(0 * one, timestep, one).item()
        assert factor == pytest.approx(math.sqrt(alphas[previous] / alphas[now]), rel=1e-6)


def model(x: Tensor, timestep: int) -> Tensor:
    """Any smooth function of the latents and the timestep, of about the size of noise."""
    shift = torch.roll(x, shifts=(1, 1), dims=(1, 2))
    return 0.8 * torch.tanh(x + 0.3 * shift) + 0.2 * math.sin(timestep / 100)


def original_run(model: Model, latents: Tensor, steps: int) -> list[Tensor]:
    """All ``steps + 1`` evaluations of the original, from its formula: latents after each."""
    alphas, ratio, states = alphas_by_hand(), 1000 // steps, []
    for s in range(steps, -1, -1):
        timestep = ratio * s
        i = min(timestep, 999)
        now, previous = alphas[i], alphas[max(i - ratio, 0)]
        noise = model(latents, timestep)
        clean = (latents - math.sqrt(1 - now) * noise) / math.sqrt(now)
        latents = math.sqrt(previous) * clean + math.sqrt(1 - previous) * noise
        states.append(latents)
    return states


def our_run(model: Model, latents: Tensor, steps: int) -> list[Tensor]:
    scheduler, states = scheduler_of(steps), []
    for timestep in scheduler.timesteps:
        latents = scheduler.step(model(latents, timestep), timestep, latents)
        states.append(latents)
    return states


def first_latents(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(32)
    return torch.randn(1, 4, 8, 8, generator=generator).to(dtype)


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 100])
def test_the_run_is_the_originals_without_its_last_evaluation(steps: int) -> None:
    latents = first_latents(torch.float64)
    theirs, ours = original_run(model, latents, steps), our_run(model, latents, steps)
    assert len(theirs) == len(ours) + 1
    for a, b in zip(ours, theirs[:-1], strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    assert torch.allclose(theirs[-1], theirs[-2], rtol=0, atol=1e-13)


@pytest.mark.parametrize("steps", [2, 30])
def test_a_step_at_timestep_0_returns_its_input(steps: int) -> None:
    scheduler = scheduler_of(steps)
    sample, output = first_latents(torch.float32), 3 * first_latents(torch.float32).flip(3)
    kept = scheduler.step(output, 0, sample)
    assert torch.allclose(kept, sample, rtol=1e-6, atol=1e-6)
    moved = scheduler.step(output, scheduler.timesteps[-1], sample)
    assert not torch.allclose(moved, sample, atol=1e-3)


def tiny_decoder() -> nn.Module:
    torch.manual_seed(0)
    config = AutoencoderKLConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
    vae = AutoencoderKL(config).requires_grad_(False).double()
    vae.decoder.conv_out.weight *= 3  # so that the image reaches from black to white
    return vae


def to_8_bits(vae: nn.Module, latents: Tensor) -> Tensor:
    image = vae.decode(latents / 0.18215) / 2 + 0.5
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("steps", [2, 30])
def test_the_image_is_the_one_of_all_evaluations(steps: int) -> None:
    latents = first_latents(torch.float64)
    theirs, ours = original_run(model, latents, steps), our_run(model, latents, steps)
    vae = tiny_decoder()
    whole, skipped = to_8_bits(vae, theirs[-1]), to_8_bits(vae, theirs[-2])
    assert len(whole.unique()) > 50  # it is an image
    assert torch.equal(skipped, whole)
    # and ours, whose betas are rounded to float32, may differ from it by a rounding
    difference = to_8_bits(vae, ours[-1]).int() - whole.int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 0.01
    if steps > 2:
        assert not torch.equal(to_8_bits(vae, ours[-2]), whole)
