"""A canvas whose shapes are painted, flat, or drawn in ink.

Painted things have brush marks, darker rims and rough ground. Flat ones have two tones each and a
sky in bands. Ink has outlines, a pale wash of the colours, and hatching where it is dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scripts.demo.scenes.geometry import Shape
from scripts.demo.scenes.light import Array, rgb
from scripts.demo.scenes.painter import Painter
from scripts.demo.world.scene import Scene

PAPER = (0.955, 0.93, 0.87)
INK = (0.10, 0.09, 0.13)

BANDS = 7
"""Bands of a flat sky."""

OUTLINE = 0.0042
"""Half the width of an ink line, in image coordinates."""

HATCHES = ((0.42, 0.9, 30.0), (0.22, -0.75, 30.0), (0.12, 0.1, 34.0))
"""Hatching below a brightness: brightness, slope of the lines, and how many there are."""


class StyledPainter(Painter):
    """A painter that knows the scene's style.

    Attributes:
        style: see `scripts.demo.world.scene.STYLES`.
        grain: (size, size) rough noise around 0, for brush marks; only where things are painted.
        lines: (size, size) ink of the outlines that are still to be seen, from 0 to 1.
        wobble: (size, size) slow noise around 0, for lines that a hand has drawn; only in ink.
    """

    scene: Scene

    def __init__(self, scene: Scene, size: int) -> None:
        super().__init__(scene, size)
        self.style = scene.style
        # Marks of the brush must not depend on the composition, nor the composition on them.
        self._marks = np.random.default_rng([scene.seed, 1])
        self.lines = np.zeros((size, size), np.float32)
        if self.style == "ink":
            self.wobble = value_noise(self._marks, self.x, self.y, (7, 7), 1)
        if self.style == "painted":
            strokes = value_noise(self._marks, self.x, self.y, (70, 13), 2)
            self.grain = 0.6 * strokes + 0.5 * value_noise(self._marks, self.x, self.y, (34, 34), 2)

    def flat(
        self, shape: Shape, colour: Sequence[float] | Array, opacity: float = 1.0, soft: float = 0.0
    ) -> None:
        """Cover a shape with one colour; in ink, soft ones are paler, and others have outlines."""
        if self.style == "ink" and soft:
            opacity *= 0.6
        super().flat(shape, colour, opacity, soft)
        window = self._window(shape.bounds, self.px + OUTLINE)
        if opacity == 1 and not soft and window is not None:
            rows, columns = window
            d = shape.distance(self.x[:, columns], self.y[rows])
            self._outline(d, np.clip(0.5 - d / (1.15 * self.px), 0, 1), rows, columns)

    def solid(self, shape: Shape, albedo: Sequence[float] | Array, turn: float = 1.0) -> None:
        """Cover a shape with a lit material, in the way of the style."""
        window = self._window(shape.bounds, self.px + OUTLINE)
        if window is None:
            return
        rows, columns = window
        x = self.x[:, columns]
        d = shape.distance(x, self.y[rows])
        cover = np.clip(0.5 - d / (1.15 * self.px), 0, 1)
        x0, x1 = shape.bounds[0], shape.bounds[2]
        across = np.clip((x - x0) / max(x1 - x0, self.px), 0, 1)
        facing = across if self.sun_side > 0 else 1 - across
        if self.style == "flat":
            facing = np.where(facing > 0.42, np.float32(0.74), np.float32(0.74 - 0.34 * turn))
        else:
            facing = 0.62 + (facing - 0.5) * 0.76 * turn
        colour = self.shade + facing[..., None] * (self.lit - self.shade)
        colour = colour * rgb(albedo)
        if self.style == "painted":
            colour = colour * self._relief(d, rows, columns)[..., None]
        region = self.image[rows, columns]
        region += cover[..., None] * (np.minimum(colour, 1) - region)
        self._outline(d, cover, rows, columns)

    def ridge(self, height: Array, upper: Array, lower: Array, depth: float = 0.3) -> None:
        """Fill everything below the line ``height`` (1, W), in the way of the style."""
        if self.style == "flat":
            lower = upper = (upper + lower) / 2
        start = max(int(float(height.min()) * self.size) - 2, 0)
        before = self.image[start:].copy() if self.style == "painted" else None
        super().ridge(height, upper, lower, depth)
        rows = slice(start, self.size)
        if before is not None:
            cover = np.clip(0.5 + (self.y[rows] - height) / (1.3 * self.px), 0, 1)
            near = np.clip((self.y[rows] - height) / max(depth, 0.05), 0, 1)
            marks = 1 + self.grain[rows] * (0.05 + 0.16 * near)
            self.image[rows] *= (1 + cover * (marks - 1))[..., None]
        d = height - self.y[rows]
        self._outline(d, np.clip(0.5 - d / self.px, 0, 1), rows, slice(None))

    def _relief(self, d: Array, rows: slice, columns: slice) -> Array:
        """Brush marks, and the darkness near a rim, where a round thing turns away."""
        rim = np.exp(np.minimum(d, 0) / np.float32(0.012))
        return (1 - 0.16 * rim) * (1 + 0.10 * self.grain[rows, columns])

    def _outline(self, d: Array, cover: Array, rows: slice, columns: slice) -> None:
        """Hide the lines behind a shape, and draw its own where the distance to its edge is 0."""
        if self.style != "ink":
            return
        width = OUTLINE * (1 + 0.35 * self.wobble[rows, columns])
        line = np.clip(0.5 - (np.abs(d) - width) / (1.15 * self.px), 0, 1)
        region = self.lines[rows, columns]
        region *= 1 - cover
        np.maximum(region, 0.9 * line, out=region)

    def finish(self) -> None:
        """Do what a style does to the image as a whole, when everything is drawn."""
        if self.style == "painted":
            canvas = value_noise(self._marks, self.x, self.y, (96, 96), 1)
            self.image *= (1 + 0.02 * canvas + 0.016 * self.grain)[..., None]
        elif self.style == "ink":
            self._wash_and_hatch()

    def _wash_and_hatch(self) -> None:
        brightness = self.image @ rgb((0.30, 0.59, 0.11))
        # The wash keeps the hue and takes most of the darkness out, which hatching puts back.
        hue = self.image / np.maximum(brightness, 0.05)[..., None]
        lifted = 0.52 + 0.48 * np.clip(brightness, 0, 1)
        wash = np.clip(hue * lifted[..., None], 0, 1) * rgb(PAPER)
        wash = np.float32(0.86) * wash + np.float32(0.14) * rgb(PAPER)
        ink = np.zeros_like(brightness)
        for limit, slope, count in HATCHES:
            along = self.y + self.x * np.float32(slope) + 0.011 * self.wobble
            spacing = math.hypot(1, slope) * count / 1.6
            phase = along * np.float32(spacing)
            phase = np.abs(phase - np.floor(phase) - 0.5)
            darkness = np.clip((limit - brightness) / 0.12, 0, 1)
            thickness = 0.07 + 0.09 * darkness
            edge = np.float32(spacing * self.px)
            line = np.clip(0.5 - (phase - thickness) / edge, 0, 1)
            np.maximum(ink, 0.5 * line * darkness, out=ink)
        np.maximum(ink, np.clip((0.10 - brightness) / 0.06, 0, 1), out=ink)
        np.maximum(ink, self.lines, out=ink)
        self.image[:] = wash + ink[..., None] * (rgb(INK) - wash)

    def banded(self) -> Array:
        """The rows' coordinates in steps, of which a flat sky is made."""
        return (np.floor(self.y * BANDS) / BANDS).astype(np.float32)


