"""The subjects that `scripts.demo.scenes.subjects` does not have.

In all of them ``p`` is the painter, ``f`` the subject's frame, and ``paint`` the colour that the
scene asks for, which subjects without a colour ignore.
"""

from __future__ import annotations

import math

import numpy as np

from scripts.demo.scenes.geometry import Frame
from scripts.demo.scenes.light import GLASS, PAINT, RGB, SLATE, SNOW_COVER, STONE, TRIM, WOOD, mix
from scripts.demo.scenes.painter import Painter
from scripts.demo.scenes.subjects import (
    STAGINGS,
    Staging,
    draw_cat,
    draw_shadow,
    draw_snow_cap,
    draw_window_pane,
)

DARK = (0.16, 0.15, 0.17)


def _tent(p: Painter, f: Frame, paint: RGB) -> None:
    draw_shadow(p, f, 0.72)
    p.solid(f.polygon((-0.66, 0.0), (0.66, 0.0), (0.0, 0.98)), np.array(paint) * 0.80)
    p.solid(f.polygon((-0.66, 0.0), (0.22, 0.0), (0.0, 0.98)), paint, 0.5)
    inside = (1.0, 0.86, 0.50) if p.lamps > 0 else DARK
    if p.lamps > 0:
        p.flat(f.polygon((-0.34, 0.0), (-0.02, 0.0), (-0.03, 0.70)), inside)
        p.glow(f.at(-0.16, 0.22), 0.62 * f.height, 0.75 * p.lamps)
    else:
        p.solid(f.polygon((-0.34, 0.0), (-0.02, 0.0), (-0.03, 0.70)), inside, 0.2)
    p.solid(f.polygon((-0.02, 0.0), (0.08, 0.0), (-0.025, 0.70)), np.array(paint) * 1.08, 0.3)
    p.solid(f.line((0, 0.94), (0, 1.06), 0.03), WOOD)
    for u in (-0.80, 0.80):
        p.solid(f.line((0, 0.96), (u, 0.0), 0.012), TRIM, 0.2)
    draw_snow_cap(p, f.polygon((-0.18, 0.70), (0.18, 0.70), (0.0, 0.99)))


def _car(p: Painter, f: Frame, paint: RGB) -> None:
    draw_shadow(p, f, 0.95, -0.01)
    p.solid(f.polygon((-0.50, 0.44), (0.52, 0.44), (0.32, 0.86), (-0.30, 0.86)), paint, 0.6)
    for u0, u1, v0, v1 in ((-0.42, -0.05, -0.26, -0.05), (0.02, 0.42, 0.02, 0.27)):
        pane = f.polygon((u0, 0.47), (u1, 0.47), (v1, 0.80), (v0, 0.80))
        p.lamp(pane, GLASS, (0.95, 0.88, 0.62))
    p.solid(f.box(-0.92, 0.16, 0.92, 0.44), paint, 0.7)
    p.solid(f.ellipse(-0.90, 0.31, 0.09, 0.13), paint, 0.6)
    p.solid(f.ellipse(0.90, 0.31, 0.09, 0.13), paint, 0.6)
    p.solid(f.box(-0.94, 0.13, 0.94, 0.19), SLATE, 0.3)
    for u in (-0.54, 0.54):
        p.solid(f.ellipse(u, 0.155, 0.20, 0.20), DARK, 0.5)
        p.solid(f.ellipse(u, 0.155, 0.095, 0.095), (0.75, 0.76, 0.78), 0.5)
    p.solid(f.box(-0.03, 0.34, 0.09, 0.375), SLATE, 0.2)
    lamp = f.at(0.94, 0.33)
    p.lamp(f.ellipse(0.94, 0.33, 0.05, 0.06), (0.95, 0.93, 0.80), (1.0, 0.97, 0.80))
    if p.lamps > 0:
        p.glow(lamp, 0.55 * f.height, 0.85 * p.lamps)
        p.glow(f.at(-0.95, 0.33), 0.26 * f.height, 0.6 * p.lamps, (1.0, 0.22, 0.14))
    draw_snow_cap(p, f.box(-0.30, 0.83, 0.32, 0.90))


