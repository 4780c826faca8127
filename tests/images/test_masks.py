"""Masks of any kind, and the region around one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sdpy.errors import ImageError
from sdpy.images.mask import load_mask
from sdpy.images.region import Region
from sdpy.images.resize import resize_mask

Levels = NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Levels:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def saved(path: Path, pixels: Levels) -> Path:
    Image.fromarray(pixels).save(path / "mask.png")
    return path / "mask.png"


def levels_of(path: Path, size: tuple[int, int] | None = None) -> Levels:
    mask = load_mask(path, size).image
    assert mask.mode == "L"
    return np.asarray(mask)


def test_the_mean_of_the_channels_is_the_share(tmp_path: Path) -> None:
    colours = [(122, 122, 122), (255, 255, 0), (255, 112, 0), (0, 255, 0), (9, 8, 9), (0, 0, 0)]
    row = np.array([colours], np.uint8)
    assert levels_of(saved(tmp_path, row)).tolist() == [[122, 170, 122, 85, 9, 0]]


def test_what_is_nearly_black_or_white_is_taken_for_it(tmp_path: Path) -> None:
    seen = levels_of(saved(tmp_path, np.arange(256, dtype=np.uint8)[None]))[0]
    assert (seen[:9] == 0).all() and (seen[247:] == 255).all()
    assert (seen[9:247] == np.arange(9, 247)).all()


def test_masks_of_one_and_16_bits(tmp_path: Path) -> None:
    bits = noise(16, 16) > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert np.array_equal(levels_of(tmp_path / "a.png"), bits * 255)
    Image.fromarray(np.where(bits, 65535, 0).astype(np.uint16)).save(tmp_path / "b.png")
    assert np.array_equal(levels_of(tmp_path / "b.png"), bits * 255)


# --- transparency ------------------------------------------------------------------------------


def photo(alpha: Levels) -> Levels:
    """(H, W, 4): colours that say nothing, and an alpha channel."""
    height, width = alpha.shape
    grey = np.linspace(0, 255, width).astype(np.uint8)[None].repeat(height, 0)
    return np.dstack([grey, grey, grey, alpha])


def test_white_strokes_on_an_empty_layer(tmp_path: Path) -> None:
    """Whatever colour hides under the transparency."""
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[:, 4:, 3] = 0
    rgba[0, :4, 3] = 100  # a soft brush
    mask = load_mask(saved(tmp_path, rgba))
    seen = np.asarray(mask.image)
    assert (seen[1:, :4] == 255).all() and not seen[:, 4:].any() and (seen[0, :4] == 100).all()
    assert mask.doubts == ()


def test_a_photograph_of_which_a_part_was_erased(tmp_path: Path) -> None:
    alpha = np.full((16, 64), 255, np.uint8)
    alpha[4:12, 8:20] = 0
    alpha[4:12, 20] = 155
    path = saved(tmp_path, photo(alpha))
    mask = load_mask(path)
    assert np.array_equal(np.asarray(mask.image), 255 - alpha)
    assert mask.doubts == (f"{path} is read by its transparency: what was erased is repainted",)
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(load_mask(opened).image), 255 - alpha)


def test_a_black_layer_with_a_hole(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[2:5, 2:5, 3] = 0
    assert np.array_equal(levels_of(saved(tmp_path, rgba)), 255 - rgba[..., 3])


def test_a_photograph_without_transparency_is_doubted(tmp_path: Path) -> None:
    doubts = load_mask(saved(tmp_path, photo(np.full((16, 64), 255, np.uint8)))).doubts
    assert len(doubts) == 1 and "neither black nor white in 9" in doubts[0]
    coloured = np.zeros((16, 16, 3), np.uint8)
    coloured[4:, :, 0] = 255
    (doubt,) = load_mask(saved(tmp_path, coloured)).doubts
    assert "has colours" in doubt


def test_black_and_white_with_soft_edges_is_not_doubted(tmp_path: Path) -> None:
    hard = np.zeros((64, 64), np.uint8)
    hard[16:48, 16:48] = 255
    soft = Image.fromarray(hard).filter(ImageFilter.GaussianBlur(1))
    assert load_mask(saved(tmp_path, np.asarray(soft))).doubts == ()
    soft.save(tmp_path / "mask.jpg", quality=60)
    mask = load_mask(tmp_path / "mask.jpg")
    assert mask.doubts == () and not np.asarray(mask.image)[:8].any()


# --- options -----------------------------------------------------------------------------------


def test_inverted_and_blurred(tmp_path: Path) -> None:
    hard = np.zeros((64, 64), np.uint8)
    hard[:, 32:] = 255
    path = saved(tmp_path, hard)
    assert np.array_equal(np.asarray(load_mask(path, invert=True).image), 255 - hard)
    blurred = np.asarray(load_mask(path, blur=4).image)
    expected = np.asarray(Image.fromarray(hard).filter(ImageFilter.GaussianBlur(4)))
    assert np.abs(blurred.astype(int) - expected).max() <= 8
    assert not blurred[:, :16].any() and (blurred[:, 48:] == 255).all()
    with pytest.raises(ImageError, match="no black pixel"):
        load_mask(saved(tmp_path, np.full((8, 8), 255, np.uint8)), invert=True)


def test_a_mask_with_nothing_to_repaint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nothing to repaint"):
        load_mask(saved(tmp_path, np.full((8, 8), 8, np.uint8)))


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3])
def test_a_mask_made_larger_and_smaller_again(tmp_path: Path, factor: int) -> None:
    small = (noise(6, 4) > 127) * np.uint8(255)
    large = small.repeat(factor, axis=0).repeat(factor, axis=1)
    path = saved(tmp_path, small)
    assert np.array_equal(levels_of(path, (4 * factor, 6 * factor)), large)
    assert np.array_equal(levels_of(saved(tmp_path, large), (4, 6)), small)


@pytest.mark.parametrize("size", [(10, 10), (33, 57), (99, 7), (1, 1)])
def test_no_pixel_is_lost_when_a_mask_is_made_smaller(size: tuple[int, int]) -> None:
    for place in ((0, 0), (50, 99), (99, 3), (17, 64)):
        pixels = np.zeros((100, 100), np.uint8)
        pixels[place] = 200
        small = np.asarray(resize_mask(Image.fromarray(pixels), size))
        row, column = place[0] * size[1] // 100, place[1] * size[0] // 100
        assert (small == 200).sum() == 1 and small.shape == (size[1], size[0])
        found = np.argwhere(small == 200)[0]
        assert abs(found - [row, column]).max() <= 1


def test_enlarging_takes_the_nearest_pixel_as_pillow_does() -> None:
    mask = Image.fromarray(noise(7, 11))
    expected = mask.resize((30, 23), Image.Resampling.NEAREST)
    assert np.array_equal(np.asarray(resize_mask(mask, (30, 23))), np.asarray(expected))


@pytest.mark.parametrize(
    ("mask", "size", "fits"),
    [
        ((512, 341), (1024, 683), True),
        ((1024, 683), (512, 341), True),
        ((100, 67), (1500, 1000), True),
        ((512, 512), (512, 511), True),
        ((512, 512), (768, 512), False),
        ((683, 1024), (1024, 683), False),
        ((512, 512), (512, 500), False),
    ],
)
def test_a_mask_must_have_the_image_s_proportions(
    tmp_path: Path, mask: tuple[int, int], size: tuple[int, int], fits: bool
) -> None:
    path = saved(tmp_path, np.full((mask[1], mask[0]), 255, np.uint8))
    if fits:
        assert load_mask(path, size).image.size == size
        return
    with pytest.raises(ImageError) as caught:
        load_mask(path, size)
    for width, height in (mask, size):
        assert f"{width}x{height}" in str(caught.value)


def test_a_mask_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.argwhere(levels_of(tmp_path / "a.png")).tolist() == [[3, 3]]


# --- the region around a mask ------------------------------------------------------------------


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def region(mask: Image.Image, **options: object) -> Region:
    usual: dict[str, object] = {
        "padding": 32,
        "multiple": 8,
        "min_side": 64,
        "pixels": (512 * 512, 1024 * 1024),
    }
    return Region.around(mask, **{**usual, **options})  # type: ignore[arg-type]


def test_a_small_region_is_enlarged_and_a_large_one_made_smaller() -> None:
    found = region(box_mask((2000, 1500), (900, 700, 1000, 800)))
    assert found == Region((868, 668, 1032, 832), (512, 512))
    found = region(box_mask((2000, 1500), (900, 700, 1000, 800)), padding=0)
    assert found == Region((900, 700, 1000, 800), (512, 512))
    found = region(box_mask((4000, 4000), (32, 32, 3968, 3968)))
    assert found == Region((0, 0, 4000, 4000), (1024, 1024))
    found = region(box_mask((4000, 4000), (132, 132, 868, 868)))
    assert found == Region((100, 100, 900, 900), (800, 800))


def test_a_region_is_not_too_thin_and_stays_in_the_image() -> None:
    found = region(box_mask((1000, 1000), (0, 500, 1000, 502)))
    assert found.box == (0, 251, 1000, 751) and found.size == (1000, 496)
    found = region(box_mask((1000, 1000), (990, 0, 1000, 1000)))
    assert found.box == (500, 0, 1000, 1000)
    found = region(box_mask((1000, 40), (0, 10, 1000, 20)))
    assert found.box == (0, 0, 1000, 40) and min(found.size) >= 64


def test_a_region_for_a_size_has_its_proportions() -> None:
    found = region(box_mask((1000, 1000), (400, 400, 600, 500)), padding=0, size=(512, 512))
    assert found == Region((400, 350, 600, 550), (512, 512))
    found = region(box_mask((1000, 1000), (0, 0, 200, 100)), padding=0, size=(512, 768))
    assert found == Region((0, 0, 200, 300), (512, 768))


def test_a_region_is_put_back_where_the_mask_says() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    mask = box_mask((120, 90), (40, 30, 60, 50))
    mask.putpixel((41, 31), 128)
    found = region(mask, padding=8)
    made = Image.new("RGB", found.size, (1, 2, 3))
    whole = np.asarray(found.put_back(image, made, mask))
    before, levels = np.asarray(image), np.asarray(mask)
    assert np.array_equal(whole[levels == 0], before[levels == 0])
    assert (whole[levels == 255] == (1, 2, 3)).all()
    half = before[31, 41] + (np.array([1, 2, 3]) - before[31, 41].astype(int)) * 128 / 255
    assert np.abs(whole[31, 41] - half).max() <= 1
    assert found.cut(image).size == found.cut_mask(mask).size == found.size
