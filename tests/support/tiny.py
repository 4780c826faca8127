"""A Stable Diffusion with every part of the real one and hardly a size: random weights, in files.

``TINY`` and ``TINY_INPAINT`` have the names, the files' names and the 1.5 schedule of ``sd15`` and
``sd15-inpaint``; ``TINY_V`` predicts velocities on a zero-terminal-SNR schedule.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdpy.checkpoints import write_checkpoint
from sdpy.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    CLIPTextConfig,
    CLIPTextModel,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from sdpy.runtime.devices import CPU, Placement
from sdpy.runtime.session import Session
from sdpy.schedulers import NoiseConfig
from sdpy.zoo.files import ModelFiles
from sdpy.zoo.source import ModelSource
from sdpy.zoo.variants import SD15, SD15_INPAINT, ModelVariant
from support.compare import randomise

MERGES = [
    *(("l", "i"), ("g", "h"), ("li", "gh"), ("ligh", "t"), ("t", "h"), ("th", "e</w>")),
    *(("h", "o"), ("ho", "u"), ("s", "e</w>"), ("hou", "se</w>"), ("light", "house</w>")),
    *(("a", "t</w>"), ("d", "a"), ("r", "k</w>"), ("da", "rk</w>"), ("c", "at</w>")),
]

TINY = replace(SD15, sample_size=32, max_pixels=64 * 64).with_configs(
    text_encoder=CLIPTextConfig(
        vocab_size=514 + len(MERGES),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
    unet=UNet2DConditionConfig(
        block_out_channels=(16, 24),
        cross_attention=(True, False),
        attention_heads=(2, 3),
        layers_per_block=1,
        cross_attention_dim=32,
        norm_num_groups=8,
    ),
    vae=AutoencoderKLConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4),
)
TINY_INPAINT = replace(TINY, name=SD15_INPAINT.name, files=SD15_INPAINT.files).with_configs(
    unet=replace(TINY.unet, in_channels=9)
)
TINY_V = replace(
    TINY,
    noise=NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    timestep_spacing="trailing",
)


def tiny_model(name: str, in_channels: int = 4) -> nn.Module:
    """One of the models, by the names of components, with its random weights."""
    if name == "text_encoder":
        return randomise(CLIPTextModel(TINY.text_encoder), seed=1)
    if name == "unet":
        return randomise(UNet2DConditionModel(replace(TINY.unet, in_channels=in_channels)), seed=2)
    return randomise(AutoencoderKL(TINY.vae), seed=3)


def tiny_weights(name: str, in_channels: int = 4) -> dict[str, Tensor]:
    return tiny_model(name, in_channels).state_dict()


def write_tiny(folder: Path) -> Path:
    """Write all weights and the vocabulary of both variants, under the names of Stable Diffusion's.

    ``unet-5.ot`` has 5 input channels, which no task can use.
    """
    folder.mkdir(exist_ok=True)
    write_checkpoint(folder / "pytorch_model.ot", tiny_weights("text_encoder"))
    write_checkpoint(folder / "vae.ot", tiny_weights("vae"))
    write_checkpoint(folder / "unet.ot", tiny_weights("unet"))
    write_checkpoint(folder / "unet-inpaint.ot", tiny_weights("unet", in_channels=9))
    write_checkpoint(folder / "unet-5.ot", tiny_weights("unet", in_channels=5))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    vocabulary = folder / "bpe_simple_vocab_16e6.txt"
    vocabulary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tiny_files(folder: Path, unet: str = "unet.ot") -> ModelFiles:
    return ModelFiles(
        {
            "text_encoder": folder / "pytorch_model.ot",
            "unet": folder / unet,
            "vae": folder / "vae.ot",
        },
        vocabulary=folder / "bpe_simple_vocab_16e6.txt",
    )


def tiny_source(folder: Path, variant: ModelVariant = TINY, unet: str = "unet.ot") -> ModelSource:
    return ModelSource(variant, tiny_files(folder, unet))


def tiny_session(
    folder: Path, variant: ModelVariant = TINY, unet: str = "unet.ot", **options: Any
) -> Session:
    """A session that keeps its models, unless ``keep_models`` says otherwise."""
    return Session(tiny_source(folder, variant, unet), **options)


def placed(
    text_encoder: torch.device = CPU, unet: torch.device = CPU, vae: torch.device = CPU
) -> Placement:
    """A device for each component of a model; both text encoders have the same."""
    encoders = dict.fromkeys(("text_encoder", "text_encoder_2"), text_encoder)
    return Placement({**encoders, "unet": unet, "vae": vae})


def random_image(width: int, height: int, seed: int = 0) -> Tensor:
    """A smooth image (1, 3, H, W) in [-1, 1]."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return 2 * nn.functional.interpolate(coarse, size=(height, width), mode="bilinear") - 1
