"""Stages that train the autoencoder, and encode the images with it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.demo import scenes
from scripts.demo.sheets import psnr, write_sheet
from scripts.demo.training.data import SIZE, image_batches, load_images, to_tensor
from scripts.demo.training.models import load_autoencoder, load_averages
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.trainer import Log, Trainer, autocast, channels_last
from sdpy.models import AutoencoderKL, AutoencoderTiny
from sdpy.zoo.variants import DEMO

CROP = 64
"""Pixels a side of the autoencoder's first, cheaper training images."""


def train_autoencoder(options: TrainingOptions) -> None:
    """Train the autoencoder on crops, then for a while on whole images."""
    vae = AutoencoderKL(DEMO.vae)
    crop_steps = options.autoencoder_crops // options.batch
    steps = crop_steps + options.autoencoder_images // options.batch
    trainer = Trainer(options, "autoencoder", {"vae": vae}, steps)
    generator = torch.Generator(options.device).manual_seed(options.seed + trainer.step)
    batches: Iterator[Tensor] | None = None
    whole = False
    while not trainer.done:
        if batches is None or whole != (trainer.step >= crop_steps):
            whole = trainer.step >= crop_steps
            crop = SIZE if whole else CROP
            batches = image_batches(options, "autoencoder", trainer.step, crop)
        image = next(batches)
        with autocast(options):
            latents = vae.encode(image)
            noise = torch.randn(latents.mean.shape, generator=generator, device=options.device)
            decoded = vae.decode(latents.sample(noise))
        mean, std = latents.mean.float(), latents.std.float()
        divergence = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).mean()
        trainer.update(reconstruction_loss(decoded.float(), image) + 1e-6 * divergence)
        if trainer.step % 100 == 0:
            error = F.mse_loss(decoded.float().clamp(-1, 1), image).item()
            trainer.log(
                f"step {trainer.step} of {steps}, {psnr(error):.2f} dB, KL {divergence:.2f}, "
                f"std {std.mean():.3f}, {trainer.minutes:.1f} min"
            )
    report_reconstruction(options, trainer.averages["vae"], trainer.log)


def reconstruction_loss(decoded: Tensor, image: Tensor) -> Tensor:
    """Absolute and squared error, edges (errors of neighbours' differences) and chroma.

    Dark places weigh more, as to the eye: without it a green house at night comes back grey.
    """
    brightness = (image.mean(dim=1, keepdim=True) + 1) / 2
    weight = 0.5 / (0.15 + brightness)
    difference = decoded - image
    chroma = difference - difference.mean(dim=1, keepdim=True)
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return (weight * (difference.abs() + 2 * difference.square() + chroma.abs())).mean() + (
        0.5 * edges
    )


def report_reconstruction(options: TrainingOptions, vae: nn.Module, log: Log) -> None:
    """Log the error on images that were not trained on, and write a sheet of pairs."""
    drawn = [scenes.draw(scenes.scene_at(i, options.seed + 1), SIZE) for i in range(64)]
    assert isinstance(vae, AutoencoderKL | AutoencoderTiny)
    images = to_tensor(np.stack(drawn))
    decoded = []
    with torch.no_grad():
        for batch in images.to(options.device).split(16):
            decoded.append(vae.decode(vae.encode(batch).mean).clamp(-1, 1).cpu())
    log(f"fresh images: {psnr(F.mse_loss(torch.cat(decoded), images).item()):.2f} dB")
    pairs = torch.stack([images, torch.cat(decoded)], dim=1).flatten(0, 1)[:64]
    write_sheet(options.run / f"{log.stage}.png", pairs, columns=8)


def encode_images(options: TrainingOptions) -> None:
    """Encode all images into ``latents.pt`` and fold their normalisation into the autoencoder.

    The mean and deviation of each channel go into ``quant_conv`` and ``post_quant_conv``, so that
    the latents have mean 0 and variance 1 and the scaling factor is 1.
    """
    path = options.run / "latents.pt"
    if path.exists():
        return
    log = Log(options, "latents")
    vae = channels_last(AutoencoderKL(DEMO.vae).to(options.device))
    load_averages(vae, options.run / "autoencoder.pt")
    images = load_images(options)
    means = []
    for start in range(0, len(images), 64):
        batch = to_tensor(images[start : start + 64].copy(), options.device)
        with torch.no_grad(), autocast(options):
            means.append(vae.encode(batch).mean.float().cpu())
        if start % 6400 == 0:
            log(f"{start} of {len(images)}")
    encoded = torch.cat(means)
    mean, std = encoded.mean(dim=(0, 2, 3)), encoded.std(dim=(0, 2, 3))
    log(f"channel means {mean.tolist()}, deviations {std.tolist()}")
    fold_normalisation(vae, mean, std)
    normalised = (encoded - mean[:, None, None]) / std[:, None, None]
    torch.save({"vae": vae.state_dict(), "latents": normalised.half()}, path)


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Make ``vae`` give and take ``(latents - mean) / std``; both (latent_channels,)."""
    encoder_side, decoder_side = vae.quant_conv, vae.post_quant_conv
    assert encoder_side.bias is not None and decoder_side.bias is not None
    mean, std = mean.to(encoder_side.weight.device), std.to(encoder_side.weight.device)
    n = len(mean)
    decoder_side.bias += decoder_side.weight[:, :, 0, 0] @ mean
    decoder_side.weight *= std[None, :, None, None]
    encoder_side.weight[:n] /= std[:, None, None, None]
    encoder_side.bias[:n] -= mean
    encoder_side.bias[:n] /= std
    encoder_side.bias[n:] -= 2 * std.log()  # log-variances


def train_decoder(options: TrainingOptions) -> None:
    """Go on training the decoder alone, on whole images and the frozen encoder's latents."""
    vae = load_autoencoder(options)
    vae.decoder.requires_grad_(True)
    trainer = Trainer(options, "decoder", {"vae": vae}, options.decoder_images // options.batch)
    batches = image_batches(options, "decoder", trainer.step, SIZE)
    while not trainer.done:
        image = next(batches)
        with autocast(options):
            with torch.no_grad():
                encoded = vae.encode(image)
            decoded = vae.decode(encoded.mean)
        trainer.update(reconstruction_loss(decoded.float(), image))
        if trainer.step % 50 == 0:
            error = F.mse_loss(decoded.float().clamp(-1, 1), image).item()
            trainer.log(f"step {trainer.step} of {trainer.steps}, {psnr(error):.2f} dB")
    report_reconstruction(options, trainer.averages["vae"], trainer.log)
