"""Inpainting: repaint what a mask says, keep the rest."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sdpy.errors import ImageError
from sdpy.models import DiagonalGaussian
from sdpy.pipelines.components import Components
from sdpy.pipelines.denoise import Walk
from sdpy.pipelines.events import Event, Notice
from sdpy.pipelines.fitting import fit_memory
from sdpy.pipelines.img2img import noisy, sample_latents
from sdpy.pipelines.paint import Begin, Settings, check, latent_shape, paint, skipped_steps
from sdpy.pipelines.vae import encoding
from sdpy.schedulers import Scheduler


def inpaint(
    components: Components,
    settings: Settings,
    picture: Tensor,
    mask: Tensor,
    *,
    strength: float = 1.0,
) -> Iterator[Event]:
    """Repaint a part of a picture.

    A UNet with 9 input channels is shown the mask and the masked picture; one with 4 is held to
    the picture outside the mask by replacing its latents after every step (Lugmayr et al., 2022,
    "RePaint", equation 8, without resampling). Either way the decoder changes pixels outside the
    mask a little: put the result into the picture with `sdpy.images.composite`.

    Args:
        components: the models.
        settings: what to paint and how.
        picture: (1, 3, H, W) in [-1, 1], sides multiples of what one latent covers.
        mask: (1, 1, H, W), 1 where the picture is repainted and 0 where it is kept.
        strength: share of the steps that is walked, in [0, 1]; at 1 from pure noise.

    Raises:
        UsageError: an unsuitable size or setting.
        ImageError: the mask vanishes at the resolution of the latents.
        WeightsError: a file is broken or of the wrong kind.
        ShortageError: there is not enough memory.
        PaintingError: numbers went wrong.
    """
    shape = latent_shape(components, picture.shape[-1], picture.shape[-2])
    latent_mask = F.interpolate(mask, size=shape[-2:], mode="nearest")
    if not latent_mask.any():
        factor = components.variant.vae.downsample_factor
        raise ImageError(
            f"the white of the mask is too fine: one latent covers {factor}x{factor} pixels; "
            "paint larger areas white"
        )
    skip = skipped_steps(settings.steps, strength)
    latent_channels = components.variant.vae.latent_channels
    check(components, settings, shape, (latent_channels, 2 * latent_channels + 1))
    components = yield from fit_memory(components, settings, shape, encodes=True)
    if components.unet_in_channels == latent_channels:
        if components.variant.unet.in_channels != latent_channels:
            yield Notice(
                f"{components.files.weights['unet']} is not made for inpainting: blending the "
                "latents instead"
            )
        encoded = yield from encoding(components, picture)
        begin = _blending(components, encoded, latent_mask, skip)
    else:
        masked = yield from encoding(components, picture * (1 - mask))
        # From pure noise, the picture itself is not needed.
        whole = None if skip == 0 else (yield from encoding(components, picture))
        begin = _conditioned(components, whole, masked, latent_mask, skip)
    yield from paint(components, settings, begin, skip)


def _conditioned(
    components: Components,
    encoded: DiagonalGaussian | None,
    masked: DiagonalGaussian,
    latent_mask: Tensor,
    skip: int,
) -> Begin:
    """For 9 channels. Draws the masked picture's posterior first, as the OCaml program does."""

    def begin(scheduler: Scheduler, generator: torch.Generator) -> Walk:
        masked_latents = sample_latents(components, masked, generator)
        original = None if encoded is None else sample_latents(components, encoded, generator)
        noise = torch.randn(masked_latents.shape, generator=generator)
        latents = _start(scheduler, original, noise, skip)
        return Walk(latents, conditioning=torch.cat([latent_mask, masked_latents], dim=1))

    return begin


def _blending(
    components: Components, encoded: DiagonalGaussian, latent_mask: Tensor, skip: int
) -> Begin:
    """For 4 channels: outside the mask the latents are the picture's, as noisy as the step is."""

    def begin(scheduler: Scheduler, generator: torch.Generator) -> Walk:
        original = sample_latents(components, encoded, generator)
        noise = torch.randn(original.shape, generator=generator)
        latents = _start(scheduler, original, noise, skip)

        def keep_outside(latents: Tensor, upcoming: Tensor | None) -> Tensor:
            kept = original if upcoming is None else scheduler.add_noise(original, noise, upcoming)
            inside = latent_mask.to(latents.device)
            return inside * latents + (1 - inside) * kept.to(latents.device)

        return Walk(latents, after_step=keep_outside)

    return begin


def _start(scheduler: Scheduler, original: Tensor | None, noise: Tensor, skip: int) -> Tensor:
    """The first latents: pure noise where all steps are walked."""
    if skip == 0 or original is None:
        return noise * scheduler.init_noise_sigma
    return noisy(scheduler, original, noise)
