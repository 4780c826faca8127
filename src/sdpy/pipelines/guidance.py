"""Classifier-free guidance: predictions for a prompt and a negative prompt, made into one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of a batch.

    Attributes:
        scales: one an image; 0 for the negative prompt alone, 1 for the prompt alone. Where all
            are 1, half of the work is left out, unless ``AND`` joins several prompts; so it is at
            any scale where the UNet takes the scale as an embedding.
        rescale: see `classifier_free_guidance`.
        interval: shares of the evaluations between which there is guidance; those before and after
            do without, as at scale 1. In terms of noise, as in the paper, it depends on the
            schedule: with Stable Diffusion's and evenly spaced timesteps sigma is 8.3, 5.1, 3.3,
            1.6, 0.83, 0.57 and 0.34 at 0.1, 0.2, 0.3, 0.5, 0.7, 0.8 and 0.9. Source: "Applying
            Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
            Models" (Kynkäänniemi et al., 2024).
    """

    scales: tuple[float, ...]
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)


def classifier_free_guidance(
    noise_pred: Tensor,
    guidance_scale: Tensor | float,
    guidance_rescale: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Move from the prediction for the negative prompt towards, and past, that for the prompt.

    Args:
        noise_pred: (2 B, C, h, w), those for the negative prompts first; or (B, C, h, w) without
            guidance, which is returned.
        guidance_scale: (B, 1, 1, 1), or one for all; 0 for the negative prompt alone, 1 for the
            prompt alone.
        guidance_rescale: how far to bring the result's deviation back to that of the prediction
            for the prompt, in [0, 1]; high scales raise it, and with it the image's contrast.
        weights: (k, B, 1, 1, 1) of k prompts that are joined; ``noise_pred`` is ((1 + k) B, ...)
            then. The prediction for the prompt is that for the negative prompt, and the weighted
            ways from there to those of the k prompts.

    Source: "Classifier-Free Diffusion Guidance" (Ho and Salimans, 2022), equation 6, with the
    scale of "Imagen" (Saharia et al., 2022), equation 2; "Common Diffusion Noise Schedules and
    Sample Steps are Flawed" (Lin et al., 2023), equations 14 to 16, for the rescaling;
    "Compositional Visual Generation with Composable Diffusion Models" (Liu et al., 2022), equation
    12, for joined prompts.
    """
    batch = len(guidance_scale) if isinstance(guidance_scale, Tensor) else 1
    if len(noise_pred) == batch:
        return noise_pred
    if weights is None:
        negative, positive = noise_pred.chunk(2)
    else:
        negative, *parts = noise_pred.chunk(1 + len(weights))
        ways = (weight * (part - negative) for weight, part in zip(weights, parts, strict=True))
        positive = negative + sum(ways, torch.zeros_like(negative))
    guided = negative + guidance_scale * (positive - negative)
    if guidance_rescale == 0:
        return guided
    ratio = _deviation(positive) / _deviation(guided)
    return guided * (guidance_rescale * ratio + (1 - guidance_rescale))


def _deviation(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 1, 1, 1), the standard deviation of each image's values."""
    return x.std(dim=(1, 2, 3), keepdim=True)
