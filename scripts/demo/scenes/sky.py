"""The sky: its colours, sun or moon, clouds and stars."""

from __future__ import annotations

import numpy as np

from scripts.demo.scenes.geometry import Point, ellipse, without
from scripts.demo.scenes.light import mix, rgb
from scripts.demo.scenes.painter import Painter


def draw_sky(p: Painter, horizon: float) -> None:
    """Fill the image with a gradient from the zenith to the horizon."""
    light = p.light
    top, middle, low = rgb(light.top), rgb(light.middle), rgb(light.low)
    jitter = p.rng.uniform(-0.025, 0.025, 3).astype(np.float32)
    scale = 0.4 if p.scene.time == "dark" else 1.0
    top, middle = top + jitter * scale, middle + jitter * scale * 0.5
    grey, amount = {
        "clear": (light.low, 0.0),
        "fog": (light.mist, 0.76),
        "rain": (light.overcast, 0.74),
        "snow": (light.flurry, 0.80),
    }[p.weather]
    top, middle, low = (mix(c, grey, amount) for c in (top, middle, low))
    if p.weather == "rain":
        top = top * np.float32(0.72)
    t = np.clip(p.y / horizon, 0, 1)[..., None]
    bend = p.uniform(0.48, 0.62)
    upper = np.clip(t / bend, 0, 1)
    lower = np.clip((t - bend) / (1 - bend), 0, 1)
    p.image[:] = top + upper * (middle - top) + lower * (low - middle)


def draw_sun(p: Painter, horizon: float, subject_x: float) -> Point | None:
    """Draw the sun or the moon beside the subject; return where, or None where it is hidden."""
    side = p.sun_side
    x = subject_x + side * p.uniform(0.27, 0.40)
    if not 0.08 < x < 0.92:
        x = min(max(x, 0.10), 0.90)
    time = p.scene.time
    y = {
        "dawn": horizon - p.uniform(0.04, 0.12),
        "noon": p.uniform(0.10, 0.20),
        "dusk": horizon - p.uniform(0.02, 0.10),
        "dark": p.uniform(0.12, 0.26),
    }[time]
    phase = p.uniform(0, 1)
    if p.weather in ("rain", "snow"):
        return None
    sun = rgb(p.light.sun)
    visible = 0.55 if p.weather == "fog" else 1.0
    if time == "dark":
        p.halo(x, y, 0.32, rgb((0.30, 0.36, 0.55)) * visible)
        moon = ellipse(x, y, 0.064, 0.064)
        if phase < 0.4 and p.weather == "clear":
            moon = without(moon, ellipse(x - side * 0.034, y - 0.016, 0.056, 0.056))
        p.flat(moon, sun, visible)
    elif time == "noon":
        p.halo(x, y, 0.42, sun * np.float32(0.55 * visible))
        p.flat(ellipse(x, y, 0.060, 0.060), sun, visible, soft=0.006)
    else:
        warm = sun if time == "dawn" else rgb((1.0, 0.52, 0.18))
        p.halo(x, y, 0.62, warm * np.float32(0.62 * visible))
        radius = 0.062 if time == "dawn" else 0.082
        p.flat(ellipse(x, y, radius, radius), sun, visible, soft=0.004)
    return x, y


def draw_clouds(p: Painter, horizon: float) -> None:
    """Draw a few clouds, or a closed cover of them in rain and snow; none are seen in fog."""
    overcast = p.weather in ("rain", "snow")
    if p.weather == "fog":
        return
    count = int(p.rng.integers(4, 6)) if overcast else int(p.rng.integers(0, 4))
    for k in range(count):
        if overcast:
            grey = p.light.overcast if p.weather == "rain" else p.light.flurry
            dark = np.float32(0.80 if p.weather == "rain" else 0.92)
            colour = rgb(grey) * np.float32(p.uniform(0.85, 1.05)) * dark
            x, y = (k + p.uniform(0.1, 0.9)) / count, p.uniform(-0.02, 0.12)
            width, opacity, soft = p.uniform(0.16, 0.26), 0.85, 0.035
        else:
            colour = mix(p.light.cloud, p.light.low, p.uniform(0, 0.3))
            x, y = p.uniform(0, 1), p.uniform(0.10, 0.55) * horizon
            width, opacity, soft = p.uniform(0.09, 0.17), p.uniform(0.55, 0.85), 0.014
        p.flat(ellipse(x, y, width, width * 0.24), colour, opacity, soft)
        for side in (-0.35, 0.25):
            bump = width * p.uniform(0.32, 0.46)
            at = x + side * width, y - width * 0.18
            p.flat(ellipse(*at, bump, bump * 0.8), colour, opacity, soft)


def draw_stars(p: Painter, horizon: float) -> None:
    """Draw stars, which show at dark in clear weather."""
    if p.scene.time != "dark" or p.weather != "clear":
        return
    spots = p.dots(8, 0.007, 0.012, 0.42)
    spots *= np.clip((horizon - p.y) / 0.25, 0, 1)
    p.veil((0.88, 0.91, 1.0), spots * np.float32(0.85))