def _rocket(p: Painter, f: Frame, paint: RGB) -> None:
    draw_shadow(p, f, 0.30)
    pale = (0.88, 0.89, 0.91) if paint != PAINT["white"] else (0.66, 0.68, 0.72)
    p.solid(f.box(-0.07, 0.0, 0.07, 0.12), SLATE)
    for side in (-1, 1):
        fin = ((side * 0.12, 0.10), (side * 0.12, 0.34), (side * 0.32, 0.02))
        p.solid(f.polygon(*fin), paint, 0.6)
    p.solid(f.polygon((-0.115, 0.08), (0.115, 0.08), (0.155, 0.34), (-0.155, 0.34)), pale)
    p.solid(f.box(-0.155, 0.33, 0.155, 0.60), pale)
    p.solid(f.polygon((-0.155, 0.595), (0.155, 0.595), (0.11, 0.76), (-0.11, 0.76)), pale)
    p.solid(f.polygon((-0.112, 0.755), (0.112, 0.755), (0.055, 0.90), (-0.055, 0.90)), paint)
    p.solid(f.polygon((-0.057, 0.895), (0.057, 0.895), (0.0, 1.0)), paint)
    p.solid(f.box(-0.158, 0.30, 0.158, 0.36), paint)
    p.solid(f.ellipse(0, 0.535, 0.082, 0.082), SLATE, 0.4)
    p.lamp(f.ellipse(0, 0.535, 0.058, 0.058), GLASS)
    if p.lamps > 0:
        p.glow(f.at(0, 0.535), 0.24 * f.height, 0.7 * p.lamps)
    draw_snow_cap(p, f.polygon((-0.05, 0.91), (0.05, 0.91), (0.0, 1.0)))


def _mushroom(p: Painter, f: Frame, paint: RGB) -> None:
    stem = (0.93, 0.89, 0.80)
    draw_shadow(p, f, 0.34)
    p.solid(f.line((0, 0.04), (0, 0.50), 0.34, 0.24), stem)
    p.solid(f.polygon((-0.20, 0.46), (0.20, 0.46), (0.27, 0.37), (-0.27, 0.37)), stem, 0.5)
    p.solid(f.ellipse(0, 0.545, 0.56, 0.10), mix(paint, DARK, 0.45))
    # The cap is the upper half of an ellipse.
    for k in range(7):
        a, b = math.pi * k / 7, math.pi * (k + 1) / 7
        inner, left, right = (0.0, 0.54), _on_cap(b), _on_cap(a)
        p.flat(f.polygon(inner, left, right), p.ambient * np.array(paint))
    cap = f.polygon(*[_on_cap(math.pi * k / 14) for k in range(15)])
    p.solid(cap, paint, 0.9)
    spot = (0.97, 0.95, 0.90) if paint != PAINT["white"] else (0.78, 0.66, 0.52)
    for u, v, r in (
        (0.0, 0.84, 0.085),
        (-0.27, 0.70, 0.07),
        (0.28, 0.72, 0.075),
        (0.08, 0.64, 0.05),
    ):
        p.solid(f.ellipse(u, v, r, 0.8 * r), spot, 0.5)
    draw_snow_cap(p, f.ellipse(0, 0.96, 0.26, 0.05))


def _on_cap(angle: float) -> tuple[float, float]:
    return 0.58 * math.cos(angle), 0.54 + 0.46 * math.sin(angle)


