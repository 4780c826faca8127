"""Images from files, of any kind, as upright RGB in sRGB."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sdpy.errors import ImageError
from sdpy.files import open_input
from sdpy.images.frame import size_text
from sdpy.images.profiles import to_srgb

_EXIF_ORIENTATION = 0x0112
# EXIF's value -> what puts the image upright (Exif 2.32, 4.6.4 A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SIDEWAYS = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}

WHITE = (255, 255, 255)
BLACK = (0, 0, 0)


LARGE = 32_000_000
"""Pixels from which an image that will be scaled down is reduced while it is read."""

_BAND = 256
"""Rows of a large image that are converted together."""

_HEIF, _AVIF = "pillow-heif", "pillow-avif-plugin"
_MODULES = {_HEIF: "pillow_heif", _AVIF: "pillow_avif"}
# Brands at the start of the container of ISO/IEC 23008-12 -> what reads it.
_PACKAGES = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1"), _HEIF),
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
}


@dataclass(frozen=True, eq=False)
class InputImage:
    """An image that was opened.

    Attributes:
        image: RGB, upright, in sRGB; transparency is laid over the background.
        alpha: L, upright; None where nothing is transparent.
        own: the same as ``image`` in the colours of the profile; None where these are sRGB, or
            the file's pixels are not RGB.
        profile: the ICC profile of ``own``.
    """

    image: Image.Image
    alpha: Image.Image | None = None
    own: Image.Image | None = None
    profile: bytes | None = None


def load_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, upright.

    EXIF rotation is applied; transparency is laid over white; 16-bit, 32-bit and floating-point
    greys are scaled to 8 bits; palette, grey, CMYK and 1-bit images are converted; of an
    animation the first frame is taken. Colours of another profile are converted to sRGB.

    Raises:
        ImageError: missing, unreadable, a folder, no image, cut short or absurdly large.
    """
    return open_input_image(Path(path)).image


def size_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of an image, upright, by its header.

    Raises:
        ImageError: missing, unreadable, a folder, no image or absurdly large.
    """
    with opened(Path(path)) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image when it is turned as its EXIF data says."""
    width, height = image.size
    is_sideways = _UPRIGHT.get(_orientation(image)) in _SIDEWAYS
    return (height, width) if is_sideways else (width, height)


def open_input_image(
    path: Path,
    background: tuple[int, int, int] = WHITE,
    least: tuple[int, int] | None = None,
) -> InputImage:
    """Read, decode and convert an image; everything that can fail ends in ImageError.

    Args:
        path: of the file.
        background: over which transparency is laid.
        least: width and height to which the image will be scaled. One of more than `LARGE` pixels
            is reduced to about twice that on the way, so that it takes little memory; None: never.

    Raises:
        ImageError: see `load_image`.
    """
    with opened(path) as image:
        if least is not None and image.width * image.height > LARGE:
            image.draft(None, (2 * max(least), 2 * max(least)))
        image.load()
        if 0 in image.size:
            raise ValueError(f"it is empty, {size_text(image.size)} pixels")
        return to_input_image(image, background, least)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file for the duration of a block, in which whatever fails ends in ImageError."""
    with _guarded(str(path)):
        with open_input(path) as file, _open(file, str(path)) as image:
            yield image


def read_image(file: BinaryIO, name: str) -> Image.Image:
    """Read an image, of any mode, that is no file of its own.

    Args:
        file: from which it is read, and which stays open.
        name: what errors call it.

    Raises:
        ImageError: no image, cut short or absurdly large.
    """
    with _guarded(name):
        image = _open(file, name)
        image.load()
        return image


def _open(file: BinaryIO, name: str) -> Image.Image:
    start = file.read(16)
    file.seek(0)
    Image.init()
    package = _package_for(start)
    _register_reader(package)
    # PostScript is a program, which Pillow would have Ghostscript run.
    formats = [name for name in Image.ID if name != "EPS"]
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        if package is None:
            raise
        kind = "HEIC" if package == _HEIF else "AVIF"
        raise ImageError(
            f"{name}: {kind} images are read with the package {package} (pip install "
            f"{package}), if they are not damaged; or save it as PNG or JPEG"
        ) from error


@contextmanager
def _guarded(path: str) -> Iterator[None]:
    """A block in which whatever fails while an image is read ends in ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of harmless flaws
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (ImageError, MemoryError):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"{path}: no such image; check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path}: is a folder; give the path of an image") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path}: not an image of a known kind; PNG, JPEG, WebP, TIFF, GIF, BMP and others "
            "are read, save it as one of them"
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(
            f"{path}: the image has more than {limit:.4g} million pixels; make it smaller first"
        ) from error
    except Exception as error:
        # A damaged file makes Pillow's decoders raise nearly anything: OSError, SyntaxError,
        # ValueError, IndexError, struct.error, ...
        if isinstance(error, OSError) and error.errno is not None:
            reason = error.strerror
        else:
            reason = "damaged? " + (one_line(error) or type(error).__name__)
        raise ImageError(
            f"{path}: the image cannot be read ({reason}); try another copy, or open it "
            "elsewhere and save it as PNG"
        ) from error


