"""The stage that distils the trained autoencoder into a tiny one."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.demo.training.autoencoder import reconstruction_loss, report_reconstruction
from scripts.demo.training.data import ImageSet, load_latents, step_generator
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.trainer import Trainer, autocast
from sdpy.checkpoints import write_checkpoint
from sdpy.models import AutoencoderTiny

TINY_VAE_FILE = "tiny_vae.safetensors"


def distil_autoencoder(options: TrainingOptions) -> None:
    """Teach a tiny autoencoder the latents of the real one, and to decode these to images."""
    latents, images = load_latents(options), ImageSet(options)
    torch.manual_seed(options.seed)
    vae = AutoencoderTiny(options.recipe.variant.tiny_vae)
    trainer = Trainer(
        replace(options, learning_rate=options.tiny_vae_learning_rate),
        "tiny-vae",
        {"vae": vae},
        options.tiny_vae_images // options.images_a_step,
        log_every=50,
    )

    def loss_at(step: int) -> Tensor:
        rng = step_generator(options, "tiny-vae", step)
        index = torch.from_numpy(rng.integers(images.count, size=options.images_a_step))
        image = images.batch(index)
        target = latents[index.to(latents.device)].float()
        with autocast(options):
            encoded, decoded = vae.encode(image).mean.float(), vae.decode(target).float()
        error = F.mse_loss(encoded, target)
        trainer.note("mse", F.mse_loss(decoded.clamp(-1, 1), image))
        trainer.note("latents", error)
        return reconstruction_loss(decoded, image) + error

    for _ in trainer.train(loss_at):
        pass
    average = trainer.averages["vae"]
    report_reconstruction(options, average, trainer.log)
    write_checkpoint(options.run / TINY_VAE_FILE, average.half().state_dict())
