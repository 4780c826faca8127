"""What the weather puts in front of a scene: fog, rain and snow."""

from __future__ import annotations

import numpy as np

from scripts.demo.scenes.geometry import ellipse
from scripts.demo.scenes.light import SNOW_COVER, mix, rgb
from scripts.demo.scenes.painter import Painter


def draw_far_fog(p: Painter) -> None:
    """Cover what lies far behind the subject with fog."""
    if p.weather == "fog":
        p.veil(p.mist, 0.52)


def draw_near_fog(p: Painter, horizon: float) -> None:
    """Cover everything with a veil of fog, thicker near the ground, and with drifting banks."""
    if p.weather != "fog":
        return
    rise = np.exp(-(((p.y - horizon - 0.08) / 0.20) ** 2))
    p.veil(p.mist, np.float32(0.22) + np.float32(0.26) * rise)
    for _ in range(3):
        x, y = p.uniform(0, 1), horizon + p.uniform(-0.08, 0.14)
        shape = ellipse(x, y, p.uniform(0.25, 0.45), p.uniform(0.03, 0.055))
        p.flat(shape, np.minimum(rgb(p.light.mist) * 1.04, 1), 0.42, soft=0.03)


def draw_precipitation(p: Painter) -> None:
    """Draw rain or snow in front of everything."""
    if p.weather == "rain":
        _draw_rain(p)
    elif p.weather == "snow":
        brightness = {"dawn": 1.0, "noon": 1.0, "dusk": 0.92, "dark": 0.85}[p.scene.time]
        spots = p.dots(8, 0.014, 0.021, 0.75)
        np.maximum(spots, p.dots(5, 0.018, 0.027, 0.55), out=spots)
        colour = np.minimum(mix(SNOW_COVER, p.light.cloud, 0.12), 1) * brightness
        p.veil(colour, spots * np.float32(0.92))


def _draw_rain(p: Painter) -> None:
    lanes = 17
    slant = p.sun_side * p.uniform(0.22, 0.34)
    across = (p.x + p.y * np.float32(slant) + 1) * lanes
    lane = across.astype(np.int64)
    offset = p.rng.random(4 * lanes).astype(np.float32)
    rate = p.rng.uniform(2.2, 3.2, 4 * lanes).astype(np.float32)
    side = np.abs(across - lane - 0.5) / (0.0105 * lanes)
    phase = p.y * rate[lane] + offset[lane]
    phase -= np.floor(phase)
    along = np.clip(1 - np.abs(phase - 0.5) / 0.26, 0, 1)
    streak = np.clip(1.5 * (1 - side), 0, 1) * np.minimum(along * 3, 1)
    colour = mix(p.light.cloud, (0.85, 0.90, 1.0), 0.6)
    strength = {"dawn": 0.62, "noon": 0.62, "dusk": 0.50, "dark": 0.42}[p.scene.time]
    p.veil(colour, streak * np.float32(strength))
