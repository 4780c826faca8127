"""What every registered sampler promises; a new one is covered by being registered.

The network of these tests is an oracle. It knows the clean latents, takes what it is given for the
mixture ``sqrt(a) clean + sqrt(1 - a) noise`` that it was trained on, and predicts exactly. So a
sampler that follows its equations, with any network inputs scaled as they ought to be, arrives at
the clean latents.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpy.errors import UsageError
from sdpy.schedulers import (
    PREDICTION_TYPES,
    SCHEDULERS,
    NoiseConfig,
    Scheduler,
    make_scheduler,
)
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.schedulers.thresholding import DynamicThresholding

EVERY_NAME = pytest.mark.parametrize("name", SCHEDULERS)
EVERY_SPACING = pytest.mark.parametrize(
    ("name", "spacing"),
    [(name, spacing) for name in SCHEDULERS for spacing in SCHEDULERS[name].spacings or (None,)],
)
EVERY_PREDICTION = pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
SHAPE = (2, 4, 3, 5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Oracle:
    """Predicts exactly, in the terms of ``noise.prediction_type``."""

    def __init__(self, noise: NoiseConfig, clean: Tensor) -> None:
        self.prediction_type = noise.prediction_type
        self.alphas_cumprod = make_alphas_cumprod(noise)
        self.clean = clean

    def __call__(self, mixture: Tensor, timestep: float) -> Tensor:
        alpha = self.alphas_cumprod[min(round(timestep), 999)].item()
        signal, sigma = math.sqrt(alpha), math.sqrt(1 - alpha)
        noise = (mixture - signal * self.clean) / sigma
        return {
            "epsilon": noise,
            "v_prediction": signal * noise - sigma * self.clean,
            "sample": self.clean,
        }[self.prediction_type].to(mixture.dtype)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(scheduler: Scheduler, model: Oracle, latents: Tensor, *seeds: int) -> Tensor:
    """The latents (B, C, h, w) after a denoising loop; one seed per image, by default 0, 1, ..."""
    generators = seeded(*(seeds or range(len(latents))))
    for timestep in scheduler.timesteps:
        output = model(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(output, timestep, latents, generators)
    return latents


def make(
    name: str, spacing: str | None = "leading", eta: float = 0.0, **noise: object
) -> Scheduler:
    sampler = SCHEDULERS[name]
    scheduler = make_scheduler(
        name,
        NoiseConfig(**noise),
        timestep_spacing=spacing if sampler.spacings else None,
        eta=None if sampler.eta is None else eta,
    )
    scheduler.set_timesteps(10)
    return scheduler


def most_steps(name: str, spacing: str | None) -> int:
    """What the message says that refuses more."""
    with pytest.raises(UsageError, match=r"^1001 steps: use 1 to \d+$") as caught:
        make(name, spacing).set_timesteps(1001)
    return int(str(caught.value).split()[-1])


@EVERY_SPACING
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 999, 1000])
def test_timesteps_fall_and_stay_in_the_training_range(
    name: str, spacing: str | None, steps: int
) -> None:
    scheduler = make(name, spacing)
    steps = min(steps, most_steps(name, spacing))
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    assert isinstance(timesteps, tuple)
    assert {type(timestep) for timestep in timesteps} in ({int}, {float})
    assert len(timesteps) >= steps  # a step may take several evaluations
    assert all(earlier >= later for earlier, later in pairwise(timesteps))
    assert 0 <= min(timesteps) and max(timesteps) <= 1000


@EVERY_SPACING
def test_as_many_steps_as_there_can_be_are_done(name: str, spacing: str | None) -> None:
    scheduler = make(name, spacing)
    scheduler.set_timesteps(most_steps(name, spacing))
    clean, latents = normal(1, 4, 2, 2), normal(1, 4, 2, 2, seed=1) * scheduler.init_noise_sigma
    denoised = run(scheduler, Oracle(NoiseConfig(), clean), latents)
    assert (denoised - clean).square().mean().sqrt() < 0.1


@EVERY_SPACING
@EVERY_PREDICTION
def test_the_loop_ends_at_what_a_perfect_network_predicts(
    name: str, spacing: str | None, prediction_type: str
) -> None:
    noise = NoiseConfig(prediction_type=prediction_type)
    clean = normal(*SHAPE)
    for eta in (0.0, 1.0):
        scheduler = make(name, spacing, eta, prediction_type=prediction_type)
        scheduler.set_timesteps(20)
        latents = normal(*SHAPE, seed=1) * scheduler.init_noise_sigma
        denoised = run(scheduler, Oracle(noise, clean), latents)
        # What is left is the noise of the lowest timestep, deviation 0.03; and linspace lies a
        # little wider than DDIM's steps reach.
        assert (denoised - clean).square().mean().sqrt() < 0.07


@EVERY_NAME
@EVERY_PREDICTION
def test_added_noise_is_what_the_network_was_trained_on(name: str, prediction_type: str) -> None:
    scheduler = make(name, prediction_type=prediction_type)
    clean, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    alphas_cumprod = make_alphas_cumprod(NoiseConfig())
    for timestep in scheduler.timesteps:
        if timestep != round(timestep):  # between two timesteps of training
            continue
        alpha = alphas_cumprod[int(timestep)].item()
        expected = math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise
        noisy = scheduler.add_noise(clean, noise, timestep)
        assert torch.allclose(scheduler.scale_model_input(noisy, timestep), expected, atol=1e-5)


@EVERY_NAME
@pytest.mark.parametrize("start", [1, 5, 9])
def test_a_loop_can_begin_anywhere_with_added_noise(name: str, start: int) -> None:
    scheduler = make(name)
    whole = scheduler.timesteps
    scheduler.set_timesteps(10, skip=start)
    assert len(scheduler.timesteps) < len(whole)
    assert set(scheduler.timesteps) < set(whole)
    clean, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    latents = scheduler.add_noise(clean, noise, scheduler.timesteps[0])
    latents = run(scheduler, Oracle(NoiseConfig(), clean), latents)
    assert (latents - clean).square().mean().sqrt() < 0.05


@EVERY_NAME
def test_set_timesteps_begins_anew(name: str) -> None:
    scheduler = make(name)
    oracle, latents = Oracle(NoiseConfig(), normal(*SHAPE)), normal(*SHAPE, seed=1)
    first = run(scheduler, oracle, latents)
    scheduler.set_timesteps(7)
    for timestep in scheduler.timesteps[:3]:  # left half-way
        scheduler.step(latents, timestep, latents, seeded(0, 1))
    scheduler.set_timesteps(10)
    assert torch.equal(run(scheduler, oracle, latents), first)


@EVERY_NAME
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_random_numbers_come_from_the_generators_alone(name: str, eta: float) -> None:
    scheduler = make(name, eta=eta)
    oracle, latents = Oracle(NoiseConfig(), normal(*SHAPE)), normal(*SHAPE, seed=1)

    def again() -> Tensor:
        scheduler.set_timesteps(10)
        return run(scheduler, oracle, latents, 3, 4)

    before = torch.get_rng_state()
    first = again()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12345)
    assert torch.equal(again(), first)


NAMES_WITH_THRESHOLDING = [
    *SCHEDULERS,
    *(f"{name}, thresholding" for name in ("dpm++-2m", "dpm++-3m-sde", "dpm++-2s", "unipc")),
]


def make_any(label: str, prediction_type: str) -> Any:
    name, _, thresholding = label.partition(", ")
    scheduler: Any = make(name, eta=1.0, prediction_type=prediction_type)
    if thresholding:
        scheduler.thresholding = DynamicThresholding(ratio=0.9, highest=2.0)
    return scheduler


@EVERY_PREDICTION
@pytest.mark.parametrize("label", NAMES_WITH_THRESHOLDING)
def test_an_image_is_the_same_alone_and_in_a_batch(label: str, prediction_type: str) -> None:
    """Three images with seeds, predictions and scales of their own, bit by bit."""
    clean = normal(3, 4, 3, 5) * torch.tensor([0.5, 1.0, 3.0])[:, None, None, None]
    latents = normal(3, 4, 3, 5, seed=1)
    noise = NoiseConfig(prediction_type=prediction_type)
    together = run(make_any(label, prediction_type), Oracle(noise, clean), latents, 7, 8, 9)
    for i in range(3):
        one = slice(i, i + 1)
        scheduler = make_any(label, prediction_type)
        alone = run(scheduler, Oracle(noise, clean[one]), latents[one], 7 + i)
        assert torch.equal(alone, together[one])


ADD_NOISE = {
    *("ddim", "ddpm", "euler-a", "kdpm2-a", "dpm++-2m-sde", "dpm++-3m-sde", "lcm", "tcd"),
    *("dpm++-sde", "dpm++-2s-a"),
}
"""Samplers that add fresh noise, some of them if eta is above 0."""


@EVERY_NAME
def test_each_image_has_noise_of_its_own(name: str) -> None:
    """Equal images with equal seeds stay equal; those with other seeds do where noise is added."""
    scheduler, generators = make(name, eta=1.0), seeded(5, 6, 5)
    clean, latents = (normal(1, 4, 3, 5, seed=seed).expand(3, -1, -1, -1) for seed in (0, 1))
    oracle = Oracle(NoiseConfig(), clean)
    for timestep in scheduler.timesteps[:4]:
        output = oracle(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(output, timestep, latents, generators)
    assert torch.equal(latents[0], latents[2])
    assert torch.equal(latents[0], latents[1]) == (name not in ADD_NOISE)


@pytest.mark.parametrize("name", sorted(ADD_NOISE))
@pytest.mark.parametrize("generators", [None, (), seeded(0), seeded(0, 1, 2)])
def test_noise_needs_one_generator_per_image(
    name: str, generators: list[torch.Generator] | None
) -> None:
    scheduler, latents = make(name, eta=1.0), normal(*SHAPE)
    with pytest.raises(ValueError, match=r"^\d generators for noise of 2 images: give one per"):
        for timestep in scheduler.timesteps[:4]:
            scheduler.step(latents, timestep, latents, generators)


@EVERY_NAME
@EVERY_PREDICTION
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_arguments_are_left_alone(name: str, prediction_type: str, eta: float) -> None:
    scheduler = make(name, eta=eta, prediction_type=prediction_type)
    output, sample, noise = normal(*SHAPE), normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    before = [tensor.clone() for tensor in (output, sample, noise)]
    for timestep in scheduler.timesteps[:3]:
        scheduler.add_noise(sample, noise, timestep)
        scheduler.scale_model_input(sample, timestep)
        scheduler.step(output, timestep, sample, seeded(0, 1))
    after = (output, sample, noise)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@EVERY_NAME
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(name: str, dtype: torch.dtype) -> None:
    scheduler = make(name, eta=1.0)
    sample, noise = normal(*SHAPE).to(dtype), normal(*SHAPE, seed=1).to(dtype)
    timestep = scheduler.timesteps[0]
    for result in (
        scheduler.add_noise(sample, noise, timestep),
        scheduler.scale_model_input(sample, timestep),
        scheduler.step(noise, timestep, sample, seeded(0, 1)),
    ):
        assert result.dtype == dtype
        assert result.shape == SHAPE


@EVERY_NAME
def test_the_first_noise_has_a_deviation(name: str) -> None:
    sigma = make(name).init_noise_sigma
    assert math.isfinite(sigma)
    assert sigma > 0


@EVERY_NAME
def test_a_loop_may_have_no_steps_left(name: str) -> None:
    scheduler = make(name)
    scheduler.set_timesteps(10, skip=10)
    assert len(scheduler.timesteps) == 0


@EVERY_NAME
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(name: str, steps: int) -> None:
    scheduler = make(name)
    with pytest.raises(UsageError, match=rf"^{steps} steps: use 1 to \d+$"):
        scheduler.set_timesteps(steps)


@EVERY_NAME
@pytest.mark.parametrize("spacing", ["even", ""])
def test_unknown_spacings_are_refused(name: str, spacing: str) -> None:
    with pytest.raises(UsageError, match=f"'{spacing}'") as caught:
        make_scheduler(name, NoiseConfig(), timestep_spacing=spacing)
    assert all(known in str(caught.value) for known in SCHEDULERS[name].spacings)


@EVERY_NAME
@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_an_eta_outside_its_range_is_refused(name: str, eta: float) -> None:
    with pytest.raises(UsageError, match="eta"):
        make_scheduler(name, NoiseConfig(), eta=eta)


def test_options_that_do_not_apply_are_refused() -> None:
    with pytest.raises(UsageError, match="eta does not apply to euler: it is for ddim and tcd"):
        make_scheduler("euler", NoiseConfig(), eta=0.0)
    with pytest.raises(UsageError, match="ddim has sigmas of its own: leave out 'karras'"):
        make_scheduler("ddim", NoiseConfig(), sigmas="karras")
    with pytest.raises(UsageError, match="'original': use one of linspace, leading, trailing"):
        make_scheduler("euler", NoiseConfig(), timestep_spacing="original")
    with pytest.raises(UsageError, match="'ays' come with timesteps: leave out 'leading'"):
        make_scheduler("euler", NoiseConfig(), timestep_spacing="leading", sigmas="ays")
    with pytest.raises(UsageError, match="'steep': use default or one of karras, "):
        make_scheduler("euler", NoiseConfig(), sigmas="steep")
    with pytest.raises(UsageError, match="cannot have the sigmas 'karras' and 'beta'"):
        make_scheduler("Euler Karras", NoiseConfig(), sigmas="beta")


ZERO_SNR = NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True)


@EVERY_NAME
def test_pure_noise_at_the_start(name: str) -> None:
    """Some samplers cannot begin there; they take another spacing unless one is asked for."""
    scheduler = make_scheduler(name, ZERO_SNR, preferred_spacing="trailing")
    scheduler.set_timesteps(10)
    begins = SCHEDULERS[name].begins_with_pure_noise
    assert (scheduler.timesteps[0] == 999) == begins
    if not begins:
        with pytest.raises(UsageError, match="with 'trailing': use the timestep spacing leading"):
            make_scheduler(name, ZERO_SNR, timestep_spacing="trailing")
    clean = normal(*SHAPE)
    latents = normal(*SHAPE, seed=1) * scheduler.init_noise_sigma
    denoised = run(scheduler, Oracle(ZERO_SNR, clean), latents)
    assert (denoised - clean).square().mean().sqrt() < 0.05


def test_a_preferred_spacing_is_taken_where_it_can_be() -> None:
    def spacing(name: str) -> str:
        scheduler = make_scheduler(name, NoiseConfig(), preferred_spacing="original")
        return scheduler.timestep_spacing

    assert spacing("ddim") == "original"
    assert spacing("euler") == "linspace"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="'eular'") as caught:
        make_scheduler("eular", NoiseConfig())
    assert ", ".join(SCHEDULERS) in str(caught.value)
