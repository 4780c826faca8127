"""A whole scene, from its sky to the weather in front of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scripts.demo.scenes import ground, sky, weather
from scripts.demo.scenes.geometry import Frame
from scripts.demo.scenes.light import PAINT
from scripts.demo.scenes.painter import Painter
from scripts.demo.scenes.scene import COLOURED_SUBJECTS, COLOURS, SUBJECTS, TIMES, WEATHERS, Scene
from scripts.demo.scenes.subjects import STAGINGS

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Composition:
    """Where things stand in an image.

    Attributes:
        frame: coordinates of the subject.
        horizon: height of the line between sky and ground, in image coordinates.
    """

    frame: Frame
    horizon: float


def draw(scene: Scene, size: int = 128) -> Pixels:
    """Draw a scene: uint8 RGB of shape (size, size, 3). The same scene gives the same image."""
    p = Painter(scene, size)
    composition = _compose(p, scene)
    frame, horizon = composition.frame, composition.horizon
    sky.draw_sky(p, horizon)
    sky.draw_stars(p, horizon)
    sun = sky.draw_sun(p, horizon, frame.x)
    sky.draw_clouds(p, horizon)
    staging, paint = STAGINGS[scene.subject], PAINT[scene.colour or "white"]
    if scene.subject == "mountains":  # they stand behind the hills
        staging.draw(p, frame, paint)
        ground.draw_hills(p, horizon + 0.05)
        ground.draw_land(p, horizon + 0.05)
    elif staging.ground == "sea":
        if p.rng.random() < 0.4:
            ground.draw_hills(p, horizon)
        ground.draw_sea(p, horizon, sun)
        weather.draw_far_fog(p)
        staging.draw(p, frame, paint)
    else:
        ground.draw_hills(p, horizon)
        weather.draw_far_fog(p)
        ground.draw_land(p, horizon)
        staging.draw(p, frame, paint)
    weather.draw_near_fog(p, horizon)
    p.add_glows()
    weather.draw_precipitation(p)
    return (np.clip(p.image, 0, 1) * 255 + 0.5).astype(np.uint8)


def subject_frame(scene: Scene) -> Frame:
    """The coordinates in which `draw` draws the scene's subject."""
    return _compose(Painter(scene, size=1), scene).frame


def _compose(p: Painter, scene: Scene) -> Composition:
    """Place the subject and the horizon; the painter's generator must not have been used yet."""
    staging = STAGINGS[scene.subject]
    height = p.uniform(staging.low, staging.high)
    mirror = 1.0 if p.rng.random() < 0.5 else -1.0
    x = 0.5 + p.uniform(-staging.roam, staging.roam)
    foot = p.uniform(*staging.base)
    if staging.ground == "air":
        horizon = p.uniform(0.76, 0.86)
        base = 0.05 + height + p.uniform(0, max(0.86 - height, 0.01))
        base = min(base, 0.90)
    else:
        horizon = p.uniform(0.66, 0.78)
        horizon = max(horizon, height + 0.08 - foot)
        base = horizon + foot
    return Composition(Frame(x, base, height, mirror), horizon)


def contact_sheet(seed: int = 0, size: int = 128) -> Pixels:
    """Subjects down, time by weather across, colours in turn: uint8 (10*size, 16*size, 3)."""
    rng = np.random.default_rng(seed)
    rows = []
    for r, subject in enumerate(SUBJECTS):
        row = []
        for c, (time, conditions) in enumerate((t, w) for t in TIMES for w in WEATHERS):
            colour = COLOURS[(r + c) % len(COLOURS)] if subject in COLOURED_SUBJECTS else None
            scene = Scene(subject, colour, time, conditions, int(rng.integers(2**31)))
            row.append(draw(scene, size))
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows, axis=0)
