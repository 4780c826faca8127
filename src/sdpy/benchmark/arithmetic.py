"""Counts the arithmetic of a phase, and measures how fast this machine multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sdpy.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    AutoencoderTiny,
    AutoencoderTinyConfig,
    CLIPTextConfig,
    CLIPTextModel,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)

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
    text_encoder: CLIPTextConfig,
    unet: UNet2DConditionConfig,
    vae: AutoencoderKLConfig | AutoencoderTinyConfig,
    latent_size: tuple[int, int],
    *,
    unet_batch: int = 2,
) -> dict[str, int]:
    """Count the FLOP of the phases ``text``, ``unet`` (one step), ``decode`` and ``encode``.

    These are the multiplications and additions of matrix products, convolutions and attention in
    the plain models, whatever a faster implementation of the same does.

    Args:
        text_encoder, unet, vae: configurations of the models.
        latent_size: height and width of the latents.
        unet_batch: samples of a UNet evaluation: 2 with guidance, 1 without.
    """
    with torch.device("meta"):
        height, width = latent_size
        factor = vae.downsample_factor
        latents = torch.empty(1, vae.latent_channels, height, width)
        image = torch.empty(1, vae.in_channels, factor * height, factor * width)
        tokens = torch.empty(2, text_encoder.max_position_embeddings, dtype=torch.int64)
        sample = torch.empty(unet_batch, unet.in_channels, height, width)
        context = torch.empty(unet_batch, tokens.shape[1], unet.cross_attention_dim)
        clip, denoiser = CLIPTextModel(text_encoder), UNet2DConditionModel(unet)
        autoencoder: nn.Module
        if isinstance(vae, AutoencoderTinyConfig):
            autoencoder = AutoencoderTiny(vae)
        else:
            autoencoder = AutoencoderKL(vae)
        return {
            "text": _flops(lambda: clip(tokens)),
            "unet": _flops(lambda: denoiser(sample, torch.empty(()), context)),
            "decode": _flops(lambda: autoencoder.decode(latents)),
            "encode": _flops(lambda: autoencoder.encode(image)),
        }


def _flops(run: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
