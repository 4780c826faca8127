"""Images from files and to files. Only this package imports Pillow."""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sdpy.errors import ImageError, OutputError
from sdpy.files import atomic_write
from sdpy.images.frame import size_text
from sdpy.images.metadata import NO_TEXTS, ImageTexts, saving, texts_of
from sdpy.images.paths import FORMATS

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

WHITE = (255, 255, 255)
BLACK = (0, 0, 0)


def load_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, upright.

    EXIF rotation is applied; transparency is laid over white; 16-bit, 32-bit and floating-point
    greys are scaled to 8 bits; palette, grey, CMYK and 1-bit images are converted; of an
    animation the first frame is taken. A colour profile is not applied.

    Raises:
        ImageError: missing, unreadable, a folder, no image, cut short or absurdly large.
    """
    return open_image(Path(path), background=WHITE)


def open_image(path: Path, background: tuple[int, int, int]) -> Image.Image:
    """Read, decode and convert to upright RGB; everything that can fail ends in ImageError."""
    with _opened(path) as image:
        image.load()
        if 0 in image.size:
            raise ValueError(f"it is empty, {size_text(image.size)} pixels")
        return to_rgb(image, background)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file for the duration of a block, in which whatever fails ends in ImageError."""
    with _guarded(str(path)):
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise ImageError(f"{path}: is a folder; give the path of an image")
        if not stat.S_ISREG(kind):  # opening a named pipe would wait for ever
            raise ImageError(f"{path}: is not a plain file; give the path of an image")
        with path.open("rb") as file, _open(file) as image:
            yield image


def _open(file: BinaryIO) -> Image.Image:
    Image.init()
    # PostScript is a program, which Pillow would have Ghostscript run.
    return Image.open(file, formats=[name for name in Image.ID if name != "EPS"])


@contextmanager
def _guarded(path: str) -> Iterator[None]:
    """A block in which whatever fails while an image is read ends in ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of harmless flaws
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"{path}: no such image; check the path") from error
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
            reason = "damaged? " + (_one_line(error) or type(error).__name__)
        raise ImageError(
            f"{path}: the image cannot be read ({reason}); try another copy, or open it "
            "elsewhere and save it as PNG"
        ) from error


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """A copy of an image of any mode as upright RGB; see `load_image`.

    Args:
        image: any.
        background: over which transparency is laid.

    Raises:
        ValueError: it has pixels that are not finite numbers.
    """
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _to_rgb(image, background)
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    # Asked after load(): some of Pillow's readers (TIFF, AVIF) have turned the image by then and
    # no longer say so.
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # broken metadata is no reason to refuse a good image
        return 1


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _scaled_grey(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")
    # A copy even of RGB, without the file's metadata.
    return Image.fromarray(np.array(image.convert("RGB")))


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_image(file: BinaryIO, name: str) -> Image.Image:
    """Read an image, of any mode, that is no file of its own.

    Args:
        file: from which it is read, and which stays open.
        name: what errors call it.

    Raises:
        ImageError: no image, cut short or absurdly large.
    """
    with _guarded(name):
        image = _open(file)
        image.load()
        return image


def read_texts(path: str | Path) -> dict[str, str]:
    """The texts of an image file's metadata; see `sdpy.images.metadata.texts_of`.

    Raises:
        ImageError: missing, unreadable or no image.
    """
    with _opened(Path(path)) as image:
        if image.format == "PNG":
            image.load()  # text may stand behind the pixels
        return texts_of(image)


def save_image(
    image: Image.Image, path: str | Path, texts: ImageTexts = NO_TEXTS, *, overwrite: bool = True
) -> None:
    """Write an image atomically: an older file stays until the new one is complete.

    The suffix gives the format: .png, .jpg, .jpeg (quality 95, 4:4:4) or .webp (quality 95).

    Args:
        image: of any mode that the format can hold.
        path: where to; its folder must exist.
        texts: how the image was made.
        overwrite: whether it may take the place of another file.

    Raises:
        OutputError: the file cannot be written.
        OccupiedError: it must not overwrite, and there is such a file.
    """
    path = Path(path)
    format = FORMATS.get(path.suffix.lower())
    if format is None:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(FORMATS)}")
    data = encode_image(image, format, texts, str(path))
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(data)


def encode_image(
    image: Image.Image, format: str, texts: ImageTexts = NO_TEXTS, name: str = "the image"
) -> bytes:
    """The bytes of an image file.

    Args:
        image: of any mode that the format can hold.
        format: one of the values of `FORMATS`.
        texts: how the image was made.
        name: what errors call the file.

    Raises:
        OutputError: the format cannot hold the image, or not all of the texts.
    """
    buffer = io.BytesIO()
    settings: dict[str, Any] = {}
    if format != "PNG":
        settings["quality"] = 95
    if format == "JPEG":
        settings["subsampling"] = "4:4:4"
    try:
        # Of the image itself, for a generated one would add what it knows of itself.
        Image.Image.save(image, buffer, format, **settings, **saving(texts, format))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{name}: the image cannot be stored as {format} ({_one_line(error)}); "
            "choose another kind, such as .png"
        ) from error
    return buffer.getvalue()