def _tulip(p: Painter, f: Frame, paint: RGB) -> None:
    leaf = (0.18, 0.52, 0.22)
    draw_shadow(p, f, 0.20)
    for side in (-1, 1):
        p.solid(f.line((0, 0.02), (side * 0.20, 0.30), 0.12, 0.10), leaf, 0.7)
        p.solid(f.line((side * 0.20, 0.30), (side * 0.25, 0.50), 0.10, 0.01), leaf, 0.7)
    p.solid(f.line((0, 0.0), (0.0, 0.62), 0.055), np.array(leaf) * 0.85)
    p.solid(f.ellipse(0, 0.72, 0.19, 0.17), np.array(paint) * 0.86)
    for side in (-1, 1):
        petal = ((side * 0.02, 0.60), (side * 0.20, 0.70), (side * 0.185, 0.98), (0.0, 0.78))
        p.solid(f.polygon(*petal), paint, 0.7)
    p.solid(
        f.polygon((-0.10, 0.66), (0.10, 0.66), (0.085, 0.84), (0.0, 1.0), (-0.085, 0.84)), paint
    )
    tips = [((s * 0.125, 0.90), (s * 0.192, 0.90), (s * 0.185, 0.98)) for s in (-1, 1)]
    for tip in (*tips, ((-0.055, 0.92), (0.055, 0.92), (0.0, 1.0))):
        draw_snow_cap(p, f.polygon(*tip))


def _dog(p: Painter, f: Frame, _: RGB) -> None:
    coat, dark, pale = (0.62, 0.42, 0.25), (0.36, 0.23, 0.14), (0.92, 0.84, 0.72)
    draw_shadow(p, f, 0.62)
    p.solid(f.line((-0.46, 0.50), (-0.70, 0.80), 0.10, 0.05), coat)
    for u in (-0.40, -0.24):
        p.solid(f.line((u, 0.34), (u - 0.02, 0.05), 0.13, 0.09), np.array(coat) * 0.88)
    for u in (0.20, 0.36):
        p.solid(f.line((u, 0.36), (u, 0.05), 0.12, 0.09), coat)
    p.solid(f.line((-0.34, 0.46), (0.26, 0.48), 0.36, 0.38), coat)
    p.solid(f.ellipse(-0.06, 0.50, 0.20, 0.13), dark, 0.6)
    p.solid(f.line((0.28, 0.52), (0.46, 0.74), 0.26, 0.22), coat)
    p.solid(f.ellipse(0.50, 0.80, 0.21, 0.18), coat)
    p.solid(f.line((0.58, 0.74), (0.78, 0.70), 0.17, 0.12), pale)
    p.solid(f.ellipse(0.845, 0.725, 0.045, 0.04), DARK, 0.3)
    p.solid(f.line((0.38, 0.90), (0.30, 0.66), 0.13, 0.10), dark)
    p.flat(f.ellipse(0.575, 0.845, 0.030, 0.034), (0.05, 0.04, 0.04))
    p.solid(f.line((0.36, 0.62), (0.52, 0.60), 0.05), (0.80, 0.16, 0.14), 0.5)
    if p.lamps > 0:
        p.flat(f.ellipse(0.575, 0.845, 0.016, 0.018), (0.95, 0.92, 0.70))


def _sheep(p: Painter, f: Frame, _: RGB) -> None:
    wool, face = (0.94, 0.92, 0.87), (0.20, 0.18, 0.19)
    draw_shadow(p, f, 0.60)
    for u in (-0.32, -0.14, 0.16, 0.32):
        p.solid(f.line((u, 0.30), (u, 0.03), 0.085), face)
    for k in range(9):
        angle = 2 * math.pi * k / 9
        p.solid(f.ellipse(0.46 * math.cos(angle), 0.52 + 0.25 * math.sin(angle), 0.17, 0.16), wool)
    p.solid(f.ellipse(0.0, 0.52, 0.48, 0.30), wool)
    p.solid(f.line((0.48, 0.76), (0.62, 0.54), 0.24, 0.17), face)
    p.solid(f.line((0.40, 0.78), (0.24, 0.72), 0.08, 0.05), face)
    for u, v in ((0.40, 0.88), (0.52, 0.90), (0.47, 0.95)):
        p.solid(f.ellipse(u, v, 0.095, 0.08), wool)
    p.flat(f.ellipse(0.575, 0.735, 0.028, 0.032), (0.95, 0.93, 0.85))
    p.flat(f.ellipse(0.582, 0.730, 0.014, 0.018), (0.03, 0.03, 0.03))


