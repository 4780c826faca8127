"""Shapes as signed distances, and the coordinates that subjects are drawn in.

Image coordinates are x to the right and y downwards, both in [0, 1]. A subject has its own frame
with u to the right, v upwards and its height as the unit. Coverage is the distance clamped to one
pixel, which smooths edges without supersampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scripts.demo.scenes.light import Array

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """A bounding box (x0, y0, x1, y1) and a signed distance, negative inside."""

    bounds: tuple[float, float, float, float]
    distance: Callable[[Array, Array], Array]


def polygon(points: Sequence[Point]) -> Shape:
    """A convex polygon: the largest of its edges' half-plane distances."""
    xs = [p[0] for p in points]
    ys = [p[1] for p in points]
    area = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(points)))
    edges = []
    for i in range(len(points)):
        dx, dy = xs[i] - xs[i - 1], ys[i] - ys[i - 1]
        scale = math.copysign(1 / max(math.hypot(dx, dy), 1e-9), area)
        edges.append((dy * scale, -dx * scale, xs[i], ys[i]))

    def distance(x: Array, y: Array) -> Array:
        nx, ny, px, py = edges[0]
        d = nx * (x - px) + ny * (y - py)
        for nx, ny, px, py in edges[1:]:
            np.maximum(d, nx * (x - px) + ny * (y - py), out=d)
        return d

    return Shape((min(xs), min(ys), max(xs), max(ys)), distance)


def ellipse(cx: float, cy: float, rx: float, ry: float) -> Shape:
    """An upright ellipse, around its centre."""
    small = min(rx, ry)

    def distance(x: Array, y: Array) -> Array:
        return (np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2) - 1) * small

    return Shape((cx - rx, cy - ry, cx + rx, cy + ry), distance)


def capsule(a: Point, b: Point, ra: float, rb: float) -> Shape:
    """A line from ``a`` to ``b`` whose radius goes from ``ra`` to ``rb``."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    square = max(dx * dx + dy * dy, 1e-9)

    def distance(x: Array, y: Array) -> Array:
        t = np.clip(((x - a[0]) * dx + (y - a[1]) * dy) / square, 0, 1)
        return np.hypot(x - a[0] - t * dx, y - a[1] - t * dy) - (ra + t * (rb - ra))

    r = max(ra, rb)
    bounds = (min(a[0], b[0]) - r, min(a[1], b[1]) - r, max(a[0], b[0]) + r, max(a[1], b[1]) + r)
    return Shape(bounds, distance)


def without(shape: Shape, hole: Shape) -> Shape:
    """What is left of a shape where another is cut out of it."""
    return Shape(shape.bounds, lambda x, y: np.maximum(shape.distance(x, y), -hole.distance(x, y)))


@dataclass(frozen=True)
class Frame:
    """A subject's own coordinates: u to the right (left if mirrored), v up, unit its height."""

    x: float
    y: float
    height: float
    mirror: float = 1.0

    def at(self, u: float, v: float) -> Point:
        """The image coordinates of a point of the frame."""
        return self.x + self.mirror * u * self.height, self.y - v * self.height

    def polygon(self, *points: Point) -> Shape:
        """A convex polygon."""
        return polygon([self.at(*p) for p in points])

    def box(self, u0: float, v0: float, u1: float, v1: float) -> Shape:
        """An upright rectangle between two corners."""
        return self.polygon((u0, v0), (u1, v0), (u1, v1), (u0, v1))

    def ellipse(self, u: float, v: float, ru: float, rv: float) -> Shape:
        """An upright ellipse, around its centre."""
        return ellipse(*self.at(u, v), ru * self.height, rv * self.height)

    def line(self, a: Point, b: Point, width: float, end_width: float | None = None) -> Shape:
        """A line that may become narrower or wider towards its end."""
        end = width if end_width is None else end_width
        return capsule(self.at(*a), self.at(*b), width * self.height / 2, end * self.height / 2)
