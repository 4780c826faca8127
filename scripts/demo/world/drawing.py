"""A whole scene, from its sky to the weather in front of it."""

from __future__ import annotations

from functools import reduce

import numpy as np

from scripts.demo.scenes import ground, sky, weather
from scripts.demo.scenes.drawing import Pixels
from scripts.demo.scenes.geometry import Frame
from scripts.demo.scenes.light import PAINT, Array
from scripts.demo.world.painter import StyledPainter
from scripts.demo.world.scene import Scene
from scripts.demo.world.subjects import HALF_WIDTHS, WORLD_STAGINGS

SUPERSAMPLING = 2
"""Pixels drawn a side for each of the image."""

SIZE_FACTORS = {"small": 0.54, "medium": 0.86, "large": 1.26}
"""They keep the ranges of heights apart, so that it can be seen which size one is."""
PAIR_FACTOR = 0.70
"""Things are this much smaller where there are two."""

PLACE_SHIFT = 0.24
"""How far from the middle a subject stands that is on one side, where it is narrow enough."""

ROOM = {"left": 0.31, "middle": 0.47, "right": 0.31}
"""Greatest half width of a single subject; a wider one is drawn smaller, at all its sizes."""

PAIR_ROOM = 0.92
"""Greatest width of both subjects of a pair together."""


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
    samples = np.clip(p.image, 0, 1)
    # Sums of slices, since a mean over two axes takes several times as long.
    rows: Array = reduce(np.add, [samples[k::supersampling] for k in range(supersampling)])
    pixels: Array = reduce(np.add, [rows[:, k::supersampling] for k in range(supersampling)])
    return (pixels * (255 / supersampling**2) + 0.5).astype(np.uint8)


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
    heights = _heights(p)
    feet = [p.uniform(*staging.base) for staging in stagings]
    horizon = p.uniform(0.62, 0.72)
    standing = [
        height + 0.06 - foot
        for height, foot, staging in zip(heights, feet, stagings, strict=True)
        if staging.ground != "air"
    ]
    horizon = min(max([horizon, *standing]), 0.86)
    xs = _columns(p, heights)
    frames = []
    for height, foot, staging, x in zip(heights, feet, stagings, xs, strict=True):
        mirror = 1.0 if p.rng.random() < 0.5 else -1.0
        base = horizon + foot
        if staging.ground == "air":
            base = 0.06 + height + p.uniform(0, max(0.74 - height, 0.01))
        frames.append(Frame(x, base, height, mirror))
    return horizon, frames


def _heights(p: StyledPainter) -> list[float]:
    """How high each subject is, such that all of it is in the image."""
    things = p.scene.things
    heights = []
    for thing in things:
        staging = WORLD_STAGINGS[thing.subject]
        height = p.uniform(staging.low, staging.high)
        if len(things) == 1:
            widest = HALF_WIDTHS[thing.subject] * staging.high * SIZE_FACTORS["large"]
            height *= min(ROOM[p.scene.place] / widest, 1)
        heights.append(height * SIZE_FACTORS[thing.size])
    if len(things) == 1:
        return [min(heights[0], 0.88)]
    widths = [2 * HALF_WIDTHS[t.subject] * h for t, h in zip(things, heights, strict=True)]
    factor = min(PAIR_FACTOR, PAIR_ROOM / sum(widths))
    return [factor * height for height in heights]


def _columns(p: StyledPainter, heights: list[float]) -> list[float]:
    """Where the subjects stand from left to right."""
    things = p.scene.things
    halves = [HALF_WIDTHS[t.subject] * h for t, h in zip(things, heights, strict=True)]
    if len(things) == 2:
        gap = (1 - 2 * sum(halves)) / 3
        return [
            gap + halves[0] + p.uniform(-0.3, 0.3) * gap,
            1 - gap - halves[1] + p.uniform(-0.3, 0.3) * gap,
        ]
    shift = {"left": -PLACE_SHIFT, "middle": 0.0, "right": PLACE_SHIFT}[p.scene.place]
    x = 0.5 + shift + p.uniform(-0.05, 0.05)
    return [min(max(x, halves[0] + 0.02), 0.98 - halves[0])]
