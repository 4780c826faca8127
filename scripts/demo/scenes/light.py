"""Colours: of the light at each time of day, of paint, and of materials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
RGB = tuple[float, float, float]


def rgb(values: Sequence[float] | Array) -> Array:
    """A colour as float32 (..., 3)."""
    return np.asarray(values, dtype=np.float32)


def mix(a: Sequence[float] | Array, b: Sequence[float] | Array, t: float) -> Array:
    """From colour ``a`` at ``t`` = 0 to colour ``b`` at ``t`` = 1."""
    return rgb(a) * np.float32(1 - t) + rgb(b) * np.float32(t)


@dataclass(frozen=True)
class Light:
    """Colours of one time of day. ``lit`` and ``shade`` multiply albedos on either side of a thing.

    ``lamps`` says how much artificial light shows (0 by day, 1 at dark). ``overcast`` is the grey
    of rain clouds, ``mist`` of fog, ``flurry`` of a snowing sky.
    """

    top: RGB
    middle: RGB
    low: RGB
    lit: RGB
    shade: RGB
    sun: RGB
    cloud: RGB
    overcast: RGB
    mist: RGB
    flurry: RGB
    lamps: float


LIGHTS = {
    "dawn": Light(
        top=(0.55, 0.67, 0.88),
        middle=(0.97, 0.76, 0.80),
        low=(1.00, 0.87, 0.68),
        lit=(1.10, 0.92, 0.84),
        shade=(0.70, 0.58, 0.70),
        sun=(1.00, 0.93, 0.74),
        cloud=(1.00, 0.86, 0.86),
        overcast=(0.72, 0.60, 0.64),
        mist=(0.84, 0.74, 0.78),
        flurry=(0.84, 0.72, 0.78),
        lamps=0.0,
    ),
    "noon": Light(
        top=(0.20, 0.50, 0.90),
        middle=(0.46, 0.73, 0.97),
        low=(0.80, 0.92, 1.00),
        lit=(1.08, 1.06, 1.00),
        shade=(0.72, 0.76, 0.84),
        sun=(1.00, 0.98, 0.88),
        cloud=(1.00, 1.00, 1.00),
        overcast=(0.50, 0.56, 0.62),
        mist=(0.82, 0.86, 0.88),
        flurry=(0.68, 0.74, 0.81),
        lamps=0.0,
    ),
    "dusk": Light(
        top=(0.19, 0.13, 0.40),
        middle=(0.74, 0.28, 0.42),
        low=(1.00, 0.58, 0.20),
        lit=(1.04, 0.75, 0.59),
        shade=(0.48, 0.34, 0.50),
        sun=(1.00, 0.72, 0.30),
        cloud=(0.86, 0.40, 0.44),
        overcast=(0.34, 0.23, 0.32),
        mist=(0.64, 0.40, 0.42),
        flurry=(0.46, 0.31, 0.46),
        lamps=0.75,
    ),
    "dark": Light(
        top=(0.015, 0.03, 0.13),
        middle=(0.05, 0.09, 0.27),
        low=(0.12, 0.19, 0.42),
        lit=(0.54, 0.57, 0.80),
        shade=(0.26, 0.29, 0.48),
        sun=(0.96, 0.95, 0.84),
        cloud=(0.14, 0.19, 0.38),
        overcast=(0.06, 0.075, 0.13),
        mist=(0.24, 0.27, 0.37),
        flurry=(0.11, 0.14, 0.26),
        lamps=1.0,
    ),
}

PAINT = {
    "red": (0.86, 0.13, 0.10),
    "white": (0.95, 0.94, 0.92),
    "blue": (0.10, 0.32, 0.86),
    "green": (0.12, 0.60, 0.22),
    "yellow": (1.00, 0.84, 0.10),
}
SNOW_COVER = (0.97, 0.98, 1.00)
WARM = (1.00, 0.86, 0.50)
STONE = (0.66, 0.64, 0.62)
SLATE = (0.30, 0.29, 0.34)
WOOD = (0.46, 0.30, 0.18)
GLASS = (0.45, 0.58, 0.68)
TRIM = (0.93, 0.92, 0.90)