def _snowman(p: Painter, f: Frame, _: RGB) -> None:
    snow = np.array(SNOW_COVER) * 0.98
    draw_shadow(p, f, 0.40)
    for u, v in ((-0.62, 0.74), (0.62, 0.76)):
        p.solid(f.line((math.copysign(0.14, u), 0.52), (u, v), 0.030, 0.018), WOOD)
        p.solid(f.line((u * 0.86, v - 0.035), (u * 0.98, v + 0.09), 0.016), WOOD)
    p.solid(f.ellipse(0, 0.20, 0.32, 0.235), snow)
    p.solid(f.ellipse(0, 0.50, 0.24, 0.20), snow)
    p.solid(f.ellipse(0, 0.735, 0.17, 0.15), snow)
    for v in (0.43, 0.51, 0.59):
        p.flat(f.ellipse(0, v, 0.024, 0.024), p.ambient * np.array(DARK))
    for u in (-0.06, 0.06):
        p.flat(f.ellipse(u, 0.775, 0.022, 0.024), p.ambient * np.array(DARK))
    p.solid(f.polygon((0.0, 0.755), (0.0, 0.705), (0.20, 0.715)), (1.0, 0.50, 0.10), 0.4)
    p.solid(f.line((-0.15, 0.62), (0.15, 0.62), 0.075), (0.80, 0.14, 0.14), 0.7)
    p.solid(f.line((0.10, 0.62), (0.15, 0.44), 0.07, 0.06), (0.80, 0.14, 0.14), 0.5)
    p.solid(f.box(-0.21, 0.835, 0.21, 0.872), DARK, 0.6)
    p.solid(f.box(-0.135, 0.86, 0.135, 1.0), DARK, 0.6)
    p.solid(f.box(-0.137, 0.872, 0.137, 0.902), (0.80, 0.14, 0.14), 0.5)


def _church(p: Painter, f: Frame, _: RGB) -> None:
    wall, roof = (0.90, 0.87, 0.80), (0.44, 0.22, 0.18)
    draw_shadow(p, f, 0.52)
    p.solid(f.box(-0.14, 0.0, 0.46, 0.30), wall, 0.6)
    p.solid(f.polygon((-0.16, 0.29), (0.50, 0.29), (0.42, 0.50), (-0.10, 0.50)), roof, 0.5)
    draw_snow_cap(p, f.polygon((-0.13, 0.37), (0.47, 0.37), (0.42, 0.515), (-0.10, 0.515)))
    p.solid(f.box(-0.40, 0.0, -0.12, 0.58), np.array(wall) * 0.97)
    p.solid(f.polygon((-0.43, 0.57), (-0.09, 0.57), (-0.26, 0.90)), roof)
    draw_snow_cap(p, f.polygon((-0.345, 0.74), (-0.175, 0.74), (-0.26, 0.90)))
    p.solid(f.line((-0.26, 0.88), (-0.26, 1.0), 0.022), SLATE)
    p.solid(f.line((-0.305, 0.955), (-0.215, 0.955), 0.022), SLATE)
    p.solid(f.ellipse(-0.26, 0.465, 0.070, 0.070), TRIM, 0.3)
    p.flat(f.line((-0.26, 0.465), (-0.26, 0.515), 0.014), p.ambient * np.array(DARK))
    p.flat(f.line((-0.26, 0.465), (-0.225, 0.455), 0.014), p.ambient * np.array(DARK))
    p.solid(f.box(-0.31, 0.0, -0.21, 0.15), WOOD, 0.4)
    p.solid(f.ellipse(-0.26, 0.15, 0.05, 0.05), WOOD, 0.4)
    for u in (0.0, 0.16, 0.32):
        draw_window_pane(p, f.box(u - 0.035, 0.09, u + 0.035, 0.20))
        draw_window_pane(p, f.ellipse(u, 0.20, 0.035, 0.04))
        if p.lamps > 0:
            p.glow(f.at(u, 0.16), 0.20 * f.height, 0.55 * p.lamps)
    draw_window_pane(p, f.box(-0.285, 0.25, -0.235, 0.36))


