"""``--ema`` and ``--variant``: which of several weights of one model are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdpy.checkpoints import read_checkpoint, write_checkpoint

UNET = "model.diffusion_model."


@pytest.fixture
def both(sdpy: Any, tiny_data: Path) -> Path:
    """A checkpoint with averaged weights that are not those of the UNet."""
    assert sdpy("convert", tiny_data, "plain.safetensors").code == 0
    plain = dict(read_checkpoint("plain.safetensors").tensors)
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor * 0.9
        for name, tensor in plain.items()
        if name.startswith(UNET)
    }
    write_checkpoint("both.safetensors", {**plain, **averages})
    without = {name: tensor for name, tensor in plain.items() if not name.startswith(UNET)}
    write_checkpoint("only.safetensors", {**without, **averages})
    write_checkpoint(
        "expected.safetensors",
        {name: t * 0.9 if name.startswith(UNET) else t for name, t in plain.items()},
    )
    return Path("both.safetensors")


def image(sdpy: Any, model: object, *options: object) -> tuple[Any, str]:
    """The pixels, which may be off by one, as rounding depends on where weights lie; and stderr."""
    done = sdpy(
        *("generate", "lighthouse", "--model", model, "--steps", 1, "--width", 16),
        *("--height", 16, "-o", "x.png", *options),
    )
    assert done.code == 0, done.err
    with Image.open("x.png") as opened:
        return np.asarray(opened, np.int16), done.err


def same(one: Any, other: Any) -> bool:
    return bool(np.abs(one - other).max() <= 1)


def test_averaged_weights_are_told_and_chosen(sdpy: Any, both: Path) -> None:
    plain, _ = image(sdpy, "plain.safetensors")
    expected, _ = image(sdpy, "expected.safetensors")
    assert not same(plain, expected)
    found, told = image(sdpy, both)
    assert same(found, plain)
    assert (
        "both.safetensors holds averaged weights (EMA) of its UNet, too; --ema takes them" in told
    )
    found, told = image(sdpy, both, "--ema")
    assert same(found, expected)
    assert "EMA" not in told
    found, told = image(sdpy, "only.safetensors")
    assert same(found, expected)
    assert "only.safetensors holds the UNet's averaged weights (EMA) only: using them" in told


def test_there_have_to_be_averaged_weights(sdpy: Any, both: Path) -> None:
    for command in (
        ("generate", "x", "--model", "plain.safetensors", "--ema"),
        ("inspect", "plain.safetensors", "--ema"),
        ("convert", "plain.safetensors", "y.ckpt", "--ema"),
    ):
        done = sdpy(*command)
        assert done.code == 2
        assert "plain.safetensors holds no averaged weights (EMA)" in done.err


def test_inspect_and_convert_averaged_weights(sdpy: Any, both: Path) -> None:
    assert "averaged weights (EMA) beside these; --ema shows them" in sdpy("inspect", both).out
    done = sdpy("inspect", both, "--ema")
    assert "averaged weights (EMA)\n" in done.out
    assert sdpy("convert", both, "average.safetensors", "--ema").code == 0
    got, expected = (
        read_checkpoint(path).tensors for path in ("average.safetensors", "expected.safetensors")
    )
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_variants_of_a_folder(sdpy: Any, tiny_data: Path) -> None:
    assert sdpy("convert", tiny_data, "folder", "--data", tiny_data).code == 0
    plain, _ = image(sdpy, "folder")
    file = Path("folder/unet/diffusion_pytorch_model.safetensors")
    changed = {name: tensor * 0.9 for name, tensor in read_checkpoint(file).tensors.items()}
    write_checkpoint(file.with_suffix(".non_ema.safetensors"), changed)
    assert same(image(sdpy, "folder")[0], plain)
    chosen, _ = image(sdpy, "folder", "--variant", "non_ema")
    assert not same(chosen, plain)
    for words in (
        ("convert", "folder", "other", "--variant", "non_ema", "--data", tiny_data),
        ("convert", "folder/unet", "unet.ot", "--variant", "non_ema"),
    ):
        assert sdpy(*words).code == 0
    assert same(image(sdpy, "other")[0], chosen)
    assert same(image(sdpy, "folder", "--unet-weights", "unet.ot")[0], chosen)
    done = sdpy("generate", "x", "--model", "folder", "--variant", "fp16")
    assert done.code == 2
    assert "folder has no weights of the variant 'fp16': use one of non_ema" in done.err
    done = sdpy("generate", "x", "--model", "sd15", "--variant", "fp16")
    assert done.code == 2
    assert "leave --variant out" in done.err
