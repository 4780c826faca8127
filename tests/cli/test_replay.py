"""``sdpy info`` and ``sdpy replay``."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdpy.checkpoints import write_checkpoint
from sdpy.images.files import read_texts, save_image
from sdpy.images.metadata import ImageTexts
from sdpy.images.reading import load_image
from sdpy.metadata.record import ImageRecord

FAST = ("--steps", "2")
TEXT = (
    "a cat\nNegative prompt: dog\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Karras, "
    "CFG scale: 5, Seed: 3, Size: 40x48, Model hash: 0123456789, Clip skip: 2, "
    "Hires upscale: 2, Version: v1.10.1"
)


@pytest.fixture
def photo() -> Path:
    values = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(values).save("photo.png")
    Image.new("L", (48, 40), 255).save("mask.png")
    return Path("photo.png")


def lines_of(result: Any) -> list[str]:
    return [line.strip() for line in result.err.splitlines()]


def extras() -> tuple[str, ...]:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 16)}
    tensors[f"{name}.lora_up.weight"] = torch.eye(16)[:, :2]
    write_checkpoint("ink, Seed: 5.safetensors", tensors)
    write_checkpoint("fog.safetensors", {"emb_params": torch.ones(1, 32)})
    return ("--lora", "ink, Seed: 5.safetensors:0.3", "--embedding", "<fog>=fog.safetensors")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.png", ("generate", "a (cat:1.2)\nby <fog>", "-n", "dog", "--seed", "random")),
        (
            "b.webp",
            ("generate", "cat", "--scheduler", "dpm++-2m", "--sigmas", "ays", "--steps", "10"),
        ),
        (
            "c.png",
            ("generate", "cat", "--eta", "1", "--guidance-rescale", "0.7", "--width", "40")
            + ("--deepcache", "2", "--guidance-interval", "0.5,1", "--clip-skip", "2"),
        ),
        ("d.png", ("generate", "cat", "--plain-kernels", "--prediction", "sample")),
        ("e.jpg", ("img2img", "photo.png", "-p", "cat", "--strength", "0.6", "--height", "32")),
        ("f.png", ("inpaint", "photo.png", "mask.png", "-p", "cat", "--scheduler", "Euler a")),
    ],
)
def test_the_same_image_is_made_again(
    sdpy: Any, photo: Path, name: str, words: tuple[str, ...]
) -> None:
    assert sdpy(*words[:2], *FAST, *words[2:], *extras(), "-o", name).code == 0
    again = f"{name[0]}.replay{name[1:]}"
    result = sdpy("replay", name)
    assert (result.code, result.out) == (0, f"{again}\n")
    told = lines_of(result)
    assert told[-1] == "equal in every pixel"
    assert not [line for line in told if "differ" in line or "another" in line]
    first, second = (ImageRecord.from_json(read_texts(file)["sdpy"]) for file in (name, again))
    # It takes as many threads, for the sake of rounding, as were there.
    threads = {"threads": int(first.environment["threads"])}
    assert second == replace(first, options={**first.options, **threads})


def test_what_differs_is_told(sdpy: Any, tiny_data: Path, tmp_path: Path, photo: Path) -> None:
    assert sdpy("img2img", photo, "-p", "cat", *FAST, *extras(), "-o", "it.png").code == 0
    other = tmp_path / "other"
    shutil.copytree(tiny_data, other)
    vae = other / "vae.ot"
    before = hashlib.sha256(vae.read_bytes()).hexdigest()[:10]
    from sdpy.checkpoints import read_checkpoint

    tensors = {name: tensor * 1.01 for name, tensor in read_checkpoint(vae).tensors.items()}
    write_checkpoint(vae, tensors)
    after = hashlib.sha256(vae.read_bytes()).hexdigest()[:10]
    Image.new("RGB", (48, 40), "red").save(photo)
    text = read_texts("it.png")["sdpy"].replace(torch.__version__, "1.2.3")
    text = text.replace('"numerics":1', '"numerics":0').replace('"eta":', '"wobble":3,"eta":')
    save_image(load_image("it.png"), "it.png", ImageTexts("", text))
    result = sdpy("replay", "it.png", "--data", other, "--check")
    assert result.code == 1
    assert "1 of 1 images are not equal" in result.err
    told = lines_of(result)
    assert f"the VAE is another file: it was vae.ot with SHA-256 {before}, now it is vae.ot" in [
        line.removesuffix(f" with {after}") for line in told
    ]
    assert any(line.startswith("the image is another file: it was photo.png") for line in told)
    assert any(line.startswith("it cannot be the same: sdpy") for line in told)
    assert f"it may differ by rounding: torch was 1.2.3, now it is {torch.__version__}" in told
    assert "this version has no option --wobble, which was 3" in told
    assert any(line.startswith("differs in ") for line in told)
    assert "it.replay.png" not in os.listdir()


def test_a1111s_images_are_made_as_near_as_can_be(sdpy: Any, tiny_data: Path) -> None:
    save_image(Image.new("RGB", (40, 48)), "it.png", ImageTexts(TEXT))
    result = sdpy("replay", "it.png", "-o", "{name}-{seed}.png", "--json", "--data", tiny_data)
    assert result.code == 0
    told = json.loads(result.out)
    assert (told["path"], told["width"], told["height"]) == ("it-3.png", 40, 48)
    wanted = {"steps": 2, "scheduler": "dpm++-2m", "sigmas": "karras", "clip-skip": 2, "seed": 3}
    wanted |= {"guidance-scale": 5, "negative-prompt": "dog"}
    assert {name: told["record"]["options"][name] for name in wanted} == wanted
    lines = lines_of(result)
    assert any("cannot be the same: another program drew its noise (GPU)" in x for x in lines)
    assert "Hires upscale: 2 is left out" in lines
    assert any(line.startswith("the UNet is another file") for line in lines)
    assert any(line.startswith("differs in ") for line in lines)


def test_images_that_were_no_files_have_to_be_named(sdpy: Any, photo: Path) -> None:
    assert sdpy("img2img", photo, "-p", "cat", *FAST, "-o", "it.png").code == 0
    text = read_texts("it.png")["sdpy"].replace(',"image":"photo.png"', "")
    save_image(load_image("it.png"), "it.png", ImageTexts("", text))
    result = sdpy("replay", "it.png")
    assert result.code == 2
    assert "it.png: its image was no file: name one by --image" in result.err
    assert sdpy("replay", "it.png", "--image", photo, "--check").code == 0


def test_images_that_cannot_be_made_again(sdpy: Any, photo: Path, loaded: list[str]) -> None:
    result = sdpy("replay", photo)
    assert result.code == 2
    assert result.err == "sdpy: photo.png: it does not say how it was made\n"
    assert sdpy("replay", "nowhere.png").code == 4
    save_image(Image.new("RGB", (8, 8)), "it.png", ImageTexts(TEXT.replace("DPM++ 2M", "Magic")))
    result = sdpy("replay", "it.png")
    assert result.code == 2
    assert "it.png: unknown scheduler 'Magic'" in result.err
    save_image(Image.new("RGB", (8, 8)), "it.png", ImageTexts(TEXT))
    Path("it.replay.png").touch()
    assert sdpy("replay", "it.png", "--no-clobber").code == 2
    assert loaded == []


def test_info_says_it_to_people_and_programs(sdpy: Any, photo: Path) -> None:
    assert sdpy("generate", "a cat,\nred", "-n", "dog", *FAST, "-o", "it.webp").code == 0
    result = sdpy("info", "it.webp", photo)
    assert (result.code, result.err) == (0, "")
    lines = [line.strip() for line in result.out.splitlines()]
    assert lines[0].startswith("it.webp: made by sdpy")
    for line in (r"prompt: a cat,\nred", "negative prompt: dog", "Seed: 32", "Sampler: DDIM"):
        assert line in lines
    assert any(line.startswith("UNet: unet.ot, SHA-256 ") for line in lines)
    assert lines[-1] == "photo.png: says nothing"
    told = [json.loads(line) for line in sdpy("info", "--json", "it.webp", photo).out.splitlines()]
    assert told[0]["record"] == json.loads(read_texts("it.webp")["sdpy"])
    assert told[0]["parameters"]["facts"]["Seed"] == "32"
    assert told[1] == {"path": "photo.png", "program": None}


def test_info_gives_the_terminal_nothing_to_obey(sdpy: Any) -> None:
    text = "\x1b]0;title\x07cat\nSteps: 3, Sampler: \x1b[31mred, Seed: 1, Size: 8x8"
    save_image(Image.new("RGB", (8, 8)), "it.png", ImageTexts(text))
    out = sdpy("info", "it.png").out
    assert "\x1b" not in out and "\x07" not in out
    assert r"\x1b]0;title\x07cat" in out
