"""``sdpy inspect``, ``sdpy convert`` and ``--model PATH`` as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpy.checkpoints import read_checkpoint, write_checkpoint
from support.tiny import tiny_weights


def test_inspect_says_what_a_file_is(sdpy: Any, tiny_data: Path) -> None:
    done = sdpy("inspect", tiny_data / "unet.ot")
    assert done.code == 0
    assert "UNet" in done.out
    assert "ot" in done.out
    assert "141,140 parameters in 208 tensors, float32" in done.out
    done = sdpy("inspect", tiny_data / "unet.ot", "--json")
    found = json.loads(done.out)
    assert found["variant"] == "sd15"
    assert found["components"][0]["component"] == "unet"
    assert found["components"][0]["parameters"] == 141_140
    assert found["components"][0]["problems"] == {}
    assert found["size"] == (tiny_data / "unet.ot").stat().st_size


def test_inspect_names_what_is_missing_and_unexpected(sdpy: Any, tmp_path: Path) -> None:
    state = tiny_weights("vae")
    del state["quant_conv.bias"]
    write_checkpoint(tmp_path / "x.bin", {**state, "strange.weight": torch.ones(1)})
    done = sdpy("inspect", tmp_path / "x.bin")
    assert done.code == 0
    assert "1 missing: quant_conv.bias" in done.out
    assert "1 unexpected: strange.weight" in done.out


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.safetensors", b"<!DOCTYPE html><html>404</html>", "HTML page"),
        ("x.gguf", b"GGUF\x03\0\0\0" + bytes(100), "GGUF"),
        ("x.ckpt", b"", "is empty"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "convert", "generate"])
def test_what_is_no_weights_file_gets_one_line(
    sdpy: Any, tmp_path: Path, command: str, name: str, content: bytes, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    rest = {"inspect": (), "convert": ("x.ot",), "generate": ("--model", path)}[command]
    first = "a house" if command == "generate" else path
    done = sdpy(command, first, *rest)
    assert done.code == 3
    assert done.err.count("\n") == 1
    assert expected in done.err
    assert not Path("x.ot").exists()


def test_a_safetensors_file_cut_short_says_so(sdpy: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, tiny_weights("vae"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    done = sdpy("inspect", path)
    assert done.code == 3
    assert f"it ends after {len(whole) // 2} of {len(whole)} bytes" in done.err


def test_convert_and_generate_from_each_layout(sdpy: Any, tiny_data: Path) -> None:
    """The same image from separate files, a folder and a single file."""
    assert sdpy("convert", tiny_data, "folder", "--data", tiny_data).code == 0
    assert sdpy("convert", "folder", "one.ckpt").code == 0
    images = []
    for model in ("sd15", "folder", "one.ckpt"):
        done = sdpy(
            *("generate", "lighthouse at dark", "--model", model, "--steps", 2),
            *("--width", 16, "--height", 16, "-o", f"{Path(model).stem}.png"),
        )
        assert done.code == 0, done.err
        from PIL import Image

        with Image.open(f"{Path(model).stem}.png") as image:
            images.append(image.tobytes())
    assert images[0] == images[1] == images[2]


def test_convert_replaces_only_if_told(sdpy: Any, tiny_data: Path) -> None:
    Path("vae.safetensors").write_bytes(b"mine")
    done = sdpy("convert", tiny_data / "vae.ot", "vae.safetensors")
    assert done.code == 5
    assert "--force replaces it" in done.err
    assert Path("vae.safetensors").read_bytes() == b"mine"
    done = sdpy("convert", tiny_data / "vae.ot", "vae.safetensors", "--force", "--dtype", "fp16")
    assert done.code == 0
    assert done.out == "vae.safetensors\n"
    tensors = read_checkpoint("vae.safetensors").tensors
    expected = tiny_weights("vae")
    assert all(torch.equal(tensors[name], expected[name].half()) for name in expected)


def test_convert_refuses_what_it_does_not_know(sdpy: Any, tiny_data: Path) -> None:
    for options, expected in (
        (("--dtype", "int4"), "use one of fp32, fp16, bf16"),
        (("--layout", "new"), "use one of diffusers, original, ot"),
        (("--part", "soul"), "use one of text_encoder, text_encoder_2, unet, vae"),
        (("--prediction", "noise"), "use one of epsilon"),
    ):
        done = sdpy("convert", tiny_data / "vae.ot", "x.safetensors", *options)
        assert done.code == 2
        assert expected in done.err
    done = sdpy("convert", tiny_data, "all.ot")
    assert done.code == 2
    assert "--part" in done.err
    done = sdpy("convert", tiny_data / "vae.ot", "x.npz", "--dtype", "bf16")
    assert done.code == 3
    assert "this format holds" in done.err
    assert not any(Path().iterdir())
