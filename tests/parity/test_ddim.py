"""DDIMScheduler beside diffusers', step by step and with a network for ten steps."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from sdpy.models import UNet2DConditionConfig, UNet2DConditionModel
from sdpy.schedulers import NoiseConfig
from sdpy.schedulers.ddim import DDIMScheduler
from sdpy.schedulers.noise import make_alphas_cumprod
from support.compare import MODEL_TOLERANCE, RUN_TOLERANCE, normal, randomise, relative_error
from support.references import reference_ddim, reference_unet

SPACINGS = ("leading", "trailing", "linspace")
EPSILON = NoiseConfig()
VELOCITY = NoiseConfig(prediction_type="v_prediction")
ZERO_SNR = NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True)
NOISES = {
    "epsilon": EPSILON,
    "v_prediction": VELOCITY,
    "sample": NoiseConfig(prediction_type="sample"),
    "zero snr": ZERO_SNR,
    "zero snr, sample": NoiseConfig(prediction_type="sample", rescale_betas_zero_snr=True),
    "other betas": NoiseConfig(beta_start=0.0001, beta_end=0.02),
    "100 timesteps": NoiseConfig(num_train_timesteps=100),
}
SHAPE = (2, 4, 6, 5)
WEIGHTS = normal(4, 4, 3, 3, seed=9) / 6


def model(x: Tensor, timestep: Tensor) -> Tensor:
    """A small random network: a convolution with a bias that depends on the timestep."""
    x = torch.nn.functional.conv2d(x, WEIGHTS, padding=1)
    return torch.tanh(x + torch.sin(timestep.float() / 50)) + 0.1 * x


def pair(noise: NoiseConfig, spacing: str, steps: int, eta: float = 0.0):
    ours = DDIMScheduler(noise, timestep_spacing=spacing, eta=eta)
    theirs = reference_ddim(noise, spacing)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    return ours, theirs


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps(spacing: str) -> None:
    for steps in range(1, 1001):
        ours, theirs = pair(EPSILON, spacing, steps)
        # Its range of rounded floats may come out one longer than was asked for.
        assert list(ours.timesteps) == theirs.timesteps.tolist()[:steps], steps


@pytest.mark.parametrize("name", NOISES)
def test_alphas_cumprod(name: str) -> None:
    ours = make_alphas_cumprod(NOISES[name])
    theirs = reference_ddim(NOISES[name], "leading").alphas_cumprod
    assert relative_error(ours, theirs) <= 1e-6
    # The lowest of a zero-SNR schedule are differences of roundings in the reference's fp32.
    assert torch.allclose(ours.float(), theirs, rtol=1e-4 if "zero" in name else 5e-6, atol=0)


def seeded() -> list[torch.Generator]:
    """One generator per image. diffusers, too, takes such a list and draws from each in turn."""
    return [torch.Generator().manual_seed(seed) for seed in range(SHAPE[0])]


def compare_steps(ours: DDIMScheduler, theirs, steps: int) -> None:
    """Both are given the reference's latents at every step, and noise of the same seed."""
    generators = seeded(), seeded()
    latents = normal(*SHAPE)
    for timestep in theirs.timesteps[:steps]:
        output = model(latents, timestep)
        result = ours.step(output, int(timestep), latents, generators[0])
        latents = theirs.step(
            output, timestep, latents, eta=ours.eta, generator=generators[1]
        ).prev_sample.float()
        assert relative_error(result, latents) <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "other betas", "100 timesteps"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_step(name: str, spacing: str, eta: float) -> None:
    for steps in [1, 2, 10, 30]:
        compare_steps(*pair(NOISES[name], spacing, steps, eta), steps)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_step_to_zero_snr(spacing: str) -> None:
    for steps in [1, 2, 10, 30]:
        compare_steps(*pair(ZERO_SNR, spacing, steps), steps)


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_step_beside_the_formulas_in_double_precision(
    name: str, spacing: str, eta: float
) -> None:
    """Differences from 1 lose the reference's fp32 more than the tolerance in some of these."""
    noise = NOISES[name]
    if noise.rescale_betas_zero_snr:
        eta = min(eta, 0.99)  # at 1 the reference takes the root of a rounding below 0
    for steps in [1, 2, 10, 30]:
        ours, theirs = pair(noise, spacing, steps, eta)
        theirs.alphas_cumprod = ours.alphas_cumprod
        theirs.final_alpha_cumprod = ours.alphas_cumprod[0]
        compare_steps(ours, theirs, steps)


