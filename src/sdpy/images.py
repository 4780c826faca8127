"""Pictures: open, orient, fit, mask, tensor <-> picture, save whole. The only importer of Pillow.

Inside, a picture is a Pillow image of mode RGB, 8 bits a channel; a mask is a Pillow image of mode
L that holds only 0 (kept) and 255 (repainted). Sizes are (width, height), as in Pillow.
"""

from __future__ import annotations

import io
import math
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from sdpy.errors import ImageError, OutputError
from sdpy.files import atomic_write
from sdpy.outputs import FORMATS

# The mean of a pixel's channels from which a mask says "repaint", of 255.
MASK_THRESHOLD = 122.5

_EXIF_ORIENTATION = 0x0112
# EXIF's value -> what puts the picture upright (Exif 2.32, 4.6.4 A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)


# --- reading -----------------------------------------------------------------------------------


def load_image(path: str | Path) -> Image.Image:
    """Read a picture as RGB, upright.

    EXIF rotation is applied; transparency is laid over white; 16-bit, 32-bit and floating-point
    greys are scaled to 8 bits; palette, grey, CMYK and 1-bit pictures are converted; of an
    animation the first frame is taken. A colour profile is not applied.

    Raises:
        ImageError: missing, unreadable, a folder, no picture, cut short or absurdly large.
    """
    return _open(Path(path), background=_WHITE)


def load_mask(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Read a mask: where the mean of the channels is at least 122.5 of 255, it says "repaint".

    Transparency is laid over black, so that only what is painted white is repainted.

    Args:
        path: a picture of any kind that ``load_image`` takes.
        size: (width, height) of the picture to mask. A mask of another size is resized by nearest
            neighbour if its proportions are the picture's.

    Returns:
        Image of mode L, 0 where the picture is kept and 255 where it is repainted.

    Raises:
        ImageError: as ``load_image``; also if the proportions differ or nothing is white.
    """
    rgb = np.asarray(_open(Path(path), background=_BLACK), dtype=np.float32)
    white = rgb.mean(axis=2) >= MASK_THRESHOLD
    if not white.any():
        raise ImageError(f"{path}: the mask has no white pixel, so there is nothing to repaint")
    mask = Image.fromarray(white.astype(np.uint8) * 255)
    if size is None or mask.size == size:
        return mask
    if not _same_proportions(mask.size, size):
        raise ImageError(
            f"{path}: the mask is {_by(mask.size)} pixels, the picture {_by(size)}; "
            "give a mask of the picture's size or proportions"
        )
    resized = mask.resize(size, Image.Resampling.NEAREST)
    if not resized.getbbox():
        raise ImageError(
            f"{path}: the white of the mask is too small for a picture of {_by(size)} pixels; "
            "paint more of it white"
        )
    return resized


def _open(path: Path, background: tuple[int, int, int]) -> Image.Image:
    """Read, decode and convert to upright RGB; everything that can fail ends in ImageError."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise ImageError(f"{path}: is a folder; give the path of a picture")
        if not stat.S_ISREG(kind):  # opening a named pipe would wait for ever
            raise ImageError(f"{path}: is not a plain file; give the path of a picture")
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders grumble about harmless flaws
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode(file, background)
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"{path}: no such picture; check the path") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path}: not a picture of a known kind; PNG, JPEG, WebP, TIFF, GIF, BMP and others "
            "are read, save it as one of them"
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(
            f"{path}: the picture has more than {limit:.4g} million pixels; make it smaller first"
        ) from error
    except Exception as error:
        # A damaged file makes Pillow's decoders raise nearly anything: OSError, SyntaxError,
        # ValueError, IndexError, struct.error, ...
        if isinstance(error, OSError) and error.errno is not None:
            reason = error.strerror
        else:
            reason = "damaged? " + (_one_line(error) or type(error).__name__)
        raise ImageError(
            f"{path}: the picture cannot be read ({reason}); try another copy, or open it "
            "elsewhere and save it as PNG"
        ) from error


def _decode(file: BinaryIO, background: tuple[int, int, int]) -> Image.Image:
    Image.init()
    # PostScript is a program, which Pillow would have Ghostscript run.
    formats = [name for name in Image.ID if name != "EPS"]
    with Image.open(file, formats=formats) as image:
        image.load()
        if 0 in image.size:
            raise ValueError(f"it is empty, {_by(image.size)} pixels")
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image, background)
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    # Asked after load(): some of Pillow's readers (TIFF, AVIF) have turned the picture by then and
    # no longer say so.
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # broken metadata is no reason to refuse a good picture
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


