"""How far ancestral samplers go down, and how much noise leads back up."""

from __future__ import annotations

import math

import pytest

from sdpy.schedulers.euler_ancestral import ancestral_step


@pytest.mark.parametrize(
    ("sigma", "sigma_next"), [(14.6, 12.0), (14.6, 0.03), (4096.0, 8.0), (0.5, 0.4), (0.03, 0.0)]
)
def test_the_noise_is_as_much_as_the_posterior_has(sigma: float, sigma_next: float) -> None:
    """Equation 7 of DDPM, with beta between the two sigmas, for latents of scale 1."""
    alpha, alpha_prev = 1 / (sigma**2 + 1), 1 / (sigma_next**2 + 1)
    variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev) / alpha_prev
    down, up = ancestral_step(sigma, sigma_next)
    assert up == pytest.approx(math.sqrt(variance), rel=1e-6, abs=1e-12)
    assert down**2 + up**2 == pytest.approx(sigma_next**2, rel=1e-12)


def test_sigmas_that_do_not_fall_need_no_noise() -> None:
    assert ancestral_step(2.0, 2.0) == (2.0, 0.0)
