"""The noise that training adds at each timestep: what every scheduler starts from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdpy.schedulers.config import NoiseConfig


def make_alphas_cumprod(config: NoiseConfig) -> Tensor:
    """The share of the picture's variance that is left at each timestep.

    Returns:
        (num_train_timesteps,) float64, falling; the last is 0 with ``rescale_betas_zero_snr``.

    The betas are made in float32 and multiplied up in float64, as the original program does.
    """
    betas = (
        torch.linspace(
            config.beta_start**0.5,
            config.beta_end**0.5,
            config.num_train_timesteps,
            dtype=torch.float32,
        )
        ** 2
    )
    alphas_cumprod = torch.cumprod(1.0 - betas.double(), dim=0)
    if config.rescale_betas_zero_snr:
        alphas_cumprod = rescale_zero_terminal_snr(alphas_cumprod)
    return alphas_cumprod


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale ``sqrt(alphas_cumprod)`` so that the last timestep is pure noise.

    Source: "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al., 2023),
    algorithm 1.
    """
    roots = alphas_cumprod.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    return ((roots - last) * (first / (first - last))) ** 2


def split_prediction(
    prediction_type: str, model_output: Tensor, sample: Tensor, alpha_t: float
) -> tuple[Tensor, Tensor]:
    """What a prediction says of the clean latents and of the noise in ``sample``.

    Args:
        prediction_type: one of `PREDICTION_TYPES`.
        model_output: the network's prediction, of ``sample``'s shape.
        sample: the noisy latents ``sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) noise``.
        alpha_t: ``alphas_cumprod`` at the timestep, in [0, 1).

    Returns:
        ``x_0`` and the noise, each of ``sample``'s shape.
    """
    signal, sigma = math.sqrt(alpha_t), math.sqrt(1 - alpha_t)
    if prediction_type == "epsilon":
        return (sample - sigma * model_output) / signal, model_output
    if prediction_type == "v_prediction":
        return signal * sample - sigma * model_output, signal * model_output + sigma * sample
    if prediction_type == "sample":
        return model_output, (sample - signal * model_output) / sigma
    raise AssertionError(prediction_type)  # NoiseConfig lets no other pass


def find_evaluation(timesteps: Tensor, timestep: Tensor, upcoming: int) -> int:
    """Index of ``timestep`` in ``timesteps``: ``upcoming`` if it fits, as a timestep may recur.

    Raises:
        ValueError: it is none of them.
    """
    if upcoming < len(timesteps) and timesteps[upcoming] == timestep:
        return upcoming
    return timesteps.tolist().index(timestep.item())


def draw_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of ``like``'s shape, dtype and device, drawn as fp32 on the CPU.

    The same seed gives the same numbers on every device.
    """
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float32)
    return noise.to(device=like.device, dtype=like.dtype)
