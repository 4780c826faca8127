"""What images look like while they are made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

THREE = ("--steps", "3")


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++-2m", "lcm"])
def test_each_step_is_a_file(sdpy: Any, scheduler: str) -> None:
    words = ("generate", "x", *THREE, "--scheduler", scheduler, "--num-samples", "2")
    assert sdpy(*words, "-o", "plain.png").code == 0
    result = sdpy(*words, "--step-images", "-o", "a.png")
    names = [f"a.{k}.step-{step:02d}.png" for step in (1, 2) for k in (1, 2)]
    assert (result.code, result.out.split()) == (0, [*names, "a.1.png", "a.2.png"])
    # Looking at it changes nothing, and the last but one is on the way to the last.
    assert np.array_equal(pixels("a.1.png"), pixels("plain.1.png"))
    first, second, last = (pixels(f"a.1{end}.png") for end in (".step-01", ".step-02", ""))
    assert np.abs(first - second).max() > 1
    if scheduler != "lcm":
        assert np.abs(second - last).mean() <= np.abs(first - last).mean()


def test_every_second_step_and_an_animation(sdpy: Any) -> None:
    words = ("generate", "x", "--steps", "7", "--step-interval", "2")
    result = sdpy(*words, "--intermediary_images", "--step-animation")
    steps = [f"sd_final.step-{k:02d}.png" for k in (2, 4, 6)]
    assert result.code == 0
    assert result.out.split() == [*steps, "sd_final.steps.webp", "sd_final.png"]
    with Image.open("sd_final.steps.webp") as animation:
        assert (animation.n_frames, animation.size) == (4, (32, 32))
        animation.seek(3)
        shown = np.asarray(animation.convert("RGB")).astype(int)
    others = (pixels("sd_final.png"), pixels("sd_final.step-02.png"))
    # It is lossy, above all in its colours.
    likeness = np.corrcoef([image.mean(axis=2).ravel() for image in (shown, *others)])[0]
    assert likeness[1] > 0.85 and likeness[1] > likeness[2]


def test_steps_of_an_inpainted_image_keep_the_rest(sdpy: Any) -> None:
    Image.effect_noise((40, 36), 60).convert("RGB").save("photo.png")
    mask = Image.new("L", (40, 36))
    mask.paste(255, (0, 0, 16, 36))
    mask.save("mask.png")
    assert sdpy("inpaint", "photo.png", "mask.png", *THREE, "--step-images").code == 0
    step = pixels("sd_final.step-01.png")
    assert np.array_equal(step[:, 16:], pixels("photo.png")[:, 16:])
    assert not np.array_equal(step[:, :16], pixels("sd_final.png")[:, :16])


def test_no_step_is_replaced_that_must_stay(sdpy: Any, loaded: list[str]) -> None:
    Path("a.step-01.png").touch()
    result = sdpy("generate", "x", *THREE, "--step-images", "--no-clobber", "-o", "a.png")
    assert (result.code, loaded, os.listdir()) == (2, [], ["a.step-01.png"])
    assert "a.step-01.png exists" in result.err
    assert sdpy("generate", "x", "--step-images", "-o", "-").code == 2


def test_the_steps_of_an_image_that_is_there(sdpy: Any) -> None:
    assert sdpy("generate", "x", *THREE, "-o", "a.png").code == 0
    assert sdpy("replay", "a.png", "--check", "--step-animation").out == ""
    result = sdpy("replay", "a.png", "--step-images", "--step-animation")
    steps = [f"a.replay.step-0{k}.png" for k in (1, 2)]
    assert (result.code, result.out.split()) == (0, [*steps, "a.replay.steps.webp", "a.replay.png"])
    assert sorted(os.listdir()) == sorted(["a.png", *result.out.split()])
    # What is there in the place of one of them stays where a name must not be replaced.
    refused = sdpy("replay", "a.png", "--step-animation", "-o", "{name}.replay.png")
    assert refused.code == 2 and "exists" in refused.err
