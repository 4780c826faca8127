"""Pairs of scenes that differ in one attribute, by which editing is measured.

They have one subject, since there are no words for a change of one of two.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scripts.demo.scenes.scene import COLOURS, TIMES, WEATHERS
from scripts.demo.world.drawing import subject_frame
from scripts.demo.world.scene import (
    COLOURED_SUBJECTS,
    PAIRED,
    STYLES,
    SUBJECTS,
    Scene,
    Thing,
    scene_at,
)
from scripts.demo.world.subjects import HALF_WIDTHS

EDIT_SET = 7004
"""Number of the endless set of scenes (`scene_at`) that are edited; it is not trained on."""

EDITS: tuple[tuple[str, str, Sequence[str]], ...] = (
    ("img2img", "time", SUBJECTS),
    ("img2img", "weather", SUBJECTS),
    ("img2img", "style", SUBJECTS),
    ("img2img", "colour", COLOURED_SUBJECTS),
    ("inpaint", "subject", PAIRED),
    ("inpaint", "colour", COLOURED_SUBJECTS),
)
"""What is edited: the task, the attribute, and the subjects of the scenes."""


def edited(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    """The scene with another value of one attribute, possible in the same place."""

    def another(values: Sequence[str], than: str | None) -> str:
        others = [value for value in values if value != than]
        return others[int(rng.integers(len(others)))]

    (thing,) = scene.things
    if attribute == "time":
        return replace(scene, time=another(TIMES, scene.time))
    if attribute == "weather":
        return replace(scene, weather=another(WEATHERS, scene.weather))
    if attribute == "style":
        return replace(scene, style=another(STYLES, scene.style))
    if attribute == "colour":
        return replace(scene, things=(replace(thing, colour=another(COLOURS, thing.colour)),))
    subject = another(PAIRED, thing.subject)
    colour = None
    if subject in COLOURED_SUBJECTS:
        colour = another(COLOURS, None) if thing.colour is None else thing.colour
    return replace(scene, things=(Thing(subject, colour, thing.size),))


def edit_scenes(attribute: str, count: int, subjects: Sequence[str]) -> list[tuple[Scene, Scene]]:
    """Pairs of a scene to draw and the scene to make of it."""
    drawn = (scene_at(i, EDIT_SET, None) for i in itertools.count())
    suitable = (
        scene
        for scene in drawn
        if len(scene.things) == 1
        and scene.things[0].subject in subjects
        and not (attribute == "colour" and scene.things[0].colour is None)
    )
    rng = np.random.default_rng([EDIT_SET, len(attribute)])
    chosen = itertools.islice(suitable, count)
    return [(scene, edited(scene, attribute, rng)) for scene in chosen]


def subject_box(scene: Scene, size: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the subject with some room around it, in pixels.

    It is wide enough for most subjects of the same height.
    """
    frame = subject_frame(scene)
    half = max(1.1 * HALF_WIDTHS[scene.things[0].subject] * frame.height, 0.3)
    corners = (frame.x - half, frame.y - 1.15 * frame.height, frame.x + half, frame.y + 0.1)
    left, top, right, bottom = (round(size * min(max(corner, 0), 1)) for corner in corners)
    return left, top, right, bottom
