"""Sigmas: standard deviations of the noise that is added to images of scale 1.

Where ``alphas_cumprod`` is ``a``, ``sigma = sqrt((1 - a) / a)``, and variance-preserving latents
are ``(x_0 + sigma noise) / sqrt(sigma**2 + 1)``. This module works in numpy's float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sdpy.errors import UsageError
from sdpy.schedulers.config import NoiseConfig
from sdpy.schedulers.noise import make_alphas_cumprod

FloatArray = NDArray[np.float64]

LEAST_ALPHA = 2.0**-24
"""Stands for the 0 that ends a zero-terminal-SNR schedule, whose sigma would be infinite; as in
diffusers. The sigma is 4096 then."""


def training_sigmas(noise: NoiseConfig) -> FloatArray:
    """The sigma (num_train_timesteps,) of each training timestep, rising."""
    # Rounded as diffusers' are; near timestep 0, where 1 - a is small, that shows.
    rounded = make_alphas_cumprod(noise).float().double().numpy()
    alphas_cumprod = np.maximum(rounded, LEAST_ALPHA)
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def sigmas_at(timesteps: NDArray[np.floating | np.integer], training: FloatArray) -> FloatArray:
    """The sigmas at ``timesteps``, interpolated linearly between whole ones."""
    return np.interp(timesteps, np.arange(len(training)), training)


def timesteps_at(sigmas: FloatArray, training: FloatArray) -> FloatArray:
    """The timesteps that have these sigmas, interpolated linearly in ``log(sigma)``."""
    return np.interp(np.log(sigmas), np.log(training), np.arange(len(training), dtype=np.float64))


def karras(steps: int, highest: float, lowest: float) -> FloatArray:
    """Even steps of ``sigma**(1/7)``.

    Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al.,
    2022), equation 5 with rho 7.
    """
    return np.linspace(highest ** (1 / 7), lowest ** (1 / 7), steps) ** 7


def exponential(steps: int, highest: float, lowest: float) -> FloatArray:
    """Even steps of ``log(sigma)``."""
    return np.exp(np.linspace(math.log(highest), math.log(lowest), steps))


def beta(steps: int, highest: float, lowest: float) -> FloatArray:
    """Quantiles of the beta distribution with both parameters 0.6: denser at either end.

    Source: "Beta Sampling is All You Need" (Lee et al., 2024); applied to the sigmas, not to the
    timesteps, as diffusers does.
    """
    quantiles = symmetric_beta_quantile(1 - np.linspace(0, 1, steps), 0.6)
    return lowest + quantiles * (highest - lowest)


RAMPS: dict[str, Callable[[int, float, float], FloatArray]] = {
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
}
"""Sigmas (steps,) from the highest to the lowest that the spaced timesteps have."""


def sgm_uniform(steps: int, training: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Even steps from the last timestep to the first, which is left out; may be fractions.

    The schedule of Stability AI's generative-models, under this name in A1111 and ComfyUI.
    """
    last = len(training) - 1
    timesteps = np.linspace(last, 0, steps + 1)[:-1]
    return timesteps, np.exp(np.interp(timesteps, np.arange(len(training)), np.log(training)))


def simple(steps: int, training: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Every so many timesteps from the last one on, rounded up, as in A1111 and ComfyUI."""
    ratio = len(training) / steps
    timesteps = len(training) - 1 - np.floor(np.arange(steps) * ratio)
    return timesteps, training[timesteps.astype(np.int64)]


AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""Ten steps for Stable Diffusion 1.5, published with "Align Your Steps" (Sabour et al., 2024)."""


def align_your_steps(steps: int, training: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`AYS`, for other numbers of steps interpolated linearly in ``log(sigma)``.

    Raises:
        UsageError: the model was trained on other sigmas.
    """
    if abs(training[-1] / AYS[0] - 1) > 0.01:
        raise UsageError(
            f"the sigmas 'ays' begin at {AYS[0]:.4g}, this model at {training[-1]:.4g}: "
            "use --sigmas karras"
        )
    positions = np.linspace(0, len(AYS) - 1, steps + 1)[:-1]  # the last step ends at 0
    sigmas = np.exp(np.interp(positions, np.arange(len(AYS)), np.log(AYS)))
    return timesteps_at(sigmas, training), sigmas


def listed(
    values: Sequence[float], steps: int, training: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Sigmas as they were given, and their timesteps.

    Raises:
        UsageError: there is not one for each step, or one is higher than those of training.
    """
    if len(values) != steps:
        raise UsageError(
            f"{len(values)} sigmas are as many steps, not {steps}: leave out --steps, or give "
            "another number of sigmas"
        )
    sigmas = np.array(values, dtype=np.float64)
    if sigmas[0] > 1.01 * training[-1]:
        raise UsageError(
            f"the sigma {sigmas[0]:g} is higher than the noise that this model was trained on: "
            f"begin at {training[-1]:.5g} or lower"
        )
    return timesteps_at(sigmas, training), sigmas


SCHEDULES: dict[str, Callable[[int, FloatArray], tuple[FloatArray, FloatArray]]] = {
    "sgm-uniform": sgm_uniform,
    "simple": simple,
    "ays": align_your_steps,
}
"""Timesteps and sigmas, (steps,) each, that do not depend on a spacing."""


def symmetric_beta_quantile(probabilities: FloatArray, a: float) -> FloatArray:
    """Where the beta distribution with both parameters ``a`` reaches ``probabilities``.

    By bisection of the distribution function's power series, which converges fast below 1/2; the
    distribution is symmetric.
    """
    lower = np.minimum(probabilities, 1 - probabilities)
    powers = np.arange(64)
    # coefficients of (1 - x)**(a - 1), each integrated with x**(a - 1)
    factors = np.cumprod(np.concatenate([[1.0], (powers[1:] - a) / powers[1:]]))
    terms = factors / (a + powers)
    whole = math.gamma(a) ** 2 / math.gamma(2 * a)
    low, high = np.zeros_like(lower), np.full_like(lower, 0.5)
    for _ in range(100):
        middle = (low + high) / 2
        reached = middle**a * (middle[:, None] ** powers @ terms) / whole
        low, high = np.where(reached < lower, middle, low), np.where(reached < lower, high, middle)
    found: FloatArray = np.where(probabilities <= 0.5, low, 1 - low)
    found[lower == 0] = probabilities[lower == 0]
    return found
