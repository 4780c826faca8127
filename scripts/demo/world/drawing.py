"""A whole scene, from its sky to the weather in front of it."""

from __future__ import annotations

import numpy as np

from scripts.demo.scenes import ground, sky, weather
from scripts.demo.scenes.drawing import Pixels
from scripts.demo.scenes.geometry import Frame
from scripts.demo.scenes.light import PAINT
from scripts.demo.world.painter import StyledPainter
from scripts.demo.world.scene import Scene, Thing
from scripts.demo.world.subjects import WORLD_STAGINGS

SUPERSAMPLING = 2
"""Pixels drawn a side for each of the image."""

SIZE_FACTORS = {"small": 0.58, "medium": 0.92, "large": 1.22}
PAIR_FACTOR = 0.70
"""Things are this much smaller where there are two."""

PLACE_SHIFT = 0.24
"""How far from the middle a subject stands that is on one side."""


def draw(scene: Scene, size: int = 256, supersampling: int = SUPERSAMPLING) -> Pixels:
    """Draw a scene: uint8 RGB of shape (size, size, 3). The same scene gives the same image."""
    p = StyledPainter(scene, size * supersampling)
    horizon, frames = _compose(p)
    _draw_background(p, horizon, frames)
    for thing, frame in sorted(zip(scene.things, frames, strict=True), key=lambda pair: pair[1].y):
        WORLD_STAGINGS[thing.subject].draw(p, frame, PAINT[thing.colour or "white"])
    if scene.things[0].subject == "mountains":  # they stand behind the hills
        ground.draw_hills(p, horizon + 0.05)
        ground.draw_land(p, horizon + 0.05)
    weather.draw_near_fog(p, horizon)
    p.add_glows()
    weather.draw_precipitation(p)
    p.finish()
    samples = np.clip(p.image, 0, 1).reshape(size, supersampling, size, supersampling, 3)
    pixels = samples.mean(axis=(1, 3))
    return (pixels * 255 + 0.5).astype(np.uint8)


def subject_frame(scene: Scene) -> Frame:
    """The coordinates in which `draw` draws the first of the scene's subjects."""
    return _compose(StyledPainter(scene, size=1))[1][0]


def _draw_background(p: StyledPainter, horizon: float, frames: list[Frame]) -> None:
    """Draw everything that lies behind the subjects."""
    staging = WORLD_STAGINGS[p.scene.things[0].subject]
    smooth = p.y
    if p.style == "flat":
        p.y = p.banded()
    sky.draw_sky(p, horizon)
    p.y = smooth
    sky.draw_stars(p, horizon)
    middle = sum(frame.x for frame in frames) / len(frames)
    sun = sky.draw_sun(p, horizon, middle)
    sky.draw_clouds(p, horizon)
    if p.scene.things[0].subject == "mountains":
        return
    if staging.ground == "sea":
        if p.rng.random() < 0.4:
            ground.draw_hills(p, horizon)
        ground.draw_sea(p, horizon, sun)
        weather.draw_far_fog(p)
    else:
        ground.draw_hills(p, horizon)
        weather.draw_far_fog(p)
        ground.draw_land(p, horizon)


def _compose(p: StyledPainter) -> tuple[float, list[Frame]]:
    """The horizon, and where each subject stands; the painter's generator must be fresh."""
    scene = p.scene
    stagings = [WORLD_STAGINGS[thing.subject] for thing in scene.things]
    heights = [_height(p, thing, len(scene.things)) for thing in scene.things]
    feet = [p.uniform(*staging.base) for staging in stagings]
    horizon = p.uniform(0.62, 0.72)
    standing = [
        height + 0.06 - foot
        for height, foot, staging in zip(heights, feet, stagings, strict=True)
        if staging.ground != "air"
    ]
    horizon = min(max([horizon, *standing]), 0.86)
    xs = _columns(p)
    frames = []
    for height, foot, staging, x in zip(heights, feet, stagings, xs, strict=True):
        mirror = 1.0 if p.rng.random() < 0.5 else -1.0
        base = horizon + foot
        if staging.ground == "air":
            base = 0.06 + height + p.uniform(0, max(0.74 - height, 0.01))
        frames.append(Frame(x, base, height, mirror))
    return horizon, frames


def _height(p: StyledPainter, thing: Thing, count: int) -> float:
    staging = WORLD_STAGINGS[thing.subject]
    height = p.uniform(staging.low, staging.high) * SIZE_FACTORS[thing.size]
    return height * PAIR_FACTOR if count == 2 else min(height, 0.88)


def _columns(p: StyledPainter) -> list[float]:
    """Where the subjects stand from left to right."""
    if len(p.scene.things) == 2:
        return [0.27 + p.uniform(-0.04, 0.04), 0.73 + p.uniform(-0.04, 0.04)]
    shift = {"left": -PLACE_SHIFT, "middle": 0.0, "right": PLACE_SHIFT}[p.scene.place]
    return [0.5 + shift + p.uniform(-0.05, 0.05)]
