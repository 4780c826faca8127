"""What DDIM's steps do at the ends of their range, from the paper's equations."""

from __future__ import annotations

import math

import pytest
import torch

from sdpy.schedulers import NoiseConfig
from sdpy.schedulers.ddim import DDIMScheduler
from sdpy.schedulers.noise import draw_noise

ZERO_SNR = NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True)
SHAPE = (1, 4, 3, 5)


def normal(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_all_noise_is_new_after_pure_noise_with_eta_1(spacing: str) -> None:
    """Nothing of the old noise stays, whatever the rounding of what is left of it."""
    for steps in range(2, 1001):
        scheduler = DDIMScheduler(ZERO_SNR, timestep_spacing=spacing, eta=1.0)
        scheduler.set_timesteps(steps)
        sample, output = normal(), normal(1)
        generator = torch.Generator().manual_seed(3)
        result = scheduler.step(output, scheduler.timesteps[0], sample, [generator])
        alpha = scheduler.alphas_cumprod[999 - 1000 // steps]
        noise = torch.randn(SHAPE, generator=generator.manual_seed(3)).double()
        expected = -math.sqrt(alpha) * output + math.sqrt(1 - alpha) * noise
        assert torch.allclose(result, expected, atol=1e-7)


def test_noise_is_drawn_in_single_precision() -> None:
    """So latents of any dtype get the same noise, rounded."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        generator = torch.Generator().manual_seed(7)
        noise = draw_noise(torch.empty(SHAPE, dtype=dtype), [generator])
        expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
        assert noise.dtype == dtype
        assert torch.equal(noise, expected.to(dtype))


def test_eta_scales_the_deviation_of_the_new_noise() -> None:
    """Equation 16; DDPM's at eta 1, and none, whatever the generator, at eta 0."""

    def step(eta: float, seed: int) -> torch.Tensor:
        scheduler = DDIMScheduler(NoiseConfig(), eta=eta)
        scheduler.set_timesteps(10)
        generator = torch.Generator().manual_seed(seed)
        return scheduler.step(normal(1), scheduler.timesteps[4], normal(), [generator])

    assert torch.equal(step(0.0, seed=1), step(0.0, seed=2))
    alphas = DDIMScheduler(NoiseConfig()).alphas_cumprod
    now, previous = alphas[501], alphas[401]
    sigma = math.sqrt((1 - previous) / (1 - now) * (1 - now / previous))
    for eta in (0.3, 1.0):
        noises = [
            torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
        ]
        difference = step(eta, seed=1) - step(eta, seed=2)
        expected = eta * sigma * (noises[0] - noises[1]).double()
        assert torch.allclose(difference, expected, atol=1e-6)
