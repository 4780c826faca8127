"""The noise that training adds at each timestep, and fresh noise of samplers that add some."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sdpy.schedulers.config import NoiseConfig


def make_alphas_cumprod(config: NoiseConfig) -> Tensor:
    """The share of the image's variance that is left at each timestep.

    Returns:
        (num_train_timesteps,) float64, falling; the last is 0 with ``rescale_betas_zero_snr``.

    The betas are made in float32 and multiplied up in float64, as the original program does.
    """
    alphas_cumprod = torch.cumprod(1.0 - _betas(config).double(), dim=0)
    if config.rescale_betas_zero_snr:
        alphas_cumprod = rescale_zero_terminal_snr(alphas_cumprod)
    return alphas_cumprod


def _betas(config: NoiseConfig) -> Tensor:
    """The variance that each timestep adds: (num_train_timesteps,) float32."""
    steps = config.num_train_timesteps
    if config.trained_betas is not None:
        return torch.tensor(config.trained_betas, dtype=torch.float32)
    if config.beta_schedule == "linear":
        return torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float32)
    if config.beta_schedule == "squaredcos_cap_v2":
        times = torch.arange(steps + 1, dtype=torch.float64) / steps
        left = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - left[1:] / left[:-1]).clamp(max=0.999).float()
    roots = config.beta_start**0.5, config.beta_end**0.5
    return torch.linspace(*roots, steps, dtype=torch.float32) ** 2


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
    """The clean latents and the noise that a prediction finds in ``sample``.

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


class NoiseSource(list[torch.Generator], ABC):
    """Takes the place of the images' generators, and gives the noise itself."""

    @abstractmethod
    def draw(self, like: Tensor) -> Tensor:
        """What stands for the noise, of ``like``'s shape, dtype and device."""


def draw_noise(like: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Standard normal noise of ``like``'s shape (B, ...), dtype and device.

    Each image's noise is drawn as float32 on the CPU from its own generator. So the same seed gives
    the same noise on every device, alone or in a batch. The copy to the device does not wait for
    it: CUDA copies asynchronously from pinned memory. A `NoiseSource` is asked for its noise.

    Raises:
        ValueError: there is not one generator per image.
    """
    if isinstance(generators, NoiseSource):
        return generators.draw(like)
    if generators is None or len(generators) != len(like):
        given = 0 if generators is None else len(generators)
        raise ValueError(f"{given} generators for noise of {len(like)} images: give one per image")
    noise = torch.empty(like.shape, dtype=torch.float32, device="cpu", pin_memory=like.is_cuda)
    for image, generator in zip(noise.unbind(), generators, strict=True):
        image.normal_(generator=generator)
    # In this order, because a conversion on the way to a GPU would leave the pinned memory.
    return noise.to(like.device, non_blocking=True).to(like.dtype)
