"""The ten subjects. Each function draws one in its frame, whose base stands on the ground.

In all of them ``p`` is the painter, ``f`` the subject's frame, and ``paint`` the colour that the
scene asks for, which subjects without a colour ignore.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scripts.demo.scenes.geometry import Frame, Point, Shape, ellipse, polygon
from scripts.demo.scenes.light import (
    GLASS,
    PAINT,
    RGB,
    SLATE,
    SNOW_COVER,
    STONE,
    TRIM,
    WARM,
    WOOD,
    Array,
    mix,
    rgb,
)
from scripts.demo.scenes.painter import Painter


def draw_window_pane(p: Painter, shape: Shape) -> None:
    """Draw a pane of glass that is lit at night."""
    p.lamp(shape, GLASS)


def draw_snow_cap(p: Painter, *shapes: Shape) -> None:
    """Draw snow on shapes, if it snows."""
    if p.weather == "snow":
        for shape in shapes:
            p.solid(shape, SNOW_COVER, 0.5)


def _lighthouse(p: Painter, f: Frame, paint: RGB) -> None:
    lamp = f.at(0, 0.815)
    if p.lamps > 0:
        tilt, spread = p.uniform(-0.14, 0.14), p.uniform(0.17, 0.25)
        strength = (0.50 if p.weather == "clear" else 0.60) * p.lamps
        p.beam(lamp, tilt, spread, strength)
        p.beam(lamp, tilt + math.pi, spread, strength)
    rock = SNOW_COVER if p.weather == "snow" else (0.42, 0.37, 0.34)
    low = (0.34, 0.31, 0.30)
    p.solid(f.ellipse(0.02, -0.08, 0.50, 0.115), low)
    p.solid(f.ellipse(-0.05, -0.025, 0.36, 0.085), rock)

    def half(v: float) -> float:
        return 0.160 - 0.065 * v / 0.72

    def ring(v0: float, v1: float) -> Shape:
        return f.polygon((-half(v0), v0), (half(v0), v0), (half(v1), v1), (-half(v1), v1))

    p.solid(ring(0, 0.72), paint)
    if paint != PAINT["white"]:
        for v in (0.15, 0.43):
            p.solid(ring(v, v + 0.14), TRIM)
    p.solid(f.box(-0.035, 0.01, 0.035, 0.115), SLATE)
    p.solid(f.box(-0.135, 0.715, 0.135, 0.752), SLATE)
    p.lamp(f.box(-0.078, 0.752, 0.078, 0.875), (0.80, 0.88, 0.92), (1.0, 0.95, 0.68))
    roof = SLATE if paint == PAINT["white"] else paint
    p.solid(f.polygon((-0.105, 0.87), (0.105, 0.87), (0.0, 0.985)), roof)
    draw_snow_cap(p, f.polygon((-0.06, 0.925), (0.06, 0.925), (0.0, 0.99)))
    if p.lamps > 0:
        p.glow(lamp, 0.30 * f.height, 0.85 * p.lamps)
        p.glow(lamp, 0.11 * f.height, 0.8 * p.lamps, (1.0, 0.97, 0.80))


def draw_shadow(p: Painter, f: Frame, half: float, v: float = 0.0) -> None:
    """The soft darkness under a thing that stands on the ground."""
    colour = p.shade * p.ground_tone * np.float32(0.55)
    p.flat(f.ellipse(0, v, half, 0.045), colour, 0.6, soft=0.014)


def _house(p: Painter, f: Frame, paint: RGB) -> None:
    roof = (0.40, 0.24, 0.20) if paint != PAINT["red"] else SLATE
    gable = p.rng.random() < 0.5
    draw_shadow(p, f, 0.56)
    p.solid(f.box(0.22, 0.62, 0.34, 0.98), (0.55, 0.34, 0.28), 0.6)
    draw_snow_cap(p, f.box(0.21, 0.95, 0.35, 1.0))
    p.solid(f.box(-0.50, 0.0, 0.50, 0.56), paint, 0.7)
    if gable:
        p.solid(f.polygon((-0.50, 0.55), (0.50, 0.55), (0.0, 0.94)), paint, 0.7)
        for side in (-1, 1):
            p.solid(f.line((0, 0.94), (side * 0.57, 0.50), 0.10), roof, 0.4)
            draw_snow_cap(p, f.line((0, 0.97), (side * 0.57, 0.535), 0.07))
        draw_window_pane(p, f.ellipse(0, 0.66, 0.085, 0.085))
    else:
        p.solid(f.polygon((-0.60, 0.52), (0.60, 0.52), (0.42, 0.90), (-0.42, 0.90)), roof, 0.5)
        draw_snow_cap(p, f.polygon((-0.545, 0.64), (0.545, 0.64), (0.42, 0.92), (-0.42, 0.92)))
    p.solid(f.box(-0.10, 0.0, 0.10, 0.33), WOOD, 0.5)
    for u in (-0.32, 0.32):
        p.solid(f.box(u - 0.125, 0.17, u + 0.125, 0.43), TRIM, 0.4)
        draw_window_pane(p, f.box(u - 0.095, 0.20, u + 0.095, 0.40))
        if p.lamps > 0:
            p.glow(f.at(u, 0.30), 0.34 * f.height, 0.55 * p.lamps)


def _boat(p: Painter, f: Frame, paint: RGB) -> None:
    p.solid(f.box(-0.012, 0.10, 0.022, 1.0), WOOD)
    p.solid(f.polygon((0.045, 0.20), (0.045, 0.97), (0.50, 0.20)), paint, 0.8)
    p.solid(f.polygon((-0.04, 0.20), (-0.04, 0.84), (-0.38, 0.20)), np.array(paint) * 0.88, 0.8)
    hull = (0.44, 0.26, 0.16)
    p.solid(f.polygon((-0.46, 0.15), (0.54, 0.15), (0.36, -0.04), (-0.34, -0.04)), hull, 0.6)
    p.solid(f.polygon((-0.47, 0.155), (0.55, 0.155), (0.51, 0.105), (-0.43, 0.105)), TRIM, 0.5)
    p.flat(f.ellipse(0.0, -0.05, 0.50, 0.028), p.ambient * rgb((0.62, 0.78, 0.86)), 0.6, 0.008)
    if p.lamps > 0:
        lamp = f.at(-0.40, 0.22)
        p.flat(ellipse(*lamp, 0.032 * f.height, 0.032 * f.height), (1.0, 0.93, 0.65))
        p.glow(lamp, 0.36 * f.height, 0.75 * p.lamps)
        p.glow(f.at(-0.40, -0.12), 0.22 * f.height, 0.35 * p.lamps)


def _castle(p: Painter, f: Frame, paint: RGB) -> None:
    stone = mix(STONE, paint, 0.10)
    if p.weather == "snow":
        p.flat(f.ellipse(0, -0.16, 0.95, 0.24), p.ambient * rgb(SNOW_COVER))
    else:
        p.solid(f.ellipse(0, -0.16, 0.95, 0.24), p.ground_tone * np.float32(0.85), 0.6)

    def tower(u: float, half: float, top: float, roof: float, bottom: float = 0.0) -> None:
        p.solid(f.box(u - half, bottom, u + half, top), stone)
        tip = (u, top + roof)
        p.solid(f.polygon((u - half * 1.35, top), (u + half * 1.35, top), tip), paint)
        snow = f.polygon(
            (u - half * 0.68, top + roof * 0.5), (u + half * 0.68, top + roof * 0.5), tip
        )
        draw_snow_cap(p, snow)

    def banner(u: float, v: float) -> None:
        p.solid(f.line((u, v - 0.03), (u, v + 0.13), 0.016), SLATE)
        p.solid(f.polygon((u, v + 0.135), (u + 0.13, v + 0.095), (u, v + 0.05)), paint, 0.4)

    tower(0.0, 0.135, 0.64, 0.25, 0.30)
    banner(0.0, 0.865)
    p.solid(f.box(-0.38, 0.0, 0.38, 0.36), np.asarray(stone) * 0.93, 0.6)
    for u in (-0.20, -0.07, 0.07, 0.20):
        p.solid(f.box(u - 0.035, 0.355, u + 0.035, 0.41), np.asarray(stone) * 0.93, 0.3)
    left, right = p.uniform(0.46, 0.54), p.uniform(0.46, 0.54)
    tower(-0.40, 0.115, left, 0.24)
    tower(0.40, 0.115, right, 0.24)
    p.solid(f.box(-0.085, 0.0, 0.085, 0.14), (0.25, 0.17, 0.13), 0.4)
    p.solid(f.ellipse(0, 0.14, 0.085, 0.08), (0.25, 0.17, 0.13), 0.4)
    for u, v in ((0.0, 0.52), (-0.40, left - 0.14), (0.40, right - 0.14)):
        draw_window_pane(p, f.box(u - 0.036, v - 0.055, u + 0.036, v + 0.055))
        if p.lamps > 0:
            p.glow(f.at(u, v), 0.24 * f.height, 0.6 * p.lamps)


def _windmill(p: Painter, f: Frame, paint: RGB) -> None:
    draw_shadow(p, f, 0.27)
    p.solid(f.polygon((-0.22, 0.0), (0.22, 0.0), (0.125, 0.60), (-0.125, 0.60)), paint)
    p.solid(f.ellipse(0, 0.61, 0.150, 0.115), (0.36, 0.24, 0.20))
    draw_snow_cap(p, f.ellipse(0, 0.665, 0.115, 0.065))
    p.solid(f.box(-0.055, 0.0, 0.055, 0.15), WOOD, 0.5)
    draw_window_pane(p, f.box(-0.05, 0.30, 0.05, 0.41))
    if p.lamps > 0:
        p.glow(f.at(0, 0.355), 0.20 * f.height, 0.6 * p.lamps)
    hub = (0.0, 0.60)
    start = p.uniform(0.10, math.pi / 2 - 0.10)
    for k in range(4):
        angle = start + k * math.pi / 2
        c, s = math.cos(angle), math.sin(angle)

        def blade(along: float, across: float, c: float = c, s: float = s) -> Point:
            return hub[0] + c * along - s * across, hub[1] + s * along + c * across

        sail = f.polygon(
            blade(0.10, 0.012), blade(0.415, 0.012), blade(0.415, 0.115), blade(0.10, 0.095)
        )
        p.solid(sail, (0.93, 0.87, 0.74), 0.3)
        p.solid(f.line(hub, blade(0.425, 0.0), 0.034), WOOD, 0.3)
    p.solid(f.ellipse(*hub, 0.042, 0.042), WOOD)


def _balloon(p: Painter, f: Frame, paint: RGB) -> None:
    # Ropes, basket, then the envelope with paler gores.
    for u in (-0.075, 0.075):
        p.solid(f.line((u, 0.10), (u * 2.2, 0.32), 0.018), WOOD)
    pale = mix(paint, TRIM, 0.62) if paint != PAINT["white"] else rgb((0.80, 0.80, 0.82))
    p.solid(f.polygon((-0.30, 0.45), (0.30, 0.45), (0.11, 0.22), (-0.11, 0.22)), paint)
    p.solid(f.ellipse(0, 0.645, 0.355, 0.355), paint)
    p.solid(f.ellipse(0, 0.645, 0.145, 0.352), pale)
    p.solid(f.polygon((-0.132, 0.50), (0.132, 0.50), (0.045, 0.22), (-0.045, 0.22)), pale)
    p.solid(f.box(-0.11, 0.0, 0.11, 0.13), (0.55, 0.36, 0.20), 0.7)
    draw_snow_cap(p, f.ellipse(0, 0.955, 0.17, 0.045))
    if p.lamps > 0:
        p.flat(f.ellipse(0, 0.185, 0.028, 0.048), (1.0, 0.90, 0.55))
        p.glow(f.at(0, 0.22), 0.26 * f.height, 0.75 * p.lamps)
        # The burner lights the envelope from within.
        p.glow(f.at(0, 0.48), 0.42 * f.height, 0.42 * p.lamps, tuple(mix(paint, WARM, 0.35)))


def _robot(p: Painter, f: Frame, _: RGB) -> None:
    rust, dark, pale = (0.70, 0.36, 0.18), (0.44, 0.24, 0.15), (0.80, 0.52, 0.32)
    draw_shadow(p, f, 0.30)
    for u in (-0.12, 0.12):
        p.solid(f.line((u, 0.30), (u, 0.06), 0.10), dark)
        p.solid(f.box(u - 0.095, 0.0, u + 0.095, 0.07), dark)
    p.solid(f.line((-0.25, 0.56), (-0.35, 0.34), 0.085), dark)
    p.solid(f.ellipse(-0.355, 0.31, 0.055, 0.055), rust)
    p.solid(f.box(-0.245, 0.27, 0.245, 0.63), rust)
    for _i in range(3):  # patches of deeper rust
        u, v = p.uniform(-0.16, 0.16), p.uniform(0.32, 0.58)
        p.flat(f.ellipse(u, v, 0.06, 0.045), p.ambient * rgb(dark), 0.55, soft=0.008)
    p.solid(f.ellipse(0, 0.47, 0.085, 0.085), pale, 0.5)
    p.solid(f.box(-0.055, 0.62, 0.055, 0.68), dark)
    p.solid(f.box(-0.17, 0.67, 0.17, 0.91), rust)
    p.solid(f.line((0, 0.90), (0, 0.965), 0.024), dark)
    p.solid(f.ellipse(0, 0.975, 0.032, 0.032), pale)
    p.flat(f.box(-0.14, 0.77, 0.14, 0.86), p.ambient * rgb((0.20, 0.13, 0.11)))
    for u in (-0.07, 0.07):
        p.lamp(f.ellipse(u, 0.815, 0.036, 0.036), (0.80, 0.95, 0.92), (0.70, 1.0, 0.92))
        if p.lamps > 0:
            p.glow(f.at(u, 0.815), 0.10 * f.height, 0.4 * p.lamps, (0.5, 0.95, 0.9))
    p.solid(f.box(-0.085, 0.705, 0.085, 0.735), dark, 0.4)
    p.solid(f.line((0.25, 0.57), (0.40, 0.52), 0.085), dark)
    p.solid(f.line((0.40, 0.52), (0.42, 0.66), 0.080), rust)
    p.solid(f.line((0.42, 0.60), (0.45, 0.84), 0.040, 0.065), WOOD)
    p.solid(f.ellipse(0.42, 0.67, 0.055, 0.055), rust)
    draw_snow_cap(p, f.box(-0.17, 0.895, 0.17, 0.925), f.box(-0.25, 0.62, -0.07, 0.645))
    flame = f.at(0.452, 0.925)
    p.flat(f.ellipse(0.452, 0.905, 0.072, 0.085), (1.0, 0.50, 0.10))
    p.flat(f.polygon((0.388, 0.93), (0.516, 0.93), (0.465, 1.06)), (1.0, 0.50, 0.10))
    p.flat(f.ellipse(0.452, 0.895, 0.042, 0.055), (1.0, 0.88, 0.40), soft=0.006)
    strength = 0.25 + 0.55 * p.lamps
    if p.lamps > 0:
        p.glow(f.at(0.16, 0.68), 0.50 * f.height, 0.24 * p.lamps, (1.0, 0.55, 0.22))
    p.glow(flame, (0.24 + 0.22 * p.lamps) * f.height, strength, (1.0, 0.66, 0.26))


def _trees(p: Painter, f: Frame, _: RGB) -> None:
    def fir(u: float, v: float, height: float, green: Array) -> None:
        wide = 0.26 * height
        p.solid(f.box(u - 0.035 * height, v, u + 0.035 * height, v + 0.18 * height), WOOD)
        for k, (low, top, part) in enumerate(
            ((0.12, 0.56, 1.0), (0.36, 0.78, 0.78), (0.60, 1.0, 0.54))
        ):
            tone = green * np.float32(0.88 + 0.10 * k)
            b, t, w = v + low * height, v + top * height, wide * part
            p.solid(f.polygon((u - w, b), (u + w, b), (u, t)), tone)
            m = b + (t - b) * 0.45
            draw_snow_cap(p, f.polygon((u - w * 0.55, m), (u + w * 0.55, m), (u, t)))

    green = rgb((0.16 + p.uniform(-0.03, 0.05), 0.44, 0.22 + p.uniform(-0.04, 0.04)))
    far = mix(green, (0.40, 0.52, 0.56), 0.45)
    # A far row across the image, then three large ones, the tallest in the middle.
    spacing = 0.34
    shift = p.uniform(0, spacing)
    for k in range(-3, 4):
        fir(k * spacing + shift - spacing / 2, 0.08, p.uniform(0.44, 0.58), far)
    for u, height in ((-0.42, p.uniform(0.66, 0.80)), (0.44, p.uniform(0.62, 0.78)), (0.0, 1.0)):
        fir(u + p.uniform(-0.04, 0.04), p.uniform(-0.06, -0.01), height, green)


def _mountains(p: Painter, f: Frame, _: RGB) -> None:
    rock = rgb((0.50, 0.50, 0.58)) if p.weather != "snow" else rgb((0.74, 0.78, 0.86))
    sun = p.sun_side * f.mirror

    def peak(u: float, height: float, half: float, fade: float) -> None:
        tone = p.distance_haze(rock * p.ambient, fade)
        lit, dark = tone * np.float32(1.12), tone * np.float32(0.74)
        snow_lit = p.distance_haze(rgb(SNOW_COVER) * p.lit, fade * 0.6)
        snow_dark = p.distance_haze(rgb(SNOW_COVER) * p.shade, fade * 0.6)
        tip, foot = (u, height), u + sun * 0.10 * half
        snow = 0.62 if p.weather != "snow" else 0.38
        for side in (-1, 1):
            bright = side == sun
            p.flat(f.polygon(tip, (u + side * half, -0.1), (foot, -0.1)), lit if bright else dark)
            edge = (u + side * half * (1 - snow) * height / (height + 0.1), height * snow)
            inner = (u + (foot - u) * (1 - snow), height * (snow - 0.07))
            p.flat(f.polygon(tip, edge, inner), snow_lit if bright else snow_dark)

    peak(-0.62 + p.uniform(-0.08, 0.08), p.uniform(0.58, 0.72), 0.55, 0.22)
    peak(0.64 + p.uniform(-0.08, 0.08), p.uniform(0.54, 0.70), 0.55, 0.22)
    peak(0.0, 1.0, 0.66, 0.06)
    peak(p.uniform(0.28, 0.42), p.uniform(0.46, 0.58), 0.46, 0.0)


def _cat(p: Painter, f: Frame, _: RGB) -> None:
    wall = (0.58, 0.46, 0.40)
    base = f.at(0, 0)
    low, high = base[1], base[1] + 0.13
    p.solid(polygon([(-0.1, low), (1.1, low), (1.1, 1.1), (-0.1, 1.1)]), np.array(wall) * 0.82, 0.3)
    coping = SNOW_COVER if p.weather == "snow" else np.array(wall) * 1.25
    p.solid(
        polygon([(-0.1, low - 0.02), (1.1, low - 0.02), (1.1, high - 0.075), (-0.1, high - 0.075)]),
        coping,
        0.3,
    )
    draw_cat(p, f)


def draw_cat(p: Painter, f: Frame) -> None:
    """Draw a sitting cat, without what it sits on."""
    fur, deep, cream = (0.90, 0.52, 0.20), (0.72, 0.37, 0.13), (0.98, 0.88, 0.74)
    p.solid(f.line((0.20, 0.07), (0.44, 0.13), 0.11), deep)
    p.solid(f.line((0.44, 0.13), (0.47, 0.36), 0.11, 0.09), deep)
    p.solid(f.ellipse(0, 0.25, 0.275, 0.27), fur)
    p.solid(f.ellipse(0, 0.42, 0.205, 0.26), fur)
    p.solid(f.ellipse(0, 0.36, 0.105, 0.19), cream, 0.6)
    for u in (-0.10, 0.10):
        p.solid(f.ellipse(u, 0.035, 0.085, 0.055), cream, 0.6)
    for side in (-1, 1):
        ear = ((side * 0.235, 0.78), (side * 0.05, 0.87), (side * 0.205, 1.0))
        p.solid(f.polygon(*ear), fur)
        p.solid(f.polygon((side * 0.205, 0.82), (side * 0.11, 0.86), (side * 0.19, 0.94)), deep)
    p.solid(f.ellipse(0, 0.715, 0.255, 0.195), fur)
    p.solid(f.ellipse(0, 0.635, 0.115, 0.085), cream, 0.6)
    for u in (-0.115, 0.115):
        shine = (0.62, 0.86, 0.34)
        p.lamp(f.ellipse(u, 0.745, 0.052, 0.058), shine, (0.80, 1.0, 0.42))
        p.flat(f.ellipse(u, 0.745, 0.020, 0.050), (0.05, 0.05, 0.05))
    p.flat(f.polygon((-0.032, 0.680), (0.032, 0.680), (0.0, 0.645)), (0.45, 0.18, 0.16))


@dataclass(frozen=True)
class Staging:
    """How a subject is set into the image.

    Attributes:
        draw: draws it, in its frame and colour.
        low, high: range of its height.
        ground: "land", "sea" or "air".
        roam: how far from the middle it may stand.
        base: range of how far below the horizon its foot is.
    """

    draw: Callable[[Painter, Frame, RGB], None]
    low: float
    high: float
    ground: str
    roam: float = 0.15
    base: tuple[float, float] = (0.04, 0.14)


STAGINGS: dict[str, Staging] = {
    "lighthouse": Staging(_lighthouse, 0.64, 0.80, "sea", base=(0.04, 0.10)),
    "house": Staging(_house, 0.46, 0.60, "land", roam=0.13),
    "boat": Staging(_boat, 0.54, 0.72, "sea", base=(0.08, 0.16)),
    "castle": Staging(_castle, 0.58, 0.74, "land", roam=0.10, base=(0.02, 0.10)),
    "windmill": Staging(_windmill, 0.62, 0.80, "land", roam=0.12),
    "balloon": Staging(_balloon, 0.56, 0.72, "air"),
    "robot": Staging(_robot, 0.62, 0.78, "land", roam=0.10, base=(0.10, 0.18)),
    "trees": Staging(_trees, 0.60, 0.76, "land", roam=0.15, base=(0.06, 0.14)),
    "mountains": Staging(_mountains, 0.48, 0.60, "land", roam=0.15, base=(-0.02, 0.0)),
    "cat": Staging(_cat, 0.56, 0.72, "land", roam=0.15, base=(0.12, 0.18)),
}
