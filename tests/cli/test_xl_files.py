"""The same Stable Diffusion XL from all layouts of its files, as typed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image

from sdpy.checkpoints import read_checkpoint, write_checkpoint
from sdpy.zoo.variants import VARIANTS
from support.tiny_xl import TINY_XL, reference_pipeline, write_tiny_xl


@pytest.fixture
def folder(sdpy: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """diffusers' folder of a tiny model, whose sizes are known without its configuration files."""
    monkeypatch.setitem(VARIANTS, "sdxl", TINY_XL)
    return write_tiny_xl(Path("folder"))


def image(sdpy: Any, model: str, *options: object) -> np.ndarray[Any, Any]:
    done = sdpy(
        *("generate", "lighthouse at dark", "--model", model, "--steps", 2, "--seed", 3),
        *("--width", 32, "--height", 32, "-o", "x.png", "--data", "ot", *options),
    )
    assert done.code == 0, done.err
    with Image.open("x.png") as opened:
        return np.asarray(opened, np.int16)


def test_the_same_image_from_every_layout(sdpy: Any, folder: Path) -> None:
    for words in (
        ("convert", folder, "one.safetensors"),
        ("convert", folder, "ot", "--layout", "ot"),
        ("convert", "one.safetensors", "one.ckpt"),
        ("convert", "one.ckpt", "again", "--data", "ot"),
        ("convert", "one.ckpt", "unet.safetensors", "--part", "unet"),
        ("convert", folder / "text_encoder", "clip_l.safetensors"),
        ("convert", "one.safetensors", "clip_g.ckpt", "--part", "text_encoder_2"),
        ("convert", "ot/vae_xl.ot", "vae.npz", "--layout", "original"),
    ):
        assert sdpy(*words).code == 0
    expected = image(sdpy, "folder")
    assert expected.std() > 10
    split = ("--clip-weights", "clip_l.safetensors", "--clip-2-weights", "clip_g.ckpt")
    for model, options in (
        *((name, ()) for name in ("one.safetensors", "one.ckpt", "again", "ot")),
        ("unet.safetensors", (*split, "--vae-weights", "vae.npz")),
    ):
        # Rounding depends on where weights lie.
        assert np.abs(image(sdpy, model, *options) - expected).max() <= 1, model


def test_the_same_image_from_shards_and_variants(sdpy: Any, folder: Path) -> None:
    """As diffusers and transformers write them, of every component."""
    expected = image(sdpy, "folder")
    kind = diffusers.StableDiffusionXLPipeline
    options = {"force_zeros_for_empty_prompt": True}
    pipeline = reference_pipeline(kind, TINY_XL, Path("tokenizers"), **options)
    pipeline.save_pretrained("other", variant="fp16", max_shard_size="60KB")
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert list(Path("other", name).glob("*.fp16*.safetensors"))
        assert list(Path("other", name).glob("*.index.fp16.json")), name
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copy(folder / name / "merges.txt", Path("other", name))
    for words in ((), ("--variant", "fp16")):
        assert np.abs(image(sdpy, "other", *words) - expected).max() <= 1


def test_a_missing_second_text_encoder_is_named(sdpy: Any, folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder_2")
    done = sdpy("generate", "x", "--model", folder)
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "text_encoder_2" in done.err or "second text encoder" in done.err


def test_a_second_text_encoder_of_another_model_is_refused(sdpy: Any, folder: Path) -> None:
    assert sdpy("convert", folder, "one.safetensors").code == 0
    state = dict(read_checkpoint(folder / "text_encoder_2").tensors)
    state["text_projection.weight"] = state["text_projection.weight"][:40]
    write_checkpoint("other.safetensors", state)
    options = ("--clip-2-weights", "other.safetensors", "--data", "folder")
    vocabulary = ("--vocab-file", folder / "tokenizer" / "merges.txt")
    done = sdpy("generate", "x", "--model", "one.safetensors", *options, *vocabulary)
    assert done.code == 3
    assert done.err.count("\n") <= 2
    assert "does not go with one.safetensors" in done.err


@pytest.mark.parametrize("name", ["folder/unet", "folder/unet/diffusion_pytorch_model.safetensors"])
def test_a_unet_alone_is_said_to_be_one(sdpy: Any, folder: Path, name: str) -> None:
    done = sdpy("generate", "x", "--model", name)
    assert done.code == 3
    assert f"{name} holds no text encoder and no second text encoder and no VAE" in done.err
    assert f"or give this UNet to its model: --model sdxl --unet-weights {name}\n" in done.err
