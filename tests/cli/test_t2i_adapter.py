"""T2I-Adapters from the command line, given as ControlNets are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdpy.checkpoints import write_checkpoint
from sdpy.models import ControlNetConfig, ControlNetModel, T2IAdapter, T2IAdapterConfig
from support.compare import randomise
from support.tiny_xl import TINY_XL, write_tiny_xl

XL = T2IAdapterConfig(channels=(16, 24, 32, 32), downscale_factor=4, adapter_type="full_adapter_xl")
PUBLISHED = T2IAdapterConfig(channels=(16, 24, 32, 32))
PUBLISHED_XL = replace(XL, downscale_factor=16)
LIGHT = T2IAdapterConfig(channels=(16, 24, 32), num_res_blocks=4, adapter_type="light_adapter")
ADAPTERS = {
    "xl": XL,
    "grey": replace(XL, in_channels=1),
    "published": PUBLISHED,
    "published-xl": PUBLISHED_XL,
    "light": LIGHT,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_tiny_xl(folder / "sdxl")
    for name, config in ADAPTERS.items():
        path = folder / f"{name}.safetensors"
        write_checkpoint(path, randomise(T2IAdapter(config)).state_dict())
    sizes = ControlNetConfig(TINY_XL.unet, conditioning_embedding_out_channels=(4, 8))
    write_checkpoint(folder / "net.safetensors", randomise(ControlNetModel(sizes)).state_dict())
    levels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(levels).save(folder / "map.png")
    Image.fromarray(levels).convert("L").convert("RGB").save(folder / "grey.png")
    return folder


@pytest.fixture
def paint(sdpy: Any, files: Path) -> Any:
    """Runs ``sdpy generate`` with the small SDXL, and words that may name the files."""

    def paint(*words: str, size: tuple[str, str] = ("48", "32")) -> Any:
        spread = [files / word if (files / word).is_file() else word for word in words]
        sizes = ("--width", size[0], "--height", size[1])
        model = ("--model", files / "sdxl", "--steps", "2")
        return sdpy("generate", "x", *model, *sizes, *spread)

    return paint


def pixels(path: str = "sd_final.png") -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


ONE = ("--controlnet", "xl.safetensors", "--control-image", "map.png")
GREY = ("--controlnet", "grey.safetensors", "--control-image")
NET = ("--controlnet", "net.safetensors", "--control-image", "map.png")


def test_an_adapter_changes_the_image(paint: Any, loaded: list[str]) -> None:
    assert paint("-o", "free.png").code == 0
    assert "xl.safetensors" not in loaded
    assert paint(*ONE).code == 0
    assert loaded.index("xl.safetensors") < len(loaded) - 1
    assert not np.array_equal(pixels(), pixels("free.png"))
    assert paint(*ONE, "--control-scale", "0", "-o", "none.png").code == 0
    assert np.array_equal(pixels("none.png"), pixels("free.png"))
    assert paint(*ONE, *NET, "-o", "both.png").code == 0
    assert paint(*NET, "-o", "net.png").code == 0
    assert not np.array_equal(pixels("both.png"), pixels("net.png"))
    assert not np.array_equal(pixels("both.png"), pixels())


def test_with_less_memory(paint: Any) -> None:
    assert paint(*ONE, "-o", "usual.png").code == 0
    assert paint(*ONE, "--memory", "low").code == 0
    assert np.abs(pixels().astype(int) - pixels("usual.png")).max() <= 1


def test_sides_that_do_not_divide(paint: Any) -> None:
    result = paint(*ONE, size=("46", "34"))
    assert result.code == 0, result.err
    assert pixels().shape == (34, 46, 3)


def test_colours_that_are_lost_are_told(paint: Any) -> None:
    result = paint(*GREY, "map.png", "-o", "a.png")
    assert result.code == 0
    assert "grey.safetensors is shown grey images: only the brightness" in result.err
    result = paint(*GREY, "grey.png", "-o", "b.png")
    assert "brightness" not in result.err
    assert np.abs(pixels("a.png").astype(int) - pixels("b.png")).mean() < 1  # of 255
    assert paint("-o", "free.png").code == 0
    assert np.abs(pixels("a.png").astype(int) - pixels("free.png")).mean() > 10


def test_the_image_says_how_it_was_made(paint: Any, sdpy: Any, tiny_data: Path) -> None:
    words = ("--control-scale", "0.7", "--control-end", "0.5")
    assert paint(*ONE, *words, "-o", "it.png").code == 0
    found = json.loads(sdpy("info", "it.png", "--json").out)
    assert "xl.safetensors:0.7 0-0.5" in json.dumps(found)
    roles = [file["role"] for file in found["record"]["files"]]
    assert "t2i_adapter" in roles and "controlnet" not in roles
    result = sdpy("replay", "it.png", "--data", tiny_data)
    assert result.code == 0, result.err
    assert np.array_equal(pixels("it.replay.png"), pixels("it.png"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "published",
            "it is a T2I-Adapter for Stable Diffusion 1.x, and sdxl takes those for Stable "
            "Diffusion XL",
        ),
        ("light", "it is a T2I-Adapter for Stable Diffusion 1.x, and no such goes with sdxl"),
    ],
)
def test_an_adapter_for_another_model_names_both(
    paint: Any, name: str, says: str, loaded: list[str]
) -> None:
    words = ("--controlnet", f"{name}.safetensors", "--control-image", "map.png")
    result = paint(*words)
    assert (result.code, result.err.count("\n")) == (3, 1)
    assert f"{name}.safetensors: {says}" in result.err
    assert loaded == []


def test_an_adapter_beside_which_something_else_is_said(
    sdpy: Any, files: Path, tmp_path: Path
) -> None:
    weights = randomise(T2IAdapter(XL)).state_dict()
    write_checkpoint(tmp_path / "x.safetensors", weights)
    told = {"_class_name": "T2IAdapter", "downscale_factor": 8, "adapter_type": "full_adapter_xl"}
    (tmp_path / "config.json").write_text(json.dumps(told))
    result = sdpy(
        *("generate", "x", "--model", files / "sdxl", "--controlnet", tmp_path / "x.safetensors"),
        *("--control-image", files / "map.png"),
    )
    assert (result.code, result.err.count("\n")) == (3, 1)
    assert "its config.json says 'downscale_factor' is 8" in result.err


def test_in_a_batch(sdpy: Any, files: Path) -> None:
    jobs = [
        {
            "prompt": "x",
            "controlnet": str(files / "xl.safetensors"),
            "control_image": str(files / name),
            "control_scale": scale,
        }
        for name in ("map.png", "grey.png")
        for scale in (0.5, 1.0)
    ]
    Path("jobs.jsonl").write_text("\n".join(json.dumps(job) for job in jobs))
    options = ("--model", files / "sdxl", "--steps", "2", "--width", "48", "--height", "32")
    result = sdpy("batch", "jobs.jsonl", *options, "-o", "out/{index}.png")
    assert result.code == 0, result.err
    made = [pixels(str(path)) for path in sorted(Path("out").glob("*.png"))]
    assert len(made) == 4
    assert all(not np.array_equal(a, b) for i, a in enumerate(made) for b in made[:i])