def _package_for(start: bytes) -> str | None:
    """The package that reads files of an ISO container which begin like this."""
    return _PACKAGES.get(start[8:12]) if start[4:8] == b"ftyp" else None


def _register_reader(package: str | None) -> None:
    """Let Pillow read a kind of images by another package, if that is there."""
    if package is None or (package == _AVIF and "AVIF" in Image.OPEN):
        return
    try:
        reader = import_module(_MODULES[package])
    except ImportError:
        return
    if package == _HEIF:
        reader.register_heif_opener()


def to_input_image(
    image: Image.Image,
    background: tuple[int, int, int] = WHITE,
    least: tuple[int, int] | None = None,
) -> InputImage:
    """The same of an image of any mode; see `load_image` and `open_input_image`.

    Raises:
        ValueError: it has pixels that are not finite numbers.
    """
    turn = _UPRIGHT.get(_orientation(image))
    wanted = least if least is None or turn not in _SIDEWAYS else (least[1], least[0])
    converted, alpha = _reduced(image, wanted)
    profile = image.info.get("icc_profile") or None
    own: Image.Image | None = None
    rgb, changed = to_srgb(converted, profile)
    if changed and converted.mode == "RGB":
        own = converted
    if alpha is not None:
        rgb = _laid_over(rgb, alpha, background)
        own = None if own is None else _laid_over(own, alpha, background)
    upright = [
        one if one is None or turn is None else one.transpose(turn) for one in (rgb, alpha, own)
    ]
    assert upright[0] is not None
    return InputImage(upright[0], upright[1], upright[2], profile if own is not None else None)


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """A copy of an image of any mode as upright RGB; see `load_image`.

    Args:
        image: any.
        background: over which transparency is laid.

    Raises:
        ValueError: it has pixels that are not finite numbers.
    """
    return to_input_image(image, background).image


def _orientation(image: Image.Image) -> int:
    # Asked after load(): some of Pillow's readers (TIFF, AVIF) have turned the image by then and
    # no longer say so.
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # broken metadata is no reason to refuse a good image
        return 1


def _reduced(
    image: Image.Image, least: tuple[int, int] | None
) -> tuple[Image.Image, Image.Image | None]:
    """An image as RGB, L or CMYK, and its alpha channel, both reduced if it is large.

    A large image is converted in bands, so that only the result is there as a whole.
    """
    factor = 1
    if least is not None and image.width * image.height > LARGE:
        factor = min(image.width // (2 * least[0]), image.height // (2 * least[1]))
    if factor < 2 or image.mode.startswith(("I", "F")):
        return _simple(image)
    rows = -(-_BAND // factor) * factor
    parts = []
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        band.info = image.info
        parts.append([one and one.reduce(factor) for one in _simple(band)])
    joined = [_stacked([part[i] for part in parts]) for i in range(2)]
    assert joined[0] is not None
    return joined[0], joined[1]


def _stacked(bands: list[Image.Image | None]) -> Image.Image | None:
    given = [band for band in bands if band is not None]
    if not given:
        return None
    whole = Image.new(given[0].mode, (given[0].width, sum(band.height for band in given)))
    top = 0
    for band in given:
        whole.paste(band, (0, top))
        top += band.height
    return whole


def _simple(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """An image as RGB, L or CMYK without its metadata, and its alpha channel."""
    if image.mode.startswith(("I", "F")):
        return _scaled_grey(image), None
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    mode = image.mode if image.mode in ("RGB", "L", "CMYK") else "RGB"
    plain = image.convert(mode)
    plain.info = {}
    return plain, None


def _laid_over(
    rgb: Image.Image, alpha: Image.Image, background: tuple[int, int, int]
) -> Image.Image:
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")


def _scaled_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits as 8 bits, scaled; Pillow's own conversion clips it to white.

    Modes I;16* are 16 bits. Modes I and F do not say what is white: it is taken to be the first of
    1 (F only), 255 (F only), 65535 and 2^31 - 1 that no pixel exceeds.
    """
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not finite numbers")
    whites = {"I": (65535, 2**31 - 1), "F": (1, 255, 65535, 2**31 - 1)}.get(image.mode, (65535,))
    white = next((w for w in whites if values.max() <= w), whites[-1])
    scaled: NDArray[np.float64] = np.clip(values / white, 0.0, 1.0) * 255.0
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def one_line(error: Exception) -> str:
    """The message of an error, in one line."""
    return " ".join(str(error).split())
