"""Names, what is replaced, seeds that are drawn, and pipes."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdpy.images.files import read_texts
from sdpy.metadata.record import ImageRecord

FAST = ("--steps", "1", "--guidance-scale", "1")


def pixels(path: str | Path | io.BytesIO) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def photo() -> Path:
    values = np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(values).save("photo.png")
    return Path("photo.png")


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def test_a_plain_name_is_replaced_with_a_word(sdpy: Any) -> None:
    assert "replacing" not in sdpy("generate", "x", *FAST).err
    old = Path("sd_final.png").read_bytes()
    result = sdpy("generate", "x", *FAST, "--seed", "5")
    assert (result.code, result.out) == (0, "sd_final.png\n")
    assert "replacing sd_final.png" in result.err.splitlines()
    assert Path("sd_final.png").read_bytes() != old


def test_no_clobber_refuses_before_any_work(sdpy: Any, loaded: list[str]) -> None:
    Path("sd_final.2.png").write_bytes(b"old")
    result = sdpy("generate", "x", *FAST, "--num-samples", "3", "--no-clobber")
    assert (result.code, result.out, loaded) == (2, "", [])
    assert "sd_final.2.png exists" in result.err
    assert os.listdir() == ["sd_final.2.png"]


def test_overwrite_and_no_clobber_contradict_each_other(sdpy: Any) -> None:
    result = sdpy("generate", "x", "--overwrite", "--no-clobber")
    assert result.code == 2
    assert "contradict" in result.err


def test_names_have_fields(sdpy: Any, tiny_data: Path) -> None:
    name = "out/{n:03d}_{seed}_{slug}_{width}x{height}_{guidance}_{sampler}_{model}.png"
    words = ("generate", "A cat, dark", *FAST, "--num-samples", "2", "--scheduler", "euler_a")
    result = sdpy(*words, "-o", name)
    paths = [f"out/00{k}_{31 + k}_a-cat-dark_32x32_1_Euler a_sd15.png" for k in (1, 2)]
    assert (result.code, result.out.splitlines()) == (0, paths)
    again = sdpy(*words, "-o", name).out.splitlines()
    assert [path[4:11] for path in again] == ["003_32_", "004_33_"]


def test_fields_say_what_was_left_to_the_image(sdpy: Any, photo: Path) -> None:
    name = "{width}x{height}-{strength}-{timestep_spacing}-[seed].png"
    result = sdpy("img2img", photo, *FAST, "--strength", "1", "-o", name)
    assert (result.code, result.out) == (0, "48x40-1-original-32.png\n")


def test_names_with_fields_replace_nothing_unasked(sdpy: Any, loaded: list[str]) -> None:
    Path("7.png").write_bytes(b"old")
    words = ("generate", "x", *FAST, "--seed", "7", "-o", "{seed}.png")
    result = sdpy(*words)
    assert (result.code, loaded) == (2, [])
    assert "7.png exists" in result.err and "--overwrite" in result.err
    assert Path("7.png").read_bytes() == b"old"
    assert sdpy(*words, "--overwrite").code == 0
    assert pixels("7.png").shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["{sed}.png", "{seed", "{seed}", "{seed}.gif", "[styles].png"])
def test_names_that_cannot_be(sdpy: Any, loaded: list[str], name: str) -> None:
    result = sdpy("generate", "x", *FAST, "-o", name)
    assert (result.code, result.out, loaded) == (2, "", [])
    assert result.err.count("\n") == 1
    assert os.listdir() == []


@pytest.mark.parametrize("words", [("--seed", "random"), ("--seed", "-1"), ("--seed=Random",)])
def test_a_seed_is_drawn_and_told(sdpy: Any, words: tuple[str, ...]) -> None:
    seeds = set()
    for _ in range(2):
        result = sdpy("generate", "x", *FAST, *words, "-o", "{seed}.png")
        assert result.code == 0
        found = re.search(r"^seed: (\d+)$", result.err, re.MULTILINE)
        assert found is not None
        seeds.add(int(found[1]))
        assert result.out == f"{found[1]}.png\n"
        record = ImageRecord.from_json(read_texts(result.out.strip())["sdpy"])
        assert record.seed == int(found[1])
        old = pixels(result.out.strip())
        assert sdpy("generate", "x", *FAST, "--seed", found[1], "-o", "again.png").code == 0
        assert np.array_equal(pixels("again.png"), old)
    assert len(seeds) == 2
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_seeds_of_several_are_told(sdpy: Any) -> None:
    result = sdpy("generate", "x", *FAST, "--num-samples", "3", "--seed", "7")
    assert "seeds: 7 to 9" in result.err.splitlines()


@pytest.mark.parametrize("seed", ["-2", "1.5", "x", "", str(2**63), "٣"])
def test_seeds_that_cannot_be(sdpy: Any, seed: str, loaded: list[str]) -> None:
    result = sdpy("generate", "x", f"--seed={seed}")
    assert (result.code, loaded) == (2, [])
    assert f"--seed {seed}: use random" in result.err


def test_without_metadata_a_file_says_nothing(sdpy: Any) -> None:
    for name in ("a.png", "a.jpg", "a.webp"):
        assert sdpy("generate", "secret", *FAST, "--no-metadata", "-o", name).code == 0
        assert read_texts(name).keys().isdisjoint({"parameters", "sdpy"})
        assert b"secret" not in Path(name).read_bytes()
    assert sdpy("generate", "secret", *FAST, "-o", "b.png").code == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_json_is_a_line_for_each_image(sdpy: Any, photo: Path) -> None:
    result = sdpy("img2img", photo, "-p", "nuit é", *FAST, "--json", "--num-samples", "2", "-q")
    assert (result.code, result.err) == (0, "")
    told = [json.loads(line) for line in result.out.splitlines()]
    assert [(one["path"], one["seed"]) for one in told] == [
        ("sd_final.1.png", 32),
        ("sd_final.2.png", 33),
    ]
    assert (told[0]["width"], told[0]["height"]) == (48, 40)
    assert told[0]["record"] == json.loads(read_texts("sd_final.1.png")["sdpy"])
    assert told[0]["record"]["prompt"] == "nuit é"


def test_a_prompt_from_standard_input(sdpy: Any, stdin: Any, photo: Path) -> None:
    stdin("a cat,\nat dusk 🏰\n".encode())
    assert sdpy("generate", "-", *FAST).code == 0
    assert read_texts("sd_final.png")["parameters"].startswith("a cat,\nat dusk 🏰\nSteps")
    stdin(b"a dog")
    assert sdpy("img2img", photo, "--prompt", "-", *FAST).code == 0
    assert read_texts("sd_final.png")["parameters"].startswith("a dog\nSteps")
    stdin(b"\xff")
    result = sdpy("generate", "-", *FAST)
    assert result.code == 2
    assert "not UTF-8" in result.err


def test_images_from_standard_input(sdpy: Any, stdin: Any, photo: Path) -> None:
    assert sdpy("img2img", photo, *FAST, "-o", "file.png").code == 0
    stdin(photo.read_bytes())
    assert sdpy("img2img", "-", *FAST, "-o", "pipe.png").code == 0
    assert np.array_equal(pixels("file.png"), pixels("pipe.png"))
    mask = Image.new("LA", (48, 40), (255, 0))
    mask.paste((255, 255), (8, 8, 40, 32))
    mask.save("mask.png")
    assert sdpy("inpaint", photo, "mask.png", *FAST, "-o", "file.png").code == 0
    stdin(Path("mask.png").read_bytes())
    assert sdpy("inpaint", photo, "-", *FAST, "-o", "pipe.png").code == 0
    assert np.array_equal(pixels("file.png"), pixels("pipe.png"))
    stdin(b"no image")
    result = sdpy("img2img", "-", *FAST)
    assert result.code == 4
    assert "standard input" in result.err
    result = sdpy("inpaint", "-", "-", *FAST)
    assert result.code == 2
    assert "only one of FILE and MASK" in result.err


@pytest.mark.parametrize(
    ("words", "says"),
    [(("--num-samples", "2"), "one image"), (("--json",), "both write to standard output")],
)
def test_standard_output_takes_one_thing(sdpy: Any, words: tuple[str, ...], says: str) -> None:
    result = sdpy("generate", "x", *FAST, "-o", "-", *words)
    assert (result.code, result.out) == (2, "")
    assert says in result.err
