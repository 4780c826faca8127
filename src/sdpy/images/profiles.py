"""Colour profiles: from what a file's colours mean to sRGB, and back."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_CHANNELS = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bool]:
    """An image as RGB, its colours converted to sRGB.

    Args:
        image: of mode RGB, L or CMYK.
        profile: ICC profile of its colours; None for sRGB, or what has no profile.

    Returns:
        The image, and whether the profile changed anything: what says nothing, is broken or is for
        another kind of colours does not, as in viewers.
    """
    if profile is not None and _channels(profile) == image.mode and not _is_srgb(profile):
        try:
            return _applied(image, _transform(profile, image.mode)), True
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return image.convert("RGB"), False


def from_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An sRGB image in the colours of a profile that `to_srgb` has applied to an RGB image."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    back = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), opened, "RGB", "RGB")
    return _applied(image, back)


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None, "only a transform in place gives nothing"
    converted.info = {}
    return converted


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")


def _channels(profile: bytes) -> str | None:
    """The mode of images that a profile is for."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return _CHANNELS.get(opened.profile.xcolor_space)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


@lru_cache(maxsize=16)
def _is_srgb(profile: bytes) -> bool:
    """Whether a profile is one of the many for sRGB: it changes no colour by more than a level."""
    mode = _channels(profile)
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    if mode == "L":
        colours = steps[None]
    elif mode == "RGB":
        colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    else:
        return False
    image = Image.fromarray(colours)
    try:
        converted = _applied(image, _transform(profile, mode))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return True
    difference = np.asarray(converted, np.int16) - np.asarray(image.convert("RGB"), np.int16)
    return bool(np.abs(difference).max() <= 1)
