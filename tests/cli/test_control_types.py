"""ControlNet-Union from the command line: of what kind its images are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdpy.checkpoints import write_checkpoint
from sdpy.errors import UsageError
from sdpy.models import (
    ControlNetConfig,
    ControlNetModel,
    ControlNetUnionConfig,
    ControlNetUnionModel,
)
from sdpy.pipelines.control_types import CONTROL_TYPES, read_control_type
from support.compare import randomise
from support.tiny_xl import TINY_XL, write_tiny_xl

UNION = ControlNetUnionConfig(
    TINY_XL.unet,
    conditioning_embedding_out_channels=(4, 8),
    num_trans_channel=16,
    num_proj_channel=16,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_tiny_xl(folder / "sdxl")
    write_checkpoint(
        folder / "union.safetensors", randomise(ControlNetUnionModel(UNION)).state_dict()
    )
    sizes = ControlNetConfig(TINY_XL.unet, conditioning_embedding_out_channels=(4, 8))
    write_checkpoint(folder / "net.safetensors", randomise(ControlNetModel(sizes)).state_dict())
    levels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(levels).save(folder / "map.png")
    Image.fromarray(levels[::-1]).save(folder / "other.png")
    return folder


@pytest.fixture
def paint(sdpy: Any, files: Path) -> Any:
    """Runs ``sdpy generate`` with the small SDXL, and words that may name the files."""

    def paint(*words: str, model: str = "sdxl") -> Any:
        spread = [files / word if (files / word).is_file() else word for word in words]
        sizes = ("--width", "48", "--height", "32", "--steps", "2")
        own = ("--model", files / "sdxl") if model == "sdxl" else ()
        return sdpy("generate", "x", *own, *sizes, *spread)

    return paint


def pixels(path: str = "sd_final.png") -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


ONE = ("--controlnet", "union.safetensors", "--control-image", "map.png")
NET = ("--controlnet", "net.safetensors", "--control-image", "map.png")


def test_the_type_counts(paint: Any) -> None:
    made = {}
    for name in ("depth", "softedge", "hed", "2"):
        result = paint(*ONE, "--control-type", name, "-o", f"{name}.png")
        assert result.code == 0, result.err
        made[name] = pixels(f"{name}.png")
    assert not np.array_equal(made["depth"], made["hed"])
    assert np.array_equal(made["softedge"], made["hed"])
    assert np.array_equal(made["2"], made["hed"])


def test_several_images_for_one_network(paint: Any, loaded: list[str]) -> None:
    types = ("--control-type", "depth", "--control-type", "canny")
    result = paint(*ONE, "--control-image", "other.png", *types)
    assert result.code == 0, result.err
    assert loaded.count("union.safetensors") == 1
    several = pixels()
    assert paint(*ONE, "--control-type", "depth", "-o", "one.png").code == 0
    assert not np.array_equal(pixels("one.png"), several)
    beside = paint(*ONE, *NET, "--control-type", "depth", "--control-type", "none", "-o", "x.png")
    assert beside.code == 0, beside.err
    assert not np.array_equal(pixels("one.png"), pixels("x.png"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ONE,
            "union.safetensors is a ControlNet-Union: say by --control-type of what kind its "
            "control image is, openpose, depth, hed, canny, normal or segment",
        ),
        (
            (*ONE, "--control-type", "tile"),
            "union.safetensors does not know the control type tile: use openpose, depth, hed,",
        ),
        (
            (*ONE, "--control-type", "dept"),
            "unknown --control-type 'dept': use one of openpose, depth, hed, canny, normal, "
            "segment, tile, repaint, or none",
        ),
        (
            (*NET, "--control-type", "depth"),
            "net.safetensors is no ControlNet-Union, and knows no control types: leave "
            "--control-type out, or give none for it",
        ),
        ((*ONE, "--control-type", "depth", "--control-type", "hed"), "is given 2 times for 1"),
    ],
)
def test_what_cannot_work_is_one_line(
    paint: Any, words: tuple[str, ...], says: str, loaded: list[str]
) -> None:
    result = paint(*words)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert says in result.err
    assert loaded == []


def test_another_model_is_named(paint: Any, loaded: list[str]) -> None:
    result = paint(*ONE, "--control-type", "depth", model="sd15")
    assert (result.code, result.err.count("\n")) == (3, 1)
    assert (
        "it is a ControlNet-Union for Stable Diffusion XL, and does not go with sd15" in result.err
    )
    assert loaded == []


def test_the_preprocessor_tells_the_type(paint: Any) -> None:
    pytest.importorskip("cv2")
    edges = ("--control-preprocessor", "canny")
    result = paint(*ONE, *edges)
    assert result.code == 0, result.err
    assert "union.safetensors is told of the control type canny" in result.err
    result = paint(*ONE, *edges, "--control-type", "canny", "-o", "given.png")
    assert "is told of" not in result.err
    assert np.array_equal(pixels(), pixels("given.png"))
    assert "is told of" not in paint(*NET, *edges, "-o", "net.png").err


def test_the_image_says_how_it_was_made(paint: Any, sdpy: Any, tiny_data: Path) -> None:
    types = ("--control-type", "midas", "--control-type", "none")
    result = paint(*ONE, *NET, *types, "-o", "it.png")
    assert result.code == 0, result.err
    found = json.loads(sdpy("info", "it.png", "--json").out)
    assert found["record"]["options"]["control-type"] == ["depth", "none"]
    with Image.open("it.png") as image:
        image.load()
        assert 'ControlNet 0: "union.safetensors:1 0-1 depth"' in image.text["parameters"]
        assert 'ControlNet 1: "net.safetensors:1 0-1"' in image.text["parameters"]
    result = sdpy("replay", "it.png", "--data", tiny_data)
    assert result.code == 0, result.err
    assert np.array_equal(pixels("it.replay.png"), pixels("it.png"))


def test_in_a_batch(sdpy: Any, files: Path) -> None:
    jobs = [
        {
            "prompt": "x",
            "controlnet": str(files / "union.safetensors"),
            "control_image": str(files / "map.png"),
            "control_type": name,
        }
        for name in ("depth", "hed", "softedge")
    ]
    Path("jobs.jsonl").write_text("\n".join(json.dumps(job) for job in jobs))
    options = ("--model", files / "sdxl", "--steps", "2", "--width", "48", "--height", "32")
    result = sdpy("batch", "jobs.jsonl", *options, "--seed", "1", "-o", "out/{index}.png")
    assert result.code == 0, result.err
    first, second, third = (pixels(str(path)) for path in sorted(Path("out").glob("*.png")))
    assert not np.array_equal(first, second)
    assert np.array_equal(second, third)


def test_names() -> None:
    for number, (name, others) in enumerate(CONTROL_TYPES.items()):
        for text in (name, *others, str(number), name.upper(), "/".join((name, *others))):
            assert read_control_type(text) == name
    assert read_control_type("none") is None
    with pytest.raises(UsageError, match="use one of openpose"):
        read_control_type("8")