def _bridge(p: Painter, f: Frame, _: RGB) -> None:
    """A stone bridge of two arches, over the water."""
    stone = np.array(STONE) * np.array((1.02, 0.97, 0.90))
    water = p.ambient * np.array((0.20, 0.34, 0.44))
    p.solid(f.polygon((-1.30, 0.30), (1.30, 0.30), (0.70, 0.62), (-0.70, 0.62)), stone, 0.5)
    p.solid(f.box(-1.30, -0.10, 1.30, 0.32), stone, 0.5)
    for u in (-0.52, 0.52):
        arch = [
            (u + 0.36 * math.cos(math.pi * k / 12), 0.42 * math.sin(math.pi * k / 12))
            for k in range(13)
        ]
        p.flat(f.polygon((u + 0.36, -0.11), *arch, (u - 0.36, -0.11)), water * 0.62)
        for k in range(9):  # the stones of the arch
            angle = math.pi * (k + 0.5) / 9
            v = 0.02 + 0.45 * math.sin(angle)
            p.solid(f.ellipse(u + 0.39 * math.cos(angle), v, 0.055, 0.05), stone * 1.08, 0.4)
    p.solid(f.line((-1.25, 0.40), (-0.68, 0.69), 0.09), stone * 1.05, 0.3)
    p.solid(f.line((-0.70, 0.69), (0.70, 0.69), 0.09), stone * 1.05, 0.3)
    p.solid(f.line((0.68, 0.69), (1.25, 0.40), 0.09), stone * 1.05, 0.3)
    for u in (-0.62, 0.0, 0.62):
        p.solid(f.line((u, 0.70), (u, 0.95), 0.035), SLATE)
        p.lamp(f.ellipse(u, 0.98, 0.06, 0.07), (0.85, 0.86, 0.80), (1.0, 0.94, 0.68))
        if p.lamps > 0:
            p.glow(f.at(u, 0.98), 0.36 * f.height, 0.75 * p.lamps)
    draw_snow_cap(p, f.line((-0.70, 0.73), (0.70, 0.73), 0.05))


def _cat(p: Painter, f: Frame, _: RGB) -> None:
    draw_shadow(p, f, 0.34)
    draw_cat(p, f)


WORLD_STAGINGS: dict[str, Staging] = {
    **STAGINGS,
    "cat": Staging(_cat, 0.50, 0.64, "land", roam=0.15, base=(0.08, 0.16)),
    "tent": Staging(_tent, 0.38, 0.50, "land", roam=0.10, base=(0.05, 0.14)),
    "car": Staging(_car, 0.30, 0.38, "land", roam=0.10, base=(0.08, 0.16)),
    "rocket": Staging(_rocket, 0.66, 0.82, "land", roam=0.12),
    "mushroom": Staging(_mushroom, 0.44, 0.58, "land", roam=0.12, base=(0.08, 0.16)),
    "tulip": Staging(_tulip, 0.56, 0.72, "land", roam=0.12, base=(0.08, 0.16)),
    "dog": Staging(_dog, 0.42, 0.54, "land", roam=0.10, base=(0.08, 0.16)),
    "sheep": Staging(_sheep, 0.42, 0.54, "land", roam=0.10, base=(0.08, 0.16)),
    "snowman": Staging(_snowman, 0.56, 0.72, "land", roam=0.12, base=(0.08, 0.16)),
    "church": Staging(_church, 0.62, 0.78, "land", roam=0.10, base=(0.03, 0.10)),
    "bridge": Staging(_bridge, 0.30, 0.38, "sea", roam=0.08, base=(0.06, 0.12)),
}
"""How each subject of the world is set into the image."""

HALF_WIDTHS: dict[str, float] = {
    "lighthouse": 0.40,
    "house": 0.60,
    "boat": 0.55,
    "castle": 0.56,
    "windmill": 0.46,
    "balloon": 0.36,
    "tent": 0.70,
    "car": 0.97,
    "rocket": 0.32,
    "mushroom": 0.58,
    "tulip": 0.26,
    "robot": 0.47,
    "trees": 0.60,
    "mountains": 0.70,
    "cat": 0.42,
    "dog": 0.85,
    "sheep": 0.70,
    "snowman": 0.68,
    "church": 0.50,
    "bridge": 0.80,
}
"""How far from its middle a subject reaches, in its heights, as far as it is to be seen."""
