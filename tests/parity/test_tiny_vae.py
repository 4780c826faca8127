"""The tiny autoencoder beside diffusers'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sdpy.models import AutoencoderTiny, AutoencoderTinyConfig
from support.compare import MODEL_TOLERANCE, normal, randomise, relative_error
from support.references import reference_tiny_vae

TAESD = AutoencoderTinyConfig()
CONFIGS = {
    "taesd": TAESD,
    "narrow": replace(TAESD, channels=6),
    "three levels": replace(
        TAESD, channels=8, encoder_blocks=(2, 1, 1), decoder_blocks=(1, 2, 1), latent_channels=3
    ),
    "one level": AutoencoderTinyConfig(channels=4, encoder_blocks=(1,), decoder_blocks=(2,)),
}


def pair(config: AutoencoderTinyConfig) -> tuple[nn.Module, nn.Module]:
    ours, theirs = randomise(AutoencoderTiny(config)), reference_tiny_vae(config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_encoder_and_decoder(name: str) -> None:
    config = CONFIGS[name]
    ours, theirs = pair(config)
    factor = config.downsample_factor
    image = normal(2, 3, 5 * factor, 3 * factor, seed=1)
    encoded = ours.encode(image)
    assert relative_error(encoded.mean, theirs.encode(image).latents) <= MODEL_TOLERANCE
    assert torch.equal(encoded.sample(normal(*encoded.mean.shape)), encoded.mean)
    # Large enough to reach the soft limit.
    latents = 5 * normal(2, config.latent_channels, 5, 3, seed=2)
    assert relative_error(ours.decode(latents), theirs.decode(latents).sample) <= MODEL_TOLERANCE


@torch.no_grad()
def test_a_change_of_any_weight_is_noticed() -> None:
    ours, theirs = pair(CONFIGS["three levels"])
    image, latents = normal(1, 3, 16, 16, seed=1), normal(1, 3, 4, 4, seed=2)
    encoded, decoded = ours.encode(image).mean, ours.decode(latents)
    for name, parameter in theirs.named_parameters():
        saved = parameter.clone()
        parameter.copy_(saved.flip(0) + 0.1)
        if name.startswith("encoder"):
            error = relative_error(theirs.encode(image).latents, encoded)
        else:
            error = relative_error(theirs.decode(latents).sample, decoded)
        assert error > 10 * MODEL_TOLERANCE, name
        parameter.copy_(saved)


def test_names_shapes_and_scale_of_the_published_weights() -> None:
    with torch.device("meta"):
        ours, theirs = AutoencoderTiny(TAESD), reference_tiny_vae(TAESD)
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert TAESD.scaling_factor == theirs.config.scaling_factor
    assert TAESD.downsample_factor == 8