def value_noise(
    rng: np.random.Generator, x: Array, y: Array, cells: tuple[int, int], octaves: int
) -> Array:
    """Smooth noise (H, W) around 0, mostly within 1.

    Args:
        rng: makes the numbers at the points of the lattices.
        x, y: coordinates, (1, W) and (H, 1), from 0 to 1.
        cells: rows and columns of the coarsest lattice.
        octaves: lattices that are added, each twice as fine as the one before.

    Source: the lattice noise of "Texturing and Modeling: A Procedural Approach" (Ebert et al.),
    chapter 2, interpolated by smoothsteps.
    """
    total = np.zeros((y.size, x.size), np.float32)
    for octave in range(octaves):
        counts = [n * 2**octave for n in cells]
        lattice = rng.uniform(-1, 1, (counts[0] + 2, counts[1] + 2)).astype(np.float32)
        down, across = (
            _weights(coordinate.ravel(), count + 2, count)
            for coordinate, count in zip((y, x), counts, strict=True)
        )
        total += down @ (lattice * np.float32(0.6**octave)) @ across.T
    return total


def _weights(coordinate: Array, points: int, count: int) -> Array:
    """How much each point of a lattice counts at each coordinate, (coordinates, points)."""
    place = coordinate * np.float32(count)
    cell = place.astype(np.int64)
    part = place - cell
    smooth = part * part * (3 - 2 * part)
    weights = np.zeros((len(coordinate), points), np.float32)
    rows = np.arange(len(coordinate))
    weights[rows, cell] = 1 - smooth
    weights[rows, cell + 1] = smooth
    return weights
