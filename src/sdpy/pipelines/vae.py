"""Pictures to latents and back, with what is done about too little memory and bad numbers."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from sdpy.errors import PaintingError
from sdpy.models import AutoencoderKL, AutoencoderTiny, DiagonalGaussian
from sdpy.pipelines.components import Components
from sdpy.pipelines.events import Notice
from sdpy.pipelines.recovery import Resort, attempt, finish
from sdpy.runtime.devices import CPU

Result = TypeVar("Result")
Autoencoder = AutoencoderKL | AutoencoderTiny


def encode(components: Components, picture: Tensor) -> DiagonalGaussian:
    """`encoding`, without its notices."""
    return finish(encoding(components, picture))


def decode(components: Components, latents: Tensor) -> Tensor:
    """`decoding`, without its notices."""
    return finish(decoding(components, latents))


def encoding(components: Components, picture: Tensor) -> Generator[Notice, None, DiagonalGaussian]:
    """The distribution of a picture's latents, float32 on the CPU.

    Args:
        components: the models.
        picture: (1, 3, H, W) in [-1, 1].

    Raises:
        ShortageError: there is not enough memory.
        PaintingError: the result is not finite.
    """

    def work(vae: Autoencoder) -> DiagonalGaussian:
        encoded = vae.encode(picture.to(vae.device, vae.dtype))
        return DiagonalGaussian(encoded.mean.float().cpu(), encoded.std.float().cpu())

    def fault(encoded: DiagonalGaussian) -> str | None:
        finite = encoded.mean.isfinite().all() and encoded.std.isfinite().all()
        return None if finite else "the picture became latents that are not finite"

    return (yield from _checked(components, work, fault))


def decoding(components: Components, latents: Tensor) -> Generator[Notice, None, Tensor]:
    """Clean latents (1, C, h, w) to a picture (1, 3, H, W), float32 on the CPU.

    Raises:
        ShortageError: there is not enough memory.
        PaintingError: the result is not finite, or of one colour throughout.
    """

    def work(vae: Autoencoder) -> Tensor:
        scaled = latents / vae.config.scaling_factor
        return vae.decode(scaled.to(vae.device, vae.dtype)).float().cpu()

    return (yield from _checked(components, work, _fault_of_picture))


def _fault_of_picture(picture: Tensor) -> str | None:
    if not picture.isfinite().all():
        return "the decoder gave pixels that are not finite"
    # As they will be in a file, of 8 bits. No picture that anybody wants has one colour alone,
    # and the black one that some programs write where numbers went wrong is such.
    pixels = (picture.clamp(-1, 1) * 127.5).round()
    if (pixels == pixels[..., :1, :1]).all():
        return "the decoder gave one colour throughout"
    return None


def _checked(
    components: Components,
    work: Callable[[Autoencoder], Result],
    fault: Callable[[Result], str | None],
) -> Generator[Notice, None, Result]:
    """What the autoencoder makes; where it is faulty, once more in float32."""
    result = yield from _fitted(components, work)
    found = fault(result)
    if found is not None and components.vae_dtype != torch.float32:
        yield Notice(f"{found}: doing it again in fp32")
        components = components.computing(dtype=torch.float32)
        result = yield from _fitted(components, work)
        found = fault(result)
    if found is not None:
        raise PaintingError(f"{found}: {components.files.vae} may be broken; try another")
    return result


def _fitted(
    components: Components, work: Callable[[Autoencoder], Result]
) -> Generator[Notice, None, Result]:
    """What the autoencoder makes; where memory runs out, in strips, then on the CPU."""
    ways = [components]

    @torch.inference_mode()
    def run() -> Result:
        with ways[-1].vae() as vae:
            return work(vae)

    resorts = []
    if not components.execution.in_strips_on(components.placement.vae):
        in_strips = components.computing(strips=True)
        resorts.append(Resort("running it in strips", partial(ways.append, in_strips)))
    if components.placement.vae != CPU:
        placement = replace(components.placement, vae=CPU)
        on_cpu = components.computing(strips=True).changed(placement=placement)
        resorts.append(Resort("running it on the CPU", partial(ways.append, on_cpu)))
    return (yield from attempt(run, resorts, "the autoencoder"))
