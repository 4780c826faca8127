from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from sdpy.errors import ImageError, OutputError
from sdpy.images.files import read_texts, save_image
from sdpy.images.frame import Frame
from sdpy.images.mask import composite
from sdpy.images.metadata import ImageTexts
from sdpy.images.reading import load_image
from sdpy.images.tensors import image_to_tensor, mask_to_tensor, tensor_to_image


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def random_rgb(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(noise(width, height, seed=seed))


def grey_png(values: np.ndarray, bits: int, chunks: bytes = b"") -> bytes:
    """A grey PNG of 8 or 16 bits, written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunks
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def load(path: Path) -> np.ndarray:
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(path: str | Path, loader=load_image) -> str:
    with pytest.raises(ImageError) as caught:
        loader(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_rgb_is_read_bit_by_bit(tmp_path, suffix):
    pixels = noise(17, 9)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(load(tmp_path / f"a.{suffix}"), pixels)


def test_the_kind_is_told_by_the_content(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.jpg", format="PNG")
    assert np.array_equal(load(tmp_path / "a.jpg"), noise(8, 8))


# What each EXIF value says about the stored rows and columns (Exif 2.32, 4.6.4 A), as the place in
# the stored image of the pixel that is seen at (row y, column x) of an upright image of H x W.
STORED_AT = {
    1: lambda y, x, height, width: (y, x),
    2: lambda y, x, height, width: (y, width - 1 - x),
    3: lambda y, x, height, width: (height - 1 - y, width - 1 - x),
    4: lambda y, x, height, width: (height - 1 - y, x),
    5: lambda y, x, height, width: (x, y),
    6: lambda y, x, height, width: (width - 1 - x, y),
    7: lambda y, x, height, width: (width - 1 - x, height - 1 - y),
    8: lambda y, x, height, width: (x, height - 1 - y),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_exif_orientation(tmp_path, orientation, suffix):
    height, width = 5, 7
    upright = noise(width, height)
    stored = np.zeros((height, width, 3) if orientation < 5 else (width, height, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            stored[STORED_AT[orientation](y, x, height, width)] = upright[y, x]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(stored).save(path, exif=exif, **options)
    assert np.array_equal(load(path), upright)


def test_orientation_6_of_a_jpeg_is_turned_clockwise(tmp_path):
    """As a phone held upright writes it: the stored left edge is the top."""
    stored = np.zeros((64, 96, 3), np.uint8)
    stored[:, :48] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif)
    seen = load(tmp_path / "a.jpg")
    assert seen.shape == (96, 64, 3)
    assert seen[:40].min() > 250 and seen[56:].max() < 5


def test_broken_exif_is_no_reason_to_refuse(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png", exif=b"Exif\0\0garbage!")
    assert np.array_equal(load(tmp_path / "a.png"), noise(8, 8))


def over(background: int, rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:] / 255.0
    return rgba[..., :3] * alpha + background * (1.0 - alpha)


def test_alpha_is_laid_over_white(tmp_path):
    rgba = noise(40, 30, 4)
    rgba[:10, :, 3] = 0
    rgba[10:20, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    seen = load(tmp_path / "a.png")
    assert np.abs(seen - over(255, rgba)).max() <= 1
    assert (seen[:10] == 255).all()
    assert np.array_equal(seen[10:20], rgba[10:20, :, :3])


def test_grey_with_alpha(tmp_path):
    la = noise(20, 20, 2)
    Image.fromarray(la, "LA").save(tmp_path / "a.png")
    assert np.abs(load(tmp_path / "a.png") - over(255, la[..., [0, 0, 0, 1]])).max() <= 1


def test_palette(tmp_path):
    colours = noise(4, 1)[0]
    indices = noise(16, 16, 1)[..., 0] % 4
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.gif")
    assert np.array_equal(load(tmp_path / "a.png"), colours[indices])
    assert np.array_equal(load(tmp_path / "a.gif"), colours[indices])


@pytest.mark.parametrize("transparency", [2, bytes([255, 255, 0, 255])], ids=["index", "table"])
def test_palette_with_transparency(tmp_path, transparency):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    indices = noise(16, 16, 1)[..., 0] % 4
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "a.png", transparency=transparency)
    colours[2] = 255
    assert np.array_equal(load(tmp_path / "a.png"), colours[indices])


def test_colour_that_stands_for_transparent(tmp_path):
    pixels = noise(8, 8)
    pixels[:4] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(1, 2, 3))
    pixels[:4] = 255
    assert np.array_equal(load(tmp_path / "a.png"), pixels)


def test_grey_and_one_bit(tmp_path):
    grey = noise(16, 8, 1)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(load(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))
    bits = grey > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert np.array_equal(load(tmp_path / "bits.png"), np.stack([bits * np.uint8(255)] * 3, axis=2))


GRADIENT = np.linspace(0, 65535, 64 * 64).round().reshape(64, 64)
GRADIENT_IN_8_BITS = np.rint(GRADIENT / 65535 * 255).astype(np.uint8)


def test_16_bit_png_is_scaled(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(GRADIENT, 16))
    seen = load(path)
    for channel in range(3):
        assert np.array_equal(seen[..., channel], GRADIENT_IN_8_BITS)


def test_dark_16_bit_png_stays_dark(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(np.full((4, 4), 255), 16))
    assert load(path).max() == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (GRADIENT.astype(np.uint16), GRADIENT_IN_8_BITS),
        (GRADIENT.astype(np.int32), GRADIENT_IN_8_BITS),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [[0, 128, 255]]),
        (np.array([[-5, 0, 65535]], np.int32), [[0, 0, 255]]),
        (np.array([[0.0, 0.25, 1.0]], np.float32), [[0, 64, 255]]),
        (np.array([[0.0, 100.0, 200.0]], np.float32), [[0, 100, 200]]),
        (np.array([[0.0, 256.0, 65535.0]], np.float32), [[0, 1, 255]]),
        (np.array([[-1.0, 0.5, 1.0]], np.float32), [[0, 128, 255]]),
    ],
)
def test_deep_tiff_is_scaled(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert np.array_equal(load(tmp_path / "a.tiff")[..., 0], expected)


def test_big_endian_16_bit(tmp_path):
    raw = GRADIENT.astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5 64 64 65535\n" + raw)
    assert np.array_equal(load(tmp_path / "a.pgm")[..., 1], GRADIENT_IN_8_BITS)


def test_pixels_that_are_no_numbers_are_refused(tmp_path):
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "a.tiff")
    assert "not finite" in refusal(tmp_path / "a.tiff")


def test_cmyk(tmp_path):
    ink = np.zeros((64, 64, 4), np.uint8)
    ink[..., 0] = 255  # cyan
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(load(tmp_path / "a.jpg").astype(int) - (0, 255, 255)).max() <= 3


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"a.{suffix}"
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert (load(path) == (255, 0, 0)).all()


def test_missing_folder_and_other_things_are_refused(tmp_path):
    assert "no such image" in refusal(tmp_path / "a.png")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "text").write_text("hello")
    assert "not an image" in refusal(tmp_path / "text")
    assert "no such image" in refusal(tmp_path / "text" / "a.png")
    (tmp_path / "empty.png").write_bytes(b"")
    assert "not an image" in refusal(tmp_path / "empty.png")
    assert "File name too long" in refusal(tmp_path / ("a" * 300))


def test_postscript_is_not_run(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert "not an image" in refusal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "not a plain file" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "webp", "bmp"])
def test_a_file_cut_short_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    random_rgb(64, 64).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refusal(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "webp"])
def test_damaged_files_are_read_or_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    random_rgb(32, 32).save(path, exif=exif)
    data = path.read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(min(len(data), 400))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert load_image(path).mode == "RGB"
        except ImageError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 0


def test_an_absurdly_large_image_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    random_rgb(100, 100).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)  # Pillow only warns up to twice this
    assert "more than 0.009 million pixels" in refusal(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    assert "more than 0.004 million pixels" in refusal(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert load_image(path).size == (100, 100)


def test_an_image_without_pixels_is_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(np.zeros((0, 0)), 8))
    refusal(path)


# --- fitting -----------------------------------------------------------------------------------


def test_an_image_that_fits_passes_through():
    image = random_rgb(128, 72)
    frame = Frame.fit(image.size)
    assert frame == Frame((128, 72), (128, 72), (0, 0), (128, 72), (128, 72))
    assert np.array_equal(frame.apply(image), image)
    assert np.array_equal(frame.restore(frame.apply(image)), image)


def test_padding_repeats_the_edge_and_is_cut_away_again():
    image = random_rgb(101, 67)
    frame = Frame.fit(image.size)
    padded = np.asarray(frame.apply(image))
    assert frame.padded == (104, 72) and padded.shape == (72, 104, 3)
    original = np.asarray(image)
    assert np.array_equal(padded[:67, :101], original)
    for x in range(101, 104):
        assert np.array_equal(padded[:67, x], original[:, -1])
    for y in range(67, 72):
        assert np.array_equal(padded[y, :101], original[-1])
    assert (padded[67:, 101:] == original[-1, -1]).all()
    assert np.array_equal(frame.restore(Image.fromarray(padded)), original)


@pytest.mark.parametrize("multiple", [4, 8, 64])
@pytest.mark.parametrize("size", [(64, 64), (65, 127), (66, 200), (71, 72)])
def test_the_model_s_size_is_the_next_multiple(multiple, size):
    padded = Frame.fit(size, multiple=multiple).padded
    for p, side in zip(padded, size, strict=True):
        assert p % multiple == 0 and side <= p < side + multiple


@pytest.mark.parametrize(
    ("size", "max_pixels", "scaled"),
    [
        ((768, 768), 512 * 512, (512, 512)),
        ((1024, 256), 512 * 128, (512, 128)),
        ((3000, 2000), 512 * 512, (627, 418)),
        ((512, 512), 512 * 512, (512, 512)),
        ((100, 100), 512 * 512, (100, 100)),
    ],
)
def test_large_images_are_scaled_down(size, max_pixels, scaled):
    frame = Frame.fit(size, max_pixels=max_pixels)
    assert frame.scaled == frame.content == scaled
    assert scaled[0] * scaled[1] <= max_pixels


def test_scaling_is_lanczos():
    image = random_rgb(200, 160)
    frame = Frame.fit(image.size, max_pixels=100 * 80)
    wanted = image.resize((100, 80), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(frame.apply(image))[:, :100], wanted)
    assert np.array_equal(frame.restore(frame.apply(image)), wanted)


def test_mask_follows_the_image_and_the_padding_is_kept():
    frame = Frame.fit((101, 67))
    mask = Image.new("L", (101, 67), 255)
    padded = np.asarray(frame.apply_mask(mask))
    assert padded.shape == (72, 104)
    assert (padded[:67, :101] == 255).all()
    assert (padded[67:] == 0).all() and (padded[:, 101:] == 0).all()


def test_scaled_mask_stays_black_and_white():
    mask = Image.fromarray((noise(200, 160, 1)[..., 0] > 127).astype(np.uint8) * 255)
    scaled = np.asarray(Frame.fit(mask.size, max_pixels=90 * 70).apply_mask(mask))
    assert set(np.unique(scaled)) == {0, 255}


@pytest.mark.parametrize(
    ("size", "wanted", "scaled", "content"),
    [
        ((200, 100), {"width": 100, "height": 100}, (200, 100), (100, 100)),
        ((200, 100), {"width": 400, "height": 400}, (800, 400), (400, 400)),
        ((100, 200), {"width": 100, "height": 100}, (100, 200), (100, 100)),
        ((200, 100), {"width": 300}, (300, 150), (300, 150)),
        ((200, 100), {"height": 300}, (600, 300), (600, 300)),
        ((40, 30), {"width": 400}, (400, 300), (400, 300)),
        ((333, 222), {"width": 256, "height": 256}, (384, 256), (256, 256)),
    ],
)
def test_a_wanted_size_is_covered_and_cut_from_the_centre(size, wanted, scaled, content):
    frame = Frame.fit(size, max_pixels=64 * 64, **wanted)
    assert frame.scaled == scaled and frame.content == content
    result = frame.restore(frame.apply(random_rgb(*size)))
    assert result.size == content


def test_cropping_without_scaling_is_exact():
    image = random_rgb(200, 100)
    cut = Frame.fit(image.size, width=104, height=100).apply(image)
    assert np.array_equal(np.asarray(cut)[:100, :104], np.asarray(image)[:, 48:152])


def test_mask_cut_off_by_the_crop_is_refused():
    pixels = np.zeros((100, 200), np.uint8)
    pixels[:, :20] = 255
    frame = Frame.fit((200, 100), width=100, height=100)
    with pytest.raises(ImageError, match="nothing white is left"):
        frame.apply_mask(Image.fromarray(pixels))


@pytest.mark.parametrize("size", [(63, 100), (100, 63), (1, 1), (40, 30)])
def test_too_small_an_image_is_refused(size):
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} pixels.*at least 64"):
        Frame.fit(size)
    assert Frame.fit(size, min_side=1).content == size


def test_a_strip_that_becomes_too_thin_is_refused():
    with pytest.raises(ImageError, match="8000x70 pixels and becomes 5473x47"):
        Frame.fit((8000, 70), max_pixels=512 * 512)


def test_a_frame_is_for_one_size():
    frame = Frame.fit((100, 100))
    for use in (frame.apply, frame.apply_mask, frame.restore):
        with pytest.raises(ValueError, match="image is 96x96"):
            use(random_rgb(96, 96))


# --- tensors -----------------------------------------------------------------------------------


def test_image_to_tensor():
    pixels = noise(5, 4)
    tensor = image_to_tensor(Image.fromarray(pixels))
    assert tensor.shape == (1, 3, 4, 5) and tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    expected = pixels.astype(np.float64).transpose(2, 0, 1)[None] / 127.5 - 1
    assert np.abs(tensor.numpy() - expected).max() < 1e-6
    assert image_to_tensor(Image.new("RGB", (1, 1), (0, 255, 0))).flatten().tolist() == [-1, 1, -1]


def test_every_level_comes_back():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, levels.T, 255 - levels], axis=2))
    assert np.array_equal(tensor_to_image(image_to_tensor(image)), image)
    assert np.array_equal(tensor_to_image(image_to_tensor(image)[0]), image)


def test_levels_are_rounded_and_clamped():
    levels = torch.tensor([-3.0, 0.4, 0.6, 100.4, 100.6, 254.6, 255.4, 900.0])
    tensor = (levels / 127.5 - 1).expand(3, 1, 8)
    row = np.asarray(tensor_to_image(tensor))[0, :, 0].tolist()
    assert row == [0, 0, 1, 100, 101, 255, 255, 255]


def test_half_precision_is_taken():
    image = tensor_to_image(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16, requires_grad=True))
    assert np.asarray(image).tolist() == [[[128] * 3] * 2] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_an_error(value):
    tensor = torch.zeros(3, 4, 4)
    tensor[1, 2, 3] = value
    with pytest.raises(OutputError, match="not numbers"):
        tensor_to_image(tensor)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (2, 3, 4, 4), (4, 4, 3)])
def test_other_shapes_are_an_error(shape):
    with pytest.raises(ValueError, match="is needed"):
        tensor_to_image(torch.zeros(shape))


def test_mask_to_tensor():
    mask = Image.fromarray(np.array([[0, 255, 0]], np.uint8))
    tensor = mask_to_tensor(mask)
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [[[[0.0, 1.0, 0.0]]]]


def test_composite_leaves_the_rest_untouched():
    original, generated = random_rgb(40, 30, seed=1), random_rgb(40, 30, seed=2)
    white = noise(40, 30, 1, seed=3)[..., 0] > 127
    mask = Image.fromarray(white.astype(np.uint8) * 255)
    seen = np.asarray(composite(original, generated, mask))
    assert np.array_equal(seen[white], np.asarray(generated)[white])
    assert np.array_equal(seen[~white], np.asarray(original)[~white])


def test_composite_needs_one_size():
    with pytest.raises(ValueError, match="8x8, 9x8, 8x8"):
        composite(random_rgb(8, 8), random_rgb(9, 8), Image.new("L", (8, 8)))


# --- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.WebP", "WEBP")],
)
def test_the_suffix_gives_the_kind(tmp_path, name, kind):
    save_image(random_rgb(16, 16), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.format == kind and image.size == (16, 16)
    assert [path.name for path in tmp_path.iterdir()] == [name]


MADE = "a lighthouse, café 日本 🏰\nSteps: 30, Seed: 32"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize(
    "texts",
    [
        ImageTexts(MADE, '{"prompt":"café 🏰"}'),
        ImageTexts(parameters="plain"),
        ImageTexts(record="{}"),
        ImageTexts(),
    ],
)
def test_a_file_says_how_its_image_was_made(tmp_path, name, texts):
    save_image(random_rgb(16, 16), tmp_path / name, texts)
    wanted = {"parameters": texts.parameters, "sdpy": texts.record}
    found = read_texts(tmp_path / name)
    assert {key: found[key] for key in found if key in wanted} == {
        key: text for key, text in wanted.items() if text is not None
    }
    with Image.open(tmp_path / name) as image:
        if name == "a.png":
            assert np.array_equal(image, random_rgb(16, 16))
            assert image.text.get("parameters") == texts.parameters
        elif texts.parameters is not None:
            comment = image.getexif().get_ifd(0x8769)[0x9286]
            assert comment == b"UNICODE\0" + texts.parameters.encode("utf-16-be")
        elif texts.record is None:
            assert not image.getexif()


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"ASCII\0\0\0a cat", "a cat"),
        (b"UNICODE\0" + "a cat".encode("utf-16-be"), "a cat"),
        (b"\0\0\0\0\0\0\0\0a cat", "a cat"),
    ],
)
def test_comments_of_other_programs_are_read(tmp_path, comment, text):
    exif = Image.Exif()
    exif[0x8769] = {0x9286: comment}
    random_rgb(16, 16).save(tmp_path / "a.jpg", exif=exif)
    assert read_texts(tmp_path / "a.jpg")["parameters"] == text


def test_text_behind_the_pixels_is_read(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "late", zip=True)
    random_rgb(16, 16).save(tmp_path / "a.png", pnginfo=info)
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"zTXt") - 4
    length = 12 + int.from_bytes(data[start : start + 4], "big")
    chunk, rest = data[start : start + length], data[:start] + data[start + length :]
    end = rest.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(rest[:end] + chunk + rest[end:])
    assert read_texts(tmp_path / "b.png") == {"parameters": "late"}


def test_texts_that_the_format_cannot_hold_are_refused(tmp_path):
    with pytest.raises(OutputError, match=r"a.jpg: the image cannot be stored as JPEG .*png"):
        save_image(random_rgb(16, 16), tmp_path / "a.jpg", ImageTexts("x" * 70_000))
    assert list(tmp_path.iterdir()) == []


def test_jpeg_keeps_colours_sharp(tmp_path):
    save_image(random_rgb(64, 64), tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        # (id, horizontal sampling, vertical sampling, table): 1x1 throughout is 4:4:4
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
        wanted = io.BytesIO()
        random_rgb(64, 64).save(wanted, "JPEG", quality=95)
        assert image.quantization == Image.open(wanted).quantization


def test_metadata_of_the_input_does_not_travel_on(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    random_rgb(16, 16).save(
        tmp_path / "in.jpg", exif=exif, icc_profile=b"profile", comment=b"secret"
    )
    for name in ("a.png", "a.jpg", "a.webp"):
        save_image(load_image(tmp_path / "in.jpg"), tmp_path / name)
        data = (tmp_path / name).read_bytes()
        assert b"where I live" not in data and b"secret" not in data and b"profile" not in data


def test_an_unknown_suffix_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="the suffix must be one of"):
        save_image(random_rgb(8, 8), tmp_path / "a.gif")


def test_a_full_disk_leaves_the_old_image(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # longer files fail to be written
    try:
        with pytest.raises(OutputError) as caught:
            save_image(random_rgb(64, 64), path)
        with pytest.raises(OutputError):
            save_image(random_rgb(64, 64), tmp_path / "new.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_an_image_that_the_format_cannot_hold(tmp_path):
    with pytest.raises(OutputError, match="cannot be stored as WEBP") as caught:
        save_image(Image.new("RGB", (16384, 1)), tmp_path / "a.webp")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(OutputError):
        save_image(random_rgb(8, 8), tmp_path / "no" / "a.png")
