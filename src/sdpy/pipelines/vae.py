"""Images to latents and back, and what is done about too little memory and numbers gone wrong."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from sdpy.errors import GenerationError
from sdpy.models import AutoencoderKL, AutoencoderTiny, DiagonalGaussian
from sdpy.runtime.devices import CPU
from sdpy.runtime.fallbacks import Fallback, Notice, attempt
from sdpy.runtime.request_models import RequestModels

Result = TypeVar("Result")

HUGE_LATENTS = 1000.0
"""Latents beyond this have gone wrong before they come to the decoder."""
Autoencoder = AutoencoderKL | AutoencoderTiny


def encode(models: RequestModels, image: Tensor) -> Generator[Notice, None, DiagonalGaussian]:
    """The distribution of an image's latents, float32 on the CPU.

    Args:
        models: of the request.
        image: (B, 3, H, W) in [-1, 1].

    Raises:
        ShortageError: there is not enough memory.
        GenerationError: the result is not finite.
    """

    def work(vae: Autoencoder) -> DiagonalGaussian:
        encoded = vae.encode(image.to(vae.device, vae.dtype))
        return DiagonalGaussian(encoded.mean.float().cpu(), encoded.std.float().cpu())

    def fault(encoded: DiagonalGaussian) -> str | None:
        finite = encoded.mean.isfinite().all() and encoded.std.isfinite().all()
        return None if finite else "the image became latents that are not finite"

    return (yield from _checked(models, work, fault))


def decode(
    models: RequestModels, latents: Tensor, *, may_be_plain: bool = False
) -> Generator[Notice, None, Tensor]:
    """Clean latents (B, C, h, w) to images (B, 3, H, W), float32 on the CPU.

    Args:
        models: of the request.
        latents: on any device.
        may_be_plain: whether an image of one colour is as good as any.

    Raises:
        ShortageError: there is not enough memory.
        GenerationError: the result is not finite, or an image has one colour throughout.
    """

    def work(vae: Autoencoder) -> Tensor:
        scaled = latents / vae.config.scaling_factor
        return vae.decode(scaled.to(vae.device, vae.dtype)).float().cpu()

    def fault(images: Tensor) -> str | None:
        return _fault_of_images(images, may_be_plain)

    largest = latents.abs().max().item()
    advice = None
    if largest > HUGE_LATENTS:
        advice = (
            f"the latents grew to {largest:.3g}, where a few units are usual; use a lower "
            "--guidance-scale, or another --scheduler"
        )
    return (yield from _checked(models, work, fault, advice))


def _fault_of_images(images: Tensor, may_be_plain: bool) -> str | None:
    if not images.isfinite().all():
        return "the decoder gave pixels that are not finite"
    if may_be_plain:
        return None
    # As they will be in a file, of 8 bits. No image that anybody wants has one colour alone, and
    # the black one that some programs write where numbers went wrong is such.
    pixels = (images.clamp(-1, 1) * 127.5).round()
    if (pixels == pixels[..., :1, :1]).flatten(1).all(dim=1).any():
        return "the decoder gave one colour throughout"
    return None


def _checked(
    models: RequestModels,
    work: Callable[[Autoencoder], Result],
    fault: Callable[[Result], str | None],
    advice: str | None = None,
) -> Generator[Notice, None, Result]:
    """What the autoencoder makes; where it is faulty, once more in float32.

    ``advice`` says what else may be the reason if it is faulty even so; None for the weights.
    """
    result = yield from _with_fallbacks(models, work)
    found = fault(result)
    if found is not None and models.vae_dtype != torch.float32:
        yield Notice(f"{found}: doing it again in fp32")
        models = models.computing(dtype=torch.float32)
        result = yield from _with_fallbacks(models, work)
        found = fault(result)
    if found is not None:
        path = models.session.source.files.weights["vae"]
        raise GenerationError(f"{found}: {advice or f'{path} may be broken; try another'}")
    return result


def _with_fallbacks(
    models: RequestModels, work: Callable[[Autoencoder], Result]
) -> Generator[Notice, None, Result]:
    """What the autoencoder makes; where memory runs out, in tiles, then on the CPU."""
    ways = [models]

    @torch.inference_mode()
    def run() -> Result:
        with ways[-1].vae() as vae:
            return work(vae)

    def go_on(instead: RequestModels) -> None:
        models.session.loaded.release("vae")  # what did not suffice, before another takes its place
        ways.append(instead)

    fallbacks = []
    device = models.placement["vae"]
    if models.execution.captures_on(models.placement["unet"]):
        fallbacks.append(
            Fallback("dropping the CUDA graphs of the steps", models.session.loaded.drop_graphs)
        )
    tiled = models.computing(tiled=True)
    if not models.execution.is_tiled_on(device):
        fallbacks.append(Fallback("running it in tiles", partial(go_on, tiled)))
    if device != CPU:
        on_cpu = replace(tiled, placement=models.placement.with_device("vae", CPU))
        fallbacks.append(Fallback("running it on the CPU", partial(go_on, on_cpu)))
    return (yield from attempt(run, fallbacks, "the autoencoder"))
