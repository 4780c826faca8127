"""Counts the arithmetic of a phase, and measures how fast this machine multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sdpy.zoo.classes import make_model
from sdpy.zoo.variants import ModelVariant

MATRIX_SIZE = 2048
"""Rows and columns of the matrices whose product is timed."""


def matrix_product_rate(
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    size: int = MATRIX_SIZE,
    repeats: int = 5,
) -> float:
    """The best FLOP/s of ``repeats`` products of two ``size`` x ``size`` matrices.

    On the CPU it is measured with torch's current number of threads.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    product = torch.empty_like(a)

    def once() -> float:
        started = time.perf_counter()
        torch.mm(a, b, out=product)
        product[0, 0].item()  # waits for a GPU
        return time.perf_counter() - started

    once()
    return float(2 * size**3 / min(once() for _ in range(repeats)))


def count_flops(
    variant: ModelVariant, latent_size: tuple[int, int], *, unet_batch: int = 2
) -> dict[str, int]:
    """Count the FLOP of the phases ``text``, ``unet`` (one step), ``decode`` and ``encode``.

    These are the multiplications and additions of matrix products, convolutions and attention in
    the plain models, whatever a faster implementation of the same does. Text is that of two
    prompts, through all text encoders.

    Args:
        variant: sizes of the models.
        latent_size: height and width of the latents.
        unet_batch: samples of a UNet evaluation: 2 with guidance, 1 without.
    """
    models: dict[str, Any] = {
        name: make_model(name, config) for name, config in variant.configs.items()
    }
    height, width = latent_size
    unet, vae = variant.unet, variant.configs["vae"]
    factor, length = vae.downsample_factor, variant.text_encoder.max_position_embeddings
    with torch.device("meta"):
        latents = torch.empty(1, vae.latent_channels, height, width)
        image = torch.empty(1, vae.in_channels, factor * height, factor * width)
        tokens = torch.empty(2, length, dtype=torch.int64)
        sample = torch.empty(unet_batch, unet.in_channels, height, width)
        context = torch.empty(unet_batch, length, unet.cross_attention_dim)
        told = _told_beside(variant, unet_batch)
        return {
            "text": _flops(lambda: [models[name](tokens) for name in variant.text_encoders]),
            "unet": _flops(lambda: models["unet"](sample, torch.empty(()), context, **told)),
            "decode": _flops(lambda: models["vae"].decode(latents)),
            "encode": _flops(lambda: models["vae"].encode(image)),
        }


def _told_beside(variant: ModelVariant, batch: int) -> dict[str, Tensor]:
    """What the UNet is told beside the time, by the names of its arguments."""
    unet, pooled = variant.unet, variant.pooled_dim
    total, each = unet.projection_class_embeddings_input_dim, unet.addition_time_embed_dim
    if total is None or each is None or pooled is None:
        return {}
    return {
        "text_embeds": torch.empty(batch, pooled),
        "time_ids": torch.empty(batch, (total - pooled) // each),
    }


def _flops(run: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