@pytest.mark.parametrize(("spacing", "steps"), [*product(SPACINGS, [999]), ("trailing", 1000)])
def test_every_step_of_many(spacing: str, steps: int) -> None:
    ours, theirs = pair(EPSILON, spacing, steps)
    latents = normal(1, 4, 2, 2)
    for timestep in theirs.timesteps[:steps]:
        output = model(latents, timestep)
        result = ours.step(output, int(timestep), latents)
        latents = theirs.step(output, timestep, latents).prev_sample
        assert relative_error(result, latents) <= MODEL_TOLERANCE


def test_leading_begins_after_the_last_training_timestep_with_1000_steps() -> None:
    """The reference fails there; here the last timestep is read, as the original program does."""
    ours, theirs = pair(EPSILON, "leading", 1000)
    assert ours.timesteps[0] == int(theirs.timesteps[0]) == 1000
    latents = normal(*SHAPE)
    output = model(latents, theirs.timesteps[0])
    with pytest.raises(IndexError):
        theirs.step(output, theirs.timesteps[0], latents)
    result = ours.step(output, 1000, latents)
    expected = theirs.step(output, torch.tensor(999), latents).prev_sample
    assert relative_error(result, expected) <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", NOISES)
def test_add_noise(name: str) -> None:
    ours, theirs = pair(NOISES[name], "trailing", 10)
    original, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    for timestep in theirs.timesteps:
        expected = theirs.add_noise(original, noise, timestep[None])
        assert (
            relative_error(ours.add_noise(original, noise, int(timestep)), expected)
            < MODEL_TOLERANCE
        )


@pytest.mark.parametrize("strength", [0.05, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_image_to_image(strength: float, spacing: str) -> None:
    """The part of the schedule that diffusers' image-to-image pipeline runs."""
    steps = 20
    ours, theirs = pair(EPSILON, spacing, steps)
    start = steps - min(int(steps * strength), steps)
    clean, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    first = theirs.timesteps[start : start + 1]
    a, b = ours.add_noise(clean, noise, int(first[0])), theirs.add_noise(clean, noise, first)
    for timestep in theirs.timesteps[start:]:
        a = ours.step(model(a, timestep), int(timestep), a)
        b = theirs.step(model(b, timestep), timestep, b).prev_sample
    assert relative_error(a, b) <= RUN_TOLERANCE


def test_a_wrong_coefficient_is_noticed() -> None:
    ours, _ = pair(EPSILON, "leading", 10)
    other = reference_ddim(NoiseConfig(beta_end=0.01201), "leading")
    other.set_timesteps(10)
    latents = normal(*SHAPE)
    for timestep in other.timesteps[:-1]:  # the last two values hardly depend on beta_end
        output = model(latents, timestep)
        expected = other.step(output, timestep, latents).prev_sample
        assert relative_error(ours.step(output, int(timestep), latents), expected) > MODEL_TOLERANCE


# Ten steps with a network and classifier-free guidance

UNET = UNet2DConditionConfig(
    block_out_channels=(16, 32, 32),
    cross_attention=(True, True, False),
    attention_heads=(2, 4, 4),
    layers_per_block=1,
    cross_attention_dim=20,
    norm_num_groups=8,
)
GUIDANCE = 7.5


def guided(unet, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    output = unet(torch.cat([latents, latents]), timestep, context)
    output = output if isinstance(output, Tensor) else output.sample
    unconditional, conditional = output.chunk(2)
    return unconditional + GUIDANCE * (conditional - unconditional)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("noise", "spacing"),
    [
        (EPSILON, "leading"),
        (EPSILON, "linspace"),
        (VELOCITY, "leading"),
        (VELOCITY, "trailing"),
    ],
)
@torch.no_grad()
def test_ten_guided_steps(noise: NoiseConfig, spacing: str, eta: float) -> None:
    ours, theirs = pair(noise, spacing, 10, eta)
    our_unet, their_unet = randomise(UNet2DConditionModel(UNET)), reference_unet(UNET)
    their_unet.load_state_dict(our_unet.state_dict())
    context = normal(2, 7, 20, seed=3)
    a = b = normal(1, 4, 8, 8, seed=32)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert list(ours.timesteps) == theirs.timesteps.tolist()
    for timestep in theirs.timesteps:
        a = ours.step(guided(our_unet, a, timestep, context), int(timestep), a, generators[:1])
        b = theirs.step(
            guided(their_unet, b, timestep, context),
            timestep,
            b,
            eta=eta,
            generator=generators[1],
        ).prev_sample
    assert relative_error(a, b) <= RUN_TOLERANCE
