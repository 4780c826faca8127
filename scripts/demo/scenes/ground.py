"""What a subject stands on: hills, land and sea."""

from __future__ import annotations

import numpy as np

from scripts.demo.scenes.geometry import Point, ellipse
from scripts.demo.scenes.light import mix, rgb
from scripts.demo.scenes.painter import Painter


def draw_hills(p: Painter, horizon: float) -> None:
    """Draw two rows of hills that fade into the distance."""
    albedo = p.ground_tone
    blue = rgb((0.40, 0.52, 0.62)) if p.weather != "snow" else rgb((0.80, 0.86, 0.95))
    for k, (lift, amplitude, fade) in enumerate(((0.10, 0.035, 0.50), (0.045, 0.025, 0.22))):
        near = mix(blue, albedo, 0.35 + 0.4 * k) * p.ambient
        colour = p.distance_haze(near, fade)
        line = p.waves(horizon - lift * p.uniform(0.6, 1.3), amplitude, 0.8 + 0.3 * k)
        p.ridge(line, colour, colour * np.float32(0.90))


def draw_land(p: Painter, horizon: float) -> None:
    """Draw the land from the horizon down to the lower edge."""
    albedo = p.ground_tone
    line = p.waves(horizon + 0.01, 0.012, 0.6)
    near = np.float32(0.66 if p.weather != "snow" else 0.80)
    p.ridge(line, p.lit * albedo * 0.92, p.ambient * albedo * near, 1.02 - horizon)


def draw_sea(p: Painter, horizon: float, sun: Point | None) -> None:
    """Draw the sea, with the path of light of the sun or moon at ``sun`` if there is one."""
    near = rgb((0.12, 0.36, 0.52))
    if p.weather in ("rain", "snow", "fog"):
        near = rgb((0.24, 0.38, 0.48))
    near = near * p.ambient * 1.15
    far = p.distance_haze(near, 0.55)
    p.ridge(np.full_like(p.x, horizon), far, near, 0.9 * (1 - horizon))
    depth = 1 - horizon
    for k in range(4):  # broad soft swells
        y = horizon + depth * (0.12 + 0.23 * k + p.uniform(0, 0.1))
        x, width = p.uniform(0.1, 0.9), p.uniform(0.22, 0.4)
        p.flat(ellipse(x, y, width, 0.008 + 0.004 * k), far, 0.40, soft=0.006)
    if sun is None or p.weather != "clear":
        return
    strength = {"dawn": 0.6, "noon": 0.25, "dusk": 0.75, "dark": 0.5}[p.scene.time]
    for k in range(5):  # the sun's or the moon's path on the water
        y = horizon + depth * (0.07 + 0.2 * k)
        width = 0.05 + 0.018 * k
        x = sun[0] + p.uniform(-0.012, 0.012)
        p.flat(ellipse(x, y, width, 0.013), p.light.sun, strength * (1 - 0.13 * k), 0.008)