def _same_proportions(a: tuple[int, int], b: tuple[int, int]) -> bool:
    # One is the other scaled, with both sides rounded to whole pixels at most.
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# --- fitting -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """How a picture of any size becomes one that the model takes, and how the result comes back.

    The picture is scaled (only where asked), cropped to the centre (only for a wanted width and
    height) and padded at the right and at the bottom. A picture that needs none of this passes
    through bit by bit. Make one with ``Frame.fit``; all sizes are (width, height).

    Attributes:
        source: the picture's size.
        scaled: its size after scaling; equal to ``source`` when it is not scaled.
        offset: left and top of what is cut out of the scaled picture.
        content: size of what is cut out; the size of the finished picture.
        padded: size that the model sees.
    """

    source: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    content: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def fit(
        cls,
        size: tuple[int, int],
        *,
        multiple: int = 8,
        max_pixels: int | None = None,
        min_side: int = 64,
        width: int | None = None,
        height: int | None = None,
    ) -> Frame:
        """The frame for a picture of ``size``.

        Args:
            size: (width, height) of the picture.
            multiple: the model's sides are multiples of this (8 for Stable Diffusion).
            max_pixels: a picture with more is scaled down to at most this many; None: never. Not
                applied where a width or height is asked for.
            min_side: shortest side, in pixels, that is worth painting.
            width: wanted width; alone, the height follows from the proportions. With ``height`` the
                picture is scaled to cover both and its centre is taken.
            height: wanted height, likewise.

        Raises:
            ImageError: a side of the finished picture would be shorter than ``min_side``.
        """
        if width is not None or height is not None:
            content = _wanted_size(size, width, height)
            scaled = _cover(size, content)
        else:
            content = scaled = _at_most(size, max_pixels)
        if min(content) < min_side:
            becomes = "" if content == size else f" and becomes {_by(content)}"
            raise ImageError(
                f"the picture has {_by(size)} pixels{becomes}, too little to paint on: both sides "
                f"must be at least {min_side}; enlarge it first"
            )
        return cls(
            source=size,
            scaled=scaled,
            offset=((scaled[0] - content[0]) // 2, (scaled[1] - content[1]) // 2),
            content=content,
            padded=(-(-content[0] // multiple) * multiple, -(-content[1] // multiple) * multiple),
        )

    def apply(self, image: Image.Image) -> Image.Image:
        """Scale (Lanczos), crop and pad a picture; the padding repeats the last row and column."""
        image = self._cut(image, Image.Resampling.LANCZOS)
        if self.padded == self.content:
            return image
        return Image.fromarray(np.pad(np.asarray(image), (*self._padding(), (0, 0)), mode="edge"))

    def apply_mask(self, mask: Image.Image) -> Image.Image:
        """The same for a mask: nearest neighbour; the padding is not repainted.

        Raises:
            ImageError: scaling or cropping left no white pixel.
        """
        mask = self._cut(mask, Image.Resampling.NEAREST)
        if not mask.getbbox():
            raise ImageError(
                f"nothing white is left of the mask where the picture is used at "
                f"{_by(self.content)} pixels; paint more of it white, nearer the centre"
            )
        if self.padded == self.content:
            return mask
        return Image.fromarray(np.pad(np.asarray(mask), self._padding()))

    def restore(self, image: Image.Image) -> Image.Image:
        """Cut the padding away; the result has the size ``content``, it is not scaled back."""
        if image.size != self.padded:
            raise ValueError(f"image is {_by(image.size)}, this frame's is {_by(self.padded)}")
        if self.padded == self.content:
            return image
        return image.crop((0, 0, *self.content))

    def _cut(self, image: Image.Image, filter: Image.Resampling) -> Image.Image:
        if image.size != self.source:
            raise ValueError(f"image is {_by(image.size)}, this frame's is {_by(self.source)}")
        if self.scaled != self.source:
            image = image.resize(self.scaled, filter)
        if self.content != self.scaled:
            left, top = self.offset
            image = image.crop((left, top, left + self.content[0], top + self.content[1]))
        return image

    def _padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        right, bottom = (p - c for p, c in zip(self.padded, self.content, strict=True))
        return ((0, bottom), (0, right))


def _wanted_size(size: tuple[int, int], width: int | None, height: int | None) -> tuple[int, int]:
    if width is None and height is not None:
        width = max(1, round(size[0] * height / size[1]))
    elif height is None and width is not None:
        height = max(1, round(size[1] * width / size[0]))
    assert width is not None and height is not None
    return (width, height)


def _cover(size: tuple[int, int], content: tuple[int, int]) -> tuple[int, int]:
    """``size`` scaled so that it just covers ``content``."""
    scale = max(content[0] / size[0], content[1] / size[1])
    return (
        max(content[0], round(size[0] * scale)),
        max(content[1], round(size[1] * scale)),
    )


def _at_most(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    if max_pixels is None or size[0] * size[1] <= max_pixels:
        return size
    # Rounded down, in whole numbers, so that the product stays within the limit.
    return (
        max(1, math.isqrt(max_pixels * size[0] // size[1])),
        max(1, math.isqrt(max_pixels * size[1] // size[0])),
    )


# --- tensors -----------------------------------------------------------------------------------


def image_to_tensor(image: Image.Image) -> Tensor:
    """Picture (RGB) to float32 (1, 3, H, W) in [-1, 1]."""
    rgb = torch.from_numpy(np.array(image.convert("RGB")))  # (H, W, 3)
    return rgb.permute(2, 0, 1).unsqueeze(0).contiguous().float() / 255.0 * 2.0 - 1.0


def mask_to_tensor(mask: Image.Image) -> Tensor:
    """Mask (mode L, 0 or 255) to float32 (1, 1, H, W): 1 is repainted, 0 is kept."""
    return torch.from_numpy(np.array(mask.convert("L")) >= MASK_THRESHOLD).float()[None, None]


def tensor_to_image(tensor: Tensor) -> Image.Image:
    """Float (3, H, W) or (1, 3, H, W) in [-1, 1] to a picture; outside values are clamped.

    Grey levels are rounded to the nearest, not cut off.

    Raises:
        OutputError: a value is NaN or infinite, as when a decoder overflows in half precision.
    """
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"tensor is {tuple(tensor.shape)}, (3, H, W) or (1, 3, H, W) is needed")
    tensor = tensor.detach().to("cpu", torch.float32)
    if not torch.isfinite(tensor).all():
        raise OutputError(
            "the painted picture holds values that are not numbers; "
            "the weights may be damaged or overflow in half precision: try float32"
        )
    levels = (tensor / 2.0 + 0.5).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def composite(original: Image.Image, painted: Image.Image, mask: Image.Image) -> Image.Image:
    """``painted`` where the mask says so, elsewhere ``original`` bit by bit; all of one size."""
    if not original.size == painted.size == mask.size:
        sizes = ", ".join(_by(image.size) for image in (original, painted, mask))
        raise ValueError(f"original, painted and mask differ in size: {sizes}")
    return Image.composite(painted, original, mask)


# --- writing -----------------------------------------------------------------------------------


def save_image(image: Image.Image, path: str | Path, parameters: str | None = None) -> None:
    """Write a picture whole or not at all; an older file stays until the new one is complete.

    The suffix gives the format: .png, .jpg, .jpeg (quality 95, 4:4:4) or .webp (quality 95).

    Args:
        image: the picture.
        path: where to; its folder must exist.
        parameters: how the picture was made; PNG only, as the text chunk "parameters".

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    format = FORMATS.get(path.suffix.lower())
    if format is None:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(FORMATS)}")
    try:
        data = _encode(image, format, parameters)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path}: the picture cannot be stored as {format} ({_one_line(error)}); "
            "choose another kind, such as .png"
        ) from error
    with atomic_write(path) as file:
        file.write(data)


def _encode(image: Image.Image, format: str, parameters: str | None) -> bytes:
    buffer = io.BytesIO()
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        if parameters is not None:
            info.add_text("parameters", parameters)
        image.save(buffer, format, pnginfo=info)
    elif format == "JPEG":
        image.save(buffer, format, quality=95, subsampling="4:4:4")
    else:
        image.save(buffer, format, quality=95)
    return buffer.getvalue()
