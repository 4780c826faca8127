"""TAESD's files as its author publishes them: two, with numbers for names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import (
    check_weights,
    fingerprint,
    guess_kind,
    load_weights,
    outline_of,
    read_checkpoint,
    write_checkpoint,
)
from sdpy.errors import WeightsError
from sdpy.models import AutoencoderTiny, AutoencoderTinyConfig
from support.compare import MODEL_TOLERANCE, normal, randomise, relative_error


class Block(nn.Module):
    """Three convolutions and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)),
            *(nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + x).relu()


class Clamp(nn.Module):
    """The decoder's first layer, without weights."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def conv(stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(64, 64, 3, stride, padding=1, bias=bias)


def published(latents: int = 4) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder in the order of the author's layers."""
    encoder: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), Block()]
    decoder: list[nn.Module] = [Clamp(), nn.Conv2d(latents, 64, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        encoder += [conv(2, bias=False), Block(), Block(), Block()]
        decoder += [Block(), Block(), Block(), nn.Upsample(scale_factor=2), conv(bias=False)]
    encoder.append(nn.Conv2d(64, latents, 3, padding=1))
    decoder += [Block(), nn.Conv2d(64, 3, 3, padding=1)]
    return randomise(nn.Sequential(*encoder), 1), randomise(nn.Sequential(*decoder), 2)


@pytest.fixture(scope="module")
def halves() -> tuple[nn.Module, nn.Module]:
    return published()


@pytest.fixture
def folder(tmp_path: Path, halves: tuple[nn.Module, nn.Module]) -> Path:
    for half, network in zip(("encoder", "decoder"), halves, strict=True):
        write_checkpoint(tmp_path / f"taesd_{half}.safetensors", network.state_dict())
    return tmp_path


def tiny_vae() -> nn.Module:
    with torch.device("meta"):
        return AutoencoderTiny(AutoencoderTinyConfig())


@pytest.mark.parametrize("named", ["taesd_decoder", "taesd_encoder"])
@torch.no_grad()
def test_either_half_brings_the_other(
    folder: Path, halves: tuple[nn.Module, nn.Module], named: str
) -> None:
    model = tiny_vae()
    load_weights(model, folder / f"{named}.safetensors", component="vae")
    image, latents = normal(1, 3, 16, 24, seed=3), 3 * normal(1, 4, 2, 3, seed=4)
    encoded = halves[0]((image + 1) / 2)
    assert relative_error(model.encode(image).mean, encoded) <= MODEL_TOLERANCE
    decoded = halves[1](latents) * 2 - 1
    assert relative_error(model.decode(latents), decoded) <= MODEL_TOLERANCE


def test_both_may_be_named(folder: Path) -> None:
    for half in ("encoder", "decoder"):
        (folder / half).mkdir()
        (folder / f"taesd_{half}.safetensors").rename(folder / half / "x.safetensors")
    named = Path(f"{folder / 'decoder/x.safetensors'},{folder / 'encoder/x.safetensors'}")
    check_weights(tiny_vae(), named, component="vae")
    assert len(fingerprint(named)) == 2


def test_a_half_alone_is_not_enough(folder: Path) -> None:
    (folder / "taesd_encoder.safetensors").rename(folder / "elsewhere.safetensors")
    with pytest.raises(WeightsError, match="the decoder of a tiny VAE .*without the encoder"):
        check_weights(tiny_vae(), folder / "taesd_decoder.safetensors", component="vae")


def test_two_of_the_same_half_are_no_whole(folder: Path) -> None:
    decoder = (folder / "taesd_decoder.safetensors").read_bytes()
    (folder / "taesd_encoder.safetensors").write_bytes(decoder)
    with pytest.raises(WeightsError, match="without the encoder"):
        check_weights(tiny_vae(), folder / "taesd_decoder.safetensors", component="vae")


def test_a_half_that_is_replaced_is_noticed(folder: Path) -> None:
    path = folder / "taesd_decoder.safetensors"
    opened, before = read_checkpoint(path), fingerprint(path)
    (folder / "taesd_encoder.safetensors").rename(folder / "old.safetensors")
    assert fingerprint(path) != before
    assert len(read_checkpoint(path).outline) < len(opened.outline)


def test_the_names_of_comfyui_in_one_file(folder: Path) -> None:
    opened = read_checkpoint(folder / "taesd_decoder.safetensors")
    write_checkpoint(folder / "both.safetensors", dict(opened.tensors))
    assert "taesd_decoder.3.conv.0.weight" in opened.outline
    check_weights(tiny_vae(), folder / "both.safetensors", component="vae")


def test_one_for_other_models_says_for_which(tmp_path: Path) -> None:
    for half, network in zip(("encoder", "decoder"), published(latents=16), strict=True):
        write_checkpoint(tmp_path / f"taef1_{half}.safetensors", network.state_dict())
    path = tmp_path / "taef1_decoder.safetensors"
    outline = outline_of(path, "vae")
    told = guess_kind({name: tuple(tensor.shape) for name, tensor in outline.items()})
    assert told is not None and "Stable Diffusion 3, FLUX" in told
    with pytest.raises(WeightsError, match="Stable Diffusion 3, FLUX"):
        check_weights(tiny_vae(), path, component="vae")
