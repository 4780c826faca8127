"""The canvas that a scene is drawn on: pixels, light, and the shapes and veils that cover them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from scripts.demo.scenes.geometry import Point, Shape
from scripts.demo.scenes.light import LIGHTS, RGB, SNOW_COVER, WARM, Array, mix, rgb


class Setting(Protocol):
    """What a painter has to know of a scene."""

    @property
    def time(self) -> str:
        """The time of day."""

    @property
    def weather(self) -> str:
        """The weather."""

    @property
    def seed(self) -> int:
        """What fixes the composition."""


class Painter:
    """An image in progress: pixels, light, weather, and the glows to be added at the end.

    Attributes:
        scene: what is drawn.
        rng: makes all random choices of the composition, in the order in which things are drawn.
        size: pixels a side.
        image: (size, size, 3) float32, from 0 to 1.
        x, y: coordinates of the pixels' centres, (1, size) and (size, 1).
        lit, shade, ambient: what a surface's colour is multiplied by on the sun's side, on the
            other side, and without a side.
        lamps: how much artificial light shows, from 0 by day to 1 at dark.
        sun_side: 1 if the sun or moon stands on the right, -1 on the left.
        mist: colour of the fog at each height.
    """

    scene: Setting

    def __init__(self, scene: Setting, size: int) -> None:
        self.scene = scene
        self.rng = np.random.default_rng(scene.seed)
        self.size = size
        self.px = 1.0 / size
        centres = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.x: Array = centres[None, :]
        self.y: Array = centres[:, None]
        self.image = np.zeros((size, size, 3), np.float32)
        self.light = LIGHTS[scene.time]
        self.weather = scene.weather
        self.lamps = self.light.lamps
        self.sun_side = -1.0 if self.rng.random() < 0.5 else 1.0
        dim = {"clear": 1.0, "fog": 1.0, "rain": 0.86, "snow": 0.97}[scene.weather]
        # Clouds and fog scatter the light, so the two sides of a thing look more alike.
        spread = {"clear": 0.0, "fog": 0.3, "rain": 0.35, "snow": 0.25}[scene.weather]
        self.lit = mix(self.light.lit, self.light.shade, spread) * dim
        self.shade = mix(self.light.shade, self.light.lit, spread * 0.5) * dim
        self.ambient = (self.lit + self.shade) / 2
        self.ground_tone = self._ground_tone()
        # Fog is a little of the sky's colour at the top and brightest low down.
        rise = np.clip(self.y, 0, 1)[..., None]
        above = mix(self.light.mist, self.light.top, 0.10 if scene.time == "noon" else 0.26)
        below = mix(self.light.mist, self.light.low, 0.16)
        self.mist = above + rise * (below - above)
        self.glows: list[tuple[float, float, float, Array]] = []

    def uniform(self, low: float, high: float) -> float:
        """A random number from ``low`` to ``high``."""
        return float(self.rng.uniform(low, high))

    def _window(
        self, bounds: tuple[float, float, float, float], pad: float
    ) -> tuple[slice, slice] | None:
        n = self.size
        x0 = max(math.floor((bounds[0] - pad) * n), 0)
        y0 = max(math.floor((bounds[1] - pad) * n), 0)
        x1 = min(math.ceil((bounds[2] + pad) * n), n)
        y1 = min(math.ceil((bounds[3] + pad) * n), n)
        if x0 >= x1 or y0 >= y1:
            return None
        return slice(y0, y1), slice(x0, x1)

    def flat(
        self, shape: Shape, colour: Sequence[float] | Array, opacity: float = 1.0, soft: float = 0.0
    ) -> None:
        """Cover a shape with one colour; ``soft`` widens its edge, in image coordinates."""
        window = self._window(shape.bounds, self.px + soft)
        if window is None:
            return
        rows, columns = window
        d = shape.distance(self.x[:, columns], self.y[rows])
        edge = 1.15 * self.px + 2 * soft
        cover = np.clip(0.5 - d / edge, 0, 1)
        if soft:
            cover *= cover * (3 - 2 * cover)
        region = self.image[rows, columns]
        region += (cover * np.float32(opacity))[..., None] * (rgb(colour) - region)

    def solid(self, shape: Shape, albedo: Sequence[float] | Array, turn: float = 1.0) -> None:
        """Cover a shape with a lit material, brighter on the side of the sun.

        ``turn`` scales the contrast between the sides: 1 for round things, less for flat ones.
        """
        window = self._window(shape.bounds, self.px)
        if window is None:
            return
        rows, columns = window
        x = self.x[:, columns]
        d = shape.distance(x, self.y[rows])
        cover = np.clip(0.5 - d / (1.15 * self.px), 0, 1)
        x0, x1 = shape.bounds[0], shape.bounds[2]
        across = np.clip((x - x0) / max(x1 - x0, self.px), 0, 1)
        facing = across if self.sun_side > 0 else 1 - across
        facing = 0.62 + (facing - 0.5) * 0.76 * turn
        colour = self.shade + facing[..., None] * (self.lit - self.shade)
        colour = np.minimum(colour * rgb(albedo), 1)
        region = self.image[rows, columns]
        region += cover[..., None] * (colour - region)

    def lamp(
        self, shape: Shape, off: Sequence[float], on: Sequence[float] = WARM, always: bool = False
    ) -> None:
        """Draw a pane that has the colour ``off`` by day and shines in ``on`` at dark."""
        amount = 1.0 if always else min(self.lamps * 1.2, 1.0)
        self.flat(shape, mix(rgb(off) * self.ambient, on, amount))

    def glow(self, centre: Point, radius: float, strength: float, colour: RGB = WARM) -> None:
        """Note a halo for `add_glows`, wider where fog scatters it."""
        if self.weather == "fog":
            radius *= 1.25
        self.glows.append((*centre, radius, rgb(colour) * np.float32(strength)))

    def _screen(self, rows: slice, columns: slice, light: Array) -> None:
        region = self.image[rows, columns]
        region += (1 - region) * light

    def add_glows(self) -> None:
        """Add the halos of `glow` over everything drawn so far."""
        for cx, cy, radius, light in self.glows:
            self.halo(cx, cy, radius, light)

    def halo(self, cx: float, cy: float, radius: float, light: Array) -> None:
        """Add a round glow around a point at once."""
        window = self._window((cx - radius, cy - radius, cx + radius, cy + radius), 0)
        if window is None:
            return
        rows, columns = window
        square = (self.x[:, columns] - cx) ** 2 + (self.y[rows] - cy) ** 2
        falloff = np.clip(1 - square / np.float32(radius * radius), 0, 1)
        self._screen(rows, columns, (falloff * falloff * falloff)[..., None] * light)

    def beam(self, centre: Point, angle: float, spread: float, strength: float) -> None:
        """Draw a soft wedge of light from a lamp, along ``angle`` (radians, 0 to the right)."""
        c, s = math.cos(angle), math.sin(angle)
        dx, dy = self.x - centre[0], self.y - centre[1]
        along = dx * c + dy * s
        width = np.maximum(along, 0) * spread + 0.012
        inside = np.clip(1 - np.abs(dy * c - dx * s) / width, 0, 1)
        fade = np.clip(1 - along / 1.1, 0, 1) * np.clip(along / 0.02, 0, 1)
        light = inside * (2 - inside) * fade * np.float32(strength)
        self._screen(slice(None), slice(None), light[..., None] * rgb((1.0, 0.93, 0.66)))

    def veil(self, colour: Sequence[float] | Array, amount: Array | float) -> None:
        """Mix everything drawn so far with a colour; ``amount`` is a number or (H, W or 1)."""
        if isinstance(amount, np.ndarray):
            amount = amount[..., None]
        self.image += amount * (rgb(colour) - self.image)

    def ridge(
        self,
        height: Array,
        upper: Array,
        lower: Array,
        depth: float = 0.3,
    ) -> None:
        """Fill everything below the line ``height`` (1, W), from ``upper`` to ``lower``."""
        start = max(int(float(height.min()) * self.size) - 2, 0)
        rows = slice(start, self.size)
        y = self.y[rows]
        cover = np.clip(0.5 + (y - height) / (1.3 * self.px), 0, 1)
        t = np.clip((y - height) / depth, 0, 1)[..., None]
        colour = upper + t * (lower - upper)
        region = self.image[rows]
        region += cover[..., None] * (colour - region)

    def waves(self, base: float, amplitude: float, frequency: float = 1.0) -> Array:
        """A rolling line (1, W) around the height ``base``."""
        line = np.full_like(self.x, base)
        for octave in (1.0, 2.3):
            phase = self.uniform(0, 2 * math.pi)
            rate = 2 * math.pi * frequency * octave * self.uniform(0.7, 1.2)
            line += np.float32(amplitude / octave) * np.sin(self.x * np.float32(rate) + phase)
        return line

    def dots(self, cells: int, small: float, large: float, share: float) -> Array:
        """Soft round spots (H, W) in [0, 1], at most one in each cell of a jittered grid."""
        shape = (cells, cells)
        radius = self.rng.uniform(small, large, shape).astype(np.float32)
        room = np.maximum(0.5 / cells - radius, 0) * cells
        cx = 0.5 + self.rng.uniform(-1, 1, shape).astype(np.float32) * room
        cy = 0.5 + self.rng.uniform(-1, 1, shape).astype(np.float32) * room
        # An absent spot keeps its cell but shrinks to nothing.
        radius = np.where(self.rng.random(shape) < share, radius, np.float32(1e-4))
        index = np.minimum((self.x[0] * cells).astype(np.int64), cells - 1)
        grid = np.ix_(index, index)
        fx = self.x * cells - index[None, :]
        fy = self.y * cells - index[:, None]
        square = ((fx - cx[grid]) ** 2 + (fy - cy[grid]) ** 2) / (radius[grid] * cells) ** 2
        return np.clip(1.35 * (1 - square), 0, 1)

    def distance_haze(self, colour: Array, amount: float) -> Array:
        """A far colour faded towards the light above the horizon."""
        haze = {
            "clear": self.light.low,
            "fog": self.light.mist,
            "rain": self.light.overcast,
            "snow": self.light.flurry,
        }[self.weather]
        more = {"clear": 0.0, "fog": 0.3, "rain": 0.12, "snow": 0.08}[self.weather]
        return mix(colour, haze, min(amount + more, 0.92))

    def _ground_tone(self) -> Array:
        jitter = self.uniform(-0.05, 0.05)
        if self.weather == "snow":
            return rgb(SNOW_COVER)
        grass = rgb((0.40 + jitter, 0.60, 0.25 - jitter * 0.5))
        return grass * np.float32(0.8) if self.weather == "rain" else grass
