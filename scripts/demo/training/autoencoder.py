"""Stages that train the autoencoder, and encode the images with it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.demo.sheets import psnr, write_sheet
from scripts.demo.training.clock import Clock
from scripts.demo.training.data import (
    LATENTS_FILE,
    ImageSet,
    device_generator,
    finish_drawing,
    step_generator,
    to_tensor,
)
from scripts.demo.training.log import Log
from scripts.demo.training.models import load_autoencoder, load_averages
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.trainer import Trainer, autocast, channels_last
from sdpy.models import AutoencoderKL, AutoencoderTiny

CROP = 64
"""Pixels a side of the autoencoder's first, cheaper training images."""

CROPPED_SHARE = 0.7
"""Share of the autoencoder's training on crops, where time is limited."""

CROPS_A_STEP = 4
"""Times as many crops as whole images in a step."""

DIVERGENCE_WEIGHT = 1e-6


def train_autoencoder(options: TrainingOptions) -> None:
    """Train the autoencoder on crops, then for a while on whole images."""
    torch.manual_seed(options.seed)
    vae = AutoencoderKL(options.recipe.variant.vae)
    size = options.recipe.size
    crops = options.images_a_step * (CROPS_A_STEP if size > 2 * CROP else 1)
    crop_steps = options.autoencoder_crops // crops
    steps = crop_steps + options.autoencoder_images // options.images_a_step
    trainer = Trainer(options, "autoencoder", {"vae": vae}, steps)
    images = ImageSet(options)

    def on_crops(step: int) -> bool:
        if trainer.clock.limit is None:
            return step < crop_steps
        return step < CROPPED_SHARE * trainer.steps

    seen: dict[int, tuple[bool, int]] = {}

    def loss_at(step: int) -> Tensor:
        # A step that is done again must see the same images, whatever is planned and drawn by then.
        small, count = seen.setdefault(step, (on_crops(step), images.count))
        seen.pop(step - 2 * trainer.log_every, None)
        rng = step_generator(options, "autoencoder", step)
        side, batch = (CROP, crops) if small else (size, options.images_a_step)
        index = torch.from_numpy(rng.integers(count, size=batch))
        y, x = rng.integers(0, size - side + 1, size=2)
        image = images.batch(index, side, (int(y), int(x)))
        with autocast(options):
            latents = vae.encode(image)
            mean, std = latents.mean.float(), latents.std.float()
            generator = device_generator(options, rng)
            noise = torch.randn(mean.shape, generator=generator, device=options.device)
            decoded = vae.decode(mean + std * noise).float()
        divergence = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).mean()
        trainer.note("mse", F.mse_loss(decoded.clamp(-1, 1), image))
        trainer.note("KL", divergence)
        return reconstruction_loss(decoded, image) + DIVERGENCE_WEIGHT * divergence

    for step in trainer.train(loss_at):
        if step % trainer.log_every == 0:
            images.extend()
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
    size, scenes = options.recipe.size, options.recipe.scenes
    drawn = [scenes.draw(scenes.scene_at(i, options.seed + 1), size) for i in range(64)]
    assert isinstance(vae, AutoencoderKL | AutoencoderTiny)
    images = to_tensor(torch.from_numpy(np.stack(drawn)))
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
    path = options.run / LATENTS_FILE
    if path.exists():
        return
    log, clock = Log(options, "latents"), Clock(options, "latents")
    finish_drawing(options)
    vae = channels_last(AutoencoderKL(options.recipe.variant.vae).to(options.device))
    load_averages(vae, options.run / "autoencoder.pt")
    images = ImageSet(options)
    encoded = torch.empty(images.count, *options.recipe.latents_shape, device=options.device)
    for index in torch.arange(images.count).split(64):
        with torch.no_grad(), autocast(options):
            mean = vae.encode(images.batch(index)).mean
        encoded[index[0] : index[-1] + 1] = mean.float()
    mean, std = encoded.mean(dim=(0, 2, 3)), encoded.std(dim=(0, 2, 3))
    log(f"channel means {mean.tolist()}, deviations {std.tolist()}")
    fold_normalisation(vae, mean, std)
    normalised = (encoded - mean[:, None, None]) / std[:, None, None]
    partial = path.with_suffix(".part")
    torch.save({"vae": vae.cpu().state_dict(), "latents": normalised.half().cpu()}, partial)
    partial.rename(path)
    clock.save()


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
    steps = options.decoder_images // options.images_a_step
    trainer = Trainer(options, "decoder", {"vae": vae}, steps, log_every=50)
    images = ImageSet(options)

    def loss_at(step: int) -> Tensor:
        rng = step_generator(options, "decoder", step)
        image = images.batch(
            torch.from_numpy(rng.integers(images.count, size=options.images_a_step))
        )
        with autocast(options):
            with torch.no_grad():
                latents = vae.encode(image).mean
            decoded = vae.decode(latents).float()
        trainer.note("mse", F.mse_loss(decoded.clamp(-1, 1), image))
        return reconstruction_loss(decoded, image)

    for _ in trainer.train(loss_at):
        pass
    report_reconstruction(options, trainer.averages["vae"], trainer.log)
