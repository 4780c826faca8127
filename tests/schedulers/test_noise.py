"""The forward process beside its definition, in numpy's float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sdpy.errors import UsageError
from sdpy.schedulers import PREDICTION_TYPES, NoiseConfig
from sdpy.schedulers.noise import make_alphas_cumprod, split_prediction


def alphas_by_hand(start: float, end: float, steps: int) -> np.ndarray:
    roots = np.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=np.float64)
    return np.cumprod(1 - roots**2)


@pytest.mark.parametrize(
    ("start", "end", "steps"), [(0.00085, 0.012, 1000), (0.0001, 0.02, 1000), (0.001, 0.5, 10)]
)
def test_alphas_cumprod(start: float, end: float, steps: int) -> None:
    noise = NoiseConfig(steps, start, end)
    alphas = make_alphas_cumprod(noise)
    assert alphas.dtype == torch.float64
    # the betas are rounded to float32 on purpose
    np.testing.assert_allclose(alphas.numpy(), alphas_by_hand(start, end, steps), rtol=2e-6)


def test_zero_terminal_snr() -> None:
    """Equations of Lin et al., section 3.1: the last is 0, the first stays, roots scale evenly."""
    noise = NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    alphas = make_alphas_cumprod(noise)
    roots = np.sqrt(alphas_by_hand(0.00085, 0.012, 1000))
    expected = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    np.testing.assert_allclose(alphas.numpy(), expected, rtol=2e-5, atol=1e-12)
    assert alphas[-1] == 0.0
    assert alphas[0].item() == pytest.approx(1 - 0.00085, rel=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("alpha", [0.999, 0.5, 0.004])
def test_a_true_prediction_is_split_into_its_parts(prediction_type: str, alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 3, 3, generator=generator, dtype=torch.float64)
    sample = math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise
    velocity = math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean
    output = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction_type]
    found = split_prediction(prediction_type, output, sample, alpha)
    assert torch.allclose(found[0], clean, atol=1e-12)
    assert torch.allclose(found[1], noise, atol=1e-12)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_pure_noise_can_be_split(prediction_type: str) -> None:
    sample, output = torch.randn(2, 1, 4, 3, 3)
    clean, noise = split_prediction(prediction_type, output, sample, alpha_t=0.0)
    assert torch.equal(noise, sample)
    assert torch.equal(clean, output if prediction_type == "sample" else -output)


def test_unknown_predictions_are_refused() -> None:
    with pytest.raises(UsageError, match="'flow'.* epsilon, v_prediction, sample"):
        NoiseConfig(prediction_type="flow")


def test_epsilon_says_nothing_of_pure_noise() -> None:
    with pytest.raises(UsageError, match="use v_prediction or sample"):
        NoiseConfig(rescale_betas_zero_snr=True)
