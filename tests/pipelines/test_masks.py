"""Inpainting as people ask for it: soft masks, the masked part alone, colours of a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

import sdpy
from sdpy.errors import UsageError
from sdpy.zoo.variants import VARIANTS
from support.tiny import TINY, TINY_INPAINT

FAST: dict[str, Any] = {"steps": 2}


@pytest.fixture
def model(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> sdpy.Pipeline:
    monkeypatch.setitem(VARIANTS, "sd15", TINY)
    monkeypatch.setitem(VARIANTS, "sd15-inpaint", TINY_INPAINT)
    return sdpy.load("sd15", data=tiny_data)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def test_grey_in_a_mask_is_the_share_that_is_repainted(model: sdpy.Pipeline) -> None:
    image, levels = noise(32, 32), np.full((32, 32), 255, np.uint8)
    everything = pixels(model.inpaint(image, Image.fromarray(levels), "x", **FAST))
    levels[:, :16] = 100
    levels[:8] = 0
    made = pixels(model.inpaint(image, Image.fromarray(levels), "x", **FAST))
    before = pixels(image)
    assert np.array_equal(made[:8], before[:8])
    half = before + (everything - before) * 100 / 255
    # The upper rows are not repainted now, of which a few pixels below know.
    assert np.abs(made[20:, :16] - half[20:, :16]).mean() < 25
    assert np.abs(made[20:, 16:] - everything[20:, 16:]).mean() < 60


def test_the_masked_part_alone_is_painted_larger_and_put_back(model: sdpy.Pipeline) -> None:
    image, levels = noise(200, 150), np.zeros((150, 200), np.uint8)
    levels[60:70, 90:100] = 255
    seen: list[tuple[int, int]] = []
    made = model.inpaint(
        image,
        Image.fromarray(levels),
        "x",
        only_masked=True,
        mask_padding=3,
        on_progress=lambda event: seen.append(type(event).__name__),  # type: ignore[arg-type]
        **FAST,
    )
    assert made.size == (200, 150)
    changed = (pixels(made) != pixels(image)).any(axis=2)
    assert changed[levels == 255].mean() > 0.9 and not changed[levels == 0].any()
    assert "Inpaint area: Only masked, Masked area padding: 3" in made.parameters
    sized = model.inpaint(
        image, Image.fromarray(levels), "x", only_masked=True, width=48, height=32, **FAST
    )
    assert sized.size == (200, 150)


def test_doubts_about_a_mask_are_told(model: sdpy.Pipeline) -> None:
    image = noise(32, 32)
    texts = [
        event.text
        for event in model.stream("x", image=image, mask=noise(32, 32), mask_padding=8, **FAST)
        if isinstance(event, sdpy.Notice)
    ]
    assert any("has colours" in text for text in texts)
    assert "--mask-padding changes nothing without --only-masked" in texts


def test_options_of_a_mask_need_one(model: sdpy.Pipeline) -> None:
    with pytest.raises(UsageError, match="need a mask"):
        model.img2img(noise(32, 32), "x", invert_mask=True, **FAST)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_pixels_that_are_kept_keep_their_profile(
    model: sdpy.Pipeline, tmp_path: Path, suffix: str
) -> None:
    from sdpy.images.files import save_image

    standard = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Another curve: the same tag with a gamma of 1.0 in it.
    place = standard.index(b"para", 132)
    profile = standard[: place + 12] + b"\0\1\0\0" + standard[place + 16 :]
    profile = profile[: place + 8] + b"\0\0" + profile[place + 10 :]
    image = noise(32, 32)
    image.info["icc_profile"] = profile
    levels = np.zeros((32, 32), np.uint8)
    levels[:, 16:] = 255
    made = model.inpaint(image, Image.fromarray(levels), "x", **FAST)
    assert np.array_equal(pixels(made)[:, :16], pixels(image)[:, :16])
    for write in (lambda path: save_image(made, path, made.texts), made.save):
        write(tmp_path / f"a{suffix}")
        with Image.open(tmp_path / f"a{suffix}") as saved:
            assert saved.info["icc_profile"] == profile
    plain = model.img2img(image, "x", **FAST)
    assert "icc_profile" not in plain.info
