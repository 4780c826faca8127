"""The approximations from the command line: their flags, what they refuse, what they leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdpy import __version__

STEPS = ("--steps", "4", "-q")


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def text_of(path: str) -> str:
    with Image.open(path) as image:
        image.load()
        return image.text["parameters"]


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (("--deepcache", "2"), "DeepCache: 2 branch 0"),
        (("--deepcache", "2", "--deepcache-branch", "1"), "DeepCache: 2 branch 1"),
        (("--token-merging", "0.5"), "Token merging ratio: 0.5"),
        (("--guidance-interval", "0.25,1"), "Guidance interval: 0.25-1"),
    ],
)
def test_each_changes_the_image_and_is_told_in_it(
    sdpy: Any, options: tuple[str, ...], fact: str
) -> None:
    assert sdpy("generate", "x", *STEPS, "-o", "exact.png").code == 0
    assert sdpy("generate", "x", *STEPS, *options).code == 0
    assert not np.array_equal(pixels("sd_final.png"), pixels("exact.png"))
    assert text_of("sd_final.png").endswith(f"Eta: 0, {fact}, Version: sdpy {__version__}")
    assert text_of("exact.png").endswith(f"Eta: 0, Version: sdpy {__version__}")


@pytest.mark.parametrize(
    "options",
    [("--deepcache", "1"), ("--token-merging", "0"), ("--guidance-interval", "0,1")],
)
def test_the_exact_ends_of_the_ranges(sdpy: Any, options: tuple[str, ...]) -> None:
    assert sdpy("generate", "x", *STEPS, "-o", "exact.png").code == 0
    assert sdpy("generate", "x", *STEPS, *options).code == 0
    assert np.array_equal(pixels("sd_final.png"), pixels("exact.png"))


def test_all_of_them_in_every_command(sdpy: Any) -> None:
    Image.effect_noise((40, 40), 60).convert("RGB").save("image.png")
    Image.new("L", (40, 40), 255).save("mask.png")
    options = ("--deepcache", "2", "--token-merging", "0.5", "--guidance_interval", "0.25,0.75")
    for command, strength in (
        (("generate", "x"), ""),
        (("img2img", "image.png"), "Denoising strength: 0.8, "),
        (("inpaint", "image.png", "mask.png"), "Denoising strength: 1, "),
    ):
        assert sdpy(*command, *STEPS, *options).code == 0
        facts = "DeepCache: 2 branch 0, Token merging ratio: 0.5"
        facts = f"Guidance interval: 0.25-0.75, {strength}{facts}"
        assert f", {facts}, Version" in text_of("sd_final.png")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--deepcache", "0"), "--deepcache"),
        (("--deepcache", "2", "--deepcache-branch", "3"), "branch 3: this UNet has 0 to 2"),
        (("--deepcache-branch", "1"), "says nothing without --deepcache"),
        (("--token-merging", "0.8"), "--token-merging"),
        (("--guidance-interval", "0.5"), "two numbers with a comma"),
        (("--guidance-interval", "0,0.5,1"), "two numbers with a comma"),
        (("--guidance-interval", "a,b"), "two numbers with a comma"),
        (("--guidance-interval", "0.8,0.2"), "from 0.8 to 0.2 of the steps"),
    ],
)
def test_what_cannot_work_is_one_line(
    sdpy: Any, options: tuple[str, ...], says: str, loaded: list[str]
) -> None:
    result = sdpy("generate", "x", *STEPS, *options)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert says in result.err
    assert loaded == []


def test_they_have_a_panel_in_the_help(sdpy: Any) -> None:
    panel = sdpy("generate", "--help").out.split("Faster, approximately")[1].split("╰")[0]
    for option in ("--deepcache", "--deepcache-branch", "--token-merging", "--guidance-interval"):
        assert option in panel
