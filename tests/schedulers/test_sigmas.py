"""Sigmas beside their definitions, worked out again one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sdpy.errors import UsageError
from sdpy.schedulers import NoiseConfig, make_scheduler
from sdpy.schedulers.sigmas import AYS, symmetric_beta_quantile, training_sigmas

STEPS = [1, 2, 3, 5, 10, 30, 100]


def sigma_at(timestep: int, zero_snr: bool = False) -> float:
    roots = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=np.float64)
    alphas = np.cumprod(1 - roots**2)
    if zero_snr:
        signal = np.sqrt(alphas)
        alphas = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
    alpha = max(float(alphas[timestep]), 2**-24)
    return math.sqrt((1 - alpha) / alpha)


def planned(
    sigmas: str, steps: int, name: str = "euler"
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scheduler = make_scheduler(name, NoiseConfig(), sigmas=sigmas)
    scheduler.set_timesteps(steps)
    assert scheduler.sigmas[-1] == 0
    return scheduler.timesteps, scheduler.sigmas[:-1]


def test_training_sigmas() -> None:
    ours = training_sigmas(NoiseConfig())
    assert ours == pytest.approx([sigma_at(t) for t in range(1000)], rel=2e-5)
    zero_snr = NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    ours = training_sigmas(zero_snr)
    assert ours[:999] == pytest.approx([sigma_at(t, True) for t in range(999)], rel=5e-5)
    assert ours[999] == pytest.approx(4096, rel=1e-6)


@pytest.mark.parametrize("steps", STEPS)
def test_karras(steps: int) -> None:
    _, ours = planned("karras", steps, "dpm++-2m")
    high, low = sigma_at(999), sigma_at(0)
    for i, sigma in enumerate(ours):
        share = i / (steps - 1) if steps > 1 else 0
        root = high ** (1 / 7) + share * (low ** (1 / 7) - high ** (1 / 7))
        assert sigma == pytest.approx(root**7, rel=5e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_exponential(steps: int) -> None:
    _, ours = planned("exponential", steps, "dpm++-2m")
    high, low = sigma_at(999), sigma_at(0)
    for i, sigma in enumerate(ours):
        share = i / (steps - 1) if steps > 1 else 0
        assert sigma == pytest.approx(high * (low / high) ** share, rel=5e-5)


@pytest.mark.parametrize("a", [0.6, 1.0, 3.5])
def test_beta_quantiles(a: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    probabilities = 1 - np.linspace(0, 1, 200)
    expected = stats.beta.ppf(probabilities, a, a)
    np.testing.assert_allclose(symmetric_beta_quantile(probabilities, a), expected, rtol=1e-12)


def test_a_beta_distribution_with_both_parameters_1_is_even() -> None:
    probabilities = np.linspace(0, 1, 50)
    np.testing.assert_allclose(symmetric_beta_quantile(probabilities, 1.0), probabilities)


@pytest.mark.parametrize("name", ["euler", "dpm++-2m"])
@pytest.mark.parametrize("steps", STEPS)
def test_sgm_uniform(name: str, steps: int) -> None:
    """n + 1 even timesteps from 999 to 0 but the last; sigmas interpolated in their logarithms."""
    timesteps, sigmas = planned("sgm-uniform", steps, name)
    for i in range(steps):
        t = 999 * (1 - i / steps)
        below = min(math.floor(t), 998)
        share = t - below
        sigma = sigma_at(below) ** (1 - share) * sigma_at(below + 1) ** share
        assert timesteps[i] == pytest.approx(t, abs=1e-4)
        assert sigmas[i] == pytest.approx(sigma, rel=5e-5)


@pytest.mark.parametrize("name", ["euler", "dpm++-2m"])
@pytest.mark.parametrize("steps", STEPS)
def test_simple(name: str, steps: int) -> None:
    """The sigma at ``-(1 + int(i * 1000 / n))`` of the rising list."""
    timesteps, sigmas = planned("simple", steps, name)
    for i in range(steps):
        t = 1000 - (1 + int(i * (1000 / steps)))
        assert timesteps[i] == t
        assert sigmas[i] == pytest.approx(sigma_at(t), rel=2e-5)


@pytest.mark.parametrize("name", ["euler", "dpm++-2m"])
@pytest.mark.parametrize("steps", STEPS)
def test_align_your_steps(name: str, steps: int) -> None:
    timesteps, sigmas = planned("ays", steps, name)
    for i in range(steps):
        place = 10 * i / steps
        below = min(math.floor(place), 9)
        share = place - below
        sigma = math.exp((1 - share) * math.log(AYS[below]) + share * math.log(AYS[below + 1]))
        assert sigmas[i] == pytest.approx(sigma, rel=1e-9)
        around = [sigma_at(round_it(timesteps[i])) for round_it in (math.floor, math.ceil)]
        assert 0.9999 * around[0] <= sigma <= 1.0001 * around[1]


def test_align_your_steps_is_for_one_schedule() -> None:
    noise = NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    scheduler = make_scheduler("euler", noise, sigmas="ays")
    with pytest.raises(UsageError, match="at 14.6.*, this model at 4096: use --sigmas karras"):
        scheduler.set_timesteps(10)
