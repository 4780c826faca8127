"""Colour profiles, large images, and kinds that need another package."""

from __future__ import annotations

import io
import sys
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdpy.errors import ImageError
from sdpy.images import reading
from sdpy.images.frame import Frame
from sdpy.images.profiles import from_srgb, to_srgb
from sdpy.images.reading import load_image, open_input_image, size_of, to_input_image

RGB_NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@cache  # a profile holds the second in which it was made
def wide_gamut() -> bytes:
    """A profile with sRGB's curve and other primaries: its red and green change places."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {}
    for i in range(int.from_bytes(data[128:132], "big")):
        entry = 132 + 12 * i
        places[bytes(data[entry : entry + 4])] = entry
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    one, other = data[red + 4 : red + 12], data[green + 4 : green + 12]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = other, one
    return bytes(data)


def test_colours_of_another_profile_become_srgb(tmp_path: Path) -> None:
    image = Image.fromarray(RGB_NOISE)
    image.save(tmp_path / "a.png", icc_profile=wide_gamut())
    opened = open_input_image(tmp_path / "a.png")
    swapped = RGB_NOISE[..., [1, 0, 2]].astype(int)
    assert np.abs(np.asarray(opened.image, int) - swapped).max() <= 2
    assert opened.own is not None and np.array_equal(np.asarray(opened.own), RGB_NOISE)
    assert opened.profile == wide_gamut()
    back = np.asarray(from_srgb(opened.image, wide_gamut()), int)
    assert np.abs(back - RGB_NOISE).max() <= 2
    with Image.open(tmp_path / "a.png") as file:
        assert np.array_equal(np.asarray(to_input_image(file).image), np.asarray(opened.image))


def test_an_srgb_profile_changes_no_bit(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(RGB_NOISE).save(tmp_path / "a.png", icc_profile=profile)
    opened = open_input_image(tmp_path / "a.png")
    assert np.array_equal(np.asarray(opened.image), RGB_NOISE)
    assert opened.own is None and opened.profile is None


@pytest.mark.parametrize("profile", [b"x", b"\0" * 4000, wide_gamut()[:300]])
def test_a_broken_profile_is_none(profile: bytes) -> None:
    image = Image.fromarray(RGB_NOISE)
    converted, changed = to_srgb(image, profile)
    assert not changed and np.array_equal(np.asarray(converted), RGB_NOISE)
    grey = Image.new("L", (4, 4), 100)
    assert to_srgb(grey, wide_gamut())[0].getpixel((0, 0)) == (100, 100, 100)


def test_transparency_and_turning_come_after_the_profile(tmp_path: Path) -> None:
    rgba = np.dstack([RGB_NOISE, np.full((40, 60), 255, np.uint8)])
    rgba[:, 30:, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=wide_gamut(), exif=exif)
    opened = open_input_image(tmp_path / "a.png")
    seen = np.asarray(opened.image, int)[::-1, ::-1]
    assert (seen[:, 30:] == 255).all()
    assert np.abs(seen[:, :30] - RGB_NOISE[:, :30, [1, 0, 2]]).max() <= 2
    assert opened.own is not None and opened.alpha is not None
    assert np.array_equal(np.asarray(opened.own)[::-1, ::-1][:, :30], RGB_NOISE[:, :30])
    assert np.array_equal(np.asarray(opened.alpha)[::-1, ::-1], rgba[..., 3])


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_upright_size_is_known_without_decoding(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB_NOISE).save(tmp_path / "a.png", exif=exif)
    size = load_image(tmp_path / "a.png").size
    assert size_of(tmp_path / "a.png") == size
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    assert size_of(tmp_path / "cut.png") in (size, (60, 40))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA", "CMYK"])
def test_a_large_image_is_reduced_on_the_way(monkeypatch: Any, mode: str) -> None:
    """What comes out is near to scaling the whole."""
    monkeypatch.setattr(reading, "LARGE", 10_000)
    y, x = np.mgrid[0:301, 0:450]
    smooth = np.stack([x // 2, y * 5 // 6, 255 - x // 2], axis=2).astype(np.uint8)
    image = Image.fromarray(smooth).convert(mode)
    least = (45, 30)
    reduced = to_input_image(image, least=least)
    assert reduced.image.size[0] <= 4 * least[0] and reduced.image.size[0] >= 2 * least[0]
    assert (reduced.alpha is not None) == (mode in ("RGBA", "LA"))
    lanczos = Image.Resampling.LANCZOS
    small = np.asarray(reduced.image.resize(least, lanczos), int)
    expected = np.asarray(to_input_image(image).image.resize(least, lanczos), int)
    assert np.abs(small - expected).max() <= (24 if mode in ("1", "P") else 4)


def test_a_large_photograph_is_decoded_small(tmp_path: Path, monkeypatch: Any) -> None:
    Image.fromarray(RGB_NOISE).resize((1200, 800)).save(tmp_path / "a.jpg", quality=90)
    whole = np.asarray(load_image(tmp_path / "a.jpg").resize((90, 60)), int)
    monkeypatch.setattr(reading, "LARGE", 10_000)
    opened = open_input_image(tmp_path / "a.jpg", least=(90, 60))
    assert opened.image.size == (300, 200)
    assert np.abs(np.asarray(opened.image.resize((90, 60)), int) - whole).mean() < 8


def test_a_size_that_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="becomes 8192x16384000: both sides may be at most 8192"):
        Frame.fit((10, 20000), width=8192)
    with pytest.raises(ImageError, match="at most 8192"):
        Frame.fit((9000, 600))
    tall = np.repeat(np.random.default_rng(0).integers(0, 256, (20000, 1, 3), np.uint8), 10, 1)
    frame = Frame.fit((10, 20000), width=512, height=512)
    assert frame.scaled == (512, 1024000)
    tracemalloc.start()
    made = frame.apply(Image.fromarray(tall))
    assert made.size == (512, 512) and tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    middle = np.asarray(made, int)[256, 100]
    assert np.abs(middle - tall[10000, 0]).max() < 80


# --- kinds that need another package -----------------------------------------------------------


@pytest.mark.parametrize(
    ("brand", "kind", "package"),
    [(b"heic", "HEIC", "pillow-heif"), (b"mif1", "HEIC", "pillow-heif")],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: Any, brand: bytes, kind: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(ImageError, match=rf"{kind} images are read with the package {package}"):
        load_image(tmp_path / "a.heic")


def test_heic_is_read_where_the_package_is(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(RGB_NOISE).resize((128, 96))).save(tmp_path / "a.heic")
    assert load_image(tmp_path / "a.heic").size == (128, 96)


def test_avif(tmp_path: Path) -> None:
    Image.init()
    if "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 60)).save(buffer, "AVIF")
    (tmp_path / "a.avif").write_bytes(buffer.getvalue())
    seen = load_image(tmp_path / "a.avif")
    assert seen.size == (64, 48) and np.abs(np.asarray(seen, int)[20, 20] - (200, 30, 60)).max() < 6
