"""The inputs of the measured models: the same numbers in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PROMPT = "a lighthouse at dark, waves, warm light in the windows, oil on canvas"
NEGATIVE_PROMPT = "blurry"
SEED = 32


def noise(shape: tuple[int, ...]) -> Tensor:
    """Standard normal latents, float32 of the given shape."""
    return _normal(shape, seed=1)


def prompt_embeddings(tokens: int, width: int) -> Tensor:
    """Embeddings (2, tokens, width) of a negative prompt and a prompt, standard normal."""
    return _normal((2, tokens, width), seed=2)


def pooled_embeddings(width: int) -> Tensor:
    """Pooled embeddings (2, width) of a negative prompt and a prompt, standard normal."""
    return _normal((2, width), seed=5)


def conditioning(shape: tuple[int, ...]) -> Tensor:
    """The mask and masked image that a UNet for inpainting takes beside the latents."""
    return _normal(shape, seed=3)


def image(width: int, height: int) -> Tensor:
    """An image, float32 (1, 3, height, width) in [-1, 1]."""
    return _normal((1, 3, height, width), seed=4).clamp(-1, 1)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
