"""Pairs of scenes that differ in one attribute, by which editing is measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scripts.demo.scenes.drawing import subject_frame
from scripts.demo.scenes.scene import (
    ATTRIBUTES,
    COLOURED_SUBJECTS,
    COLOURS,
    PLAIN_SUBJECTS,
    SUBJECTS,
    Scene,
    scene_at,
)

EDIT_SET = 7004
"""Number of the endless set of scenes (`scene_at`) that are edited; it is not trained on."""

GROUNDS = (("lighthouse", "boat"), ("house", "castle", "windmill", "robot"))
"""Subjects that can stand in each other's place: those by the sea, and those on land that leave
nothing of themselves in the rest of the image, as a far row of trees would."""


def edited(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    """The scene with another value of one attribute, possible in the same place."""

    def another(values: Sequence[str], than: str | None) -> str:
        others = [value for value in values if value != than]
        return others[int(rng.integers(len(others)))]

    if attribute != "subject":
        values = COLOURS if attribute == "colour" else ATTRIBUTES[attribute]
        change: dict[str, Any] = {attribute: another(values, getattr(scene, attribute))}
        return replace(scene, **change)
    (ground,) = (ground for ground in GROUNDS if scene.subject in ground)
    subject = another(ground, scene.subject)
    colour = scene.colour
    if subject in PLAIN_SUBJECTS:
        colour = None
    elif colour is None:
        colour = another(COLOURS, None)
    return replace(scene, subject=subject, colour=colour)


def edit_scenes(attribute: str, count: int, subjects: Sequence[str]) -> list[tuple[Scene, Scene]]:
    """Pairs of a scene to draw and the scene to make of it."""
    drawn = (scene_at(i, EDIT_SET, None) for i in itertools.count())
    suitable = (
        scene
        for scene in drawn
        if scene.subject in subjects and not (attribute == "colour" and scene.colour is None)
    )
    rng = np.random.default_rng([EDIT_SET, len(attribute)])
    chosen = itertools.islice(suitable, count)
    return [(scene, edited(scene, attribute, rng)) for scene in chosen]


def subject_box(scene: Scene, size: int = 128) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the subject with some room around it, in pixels."""
    frame = subject_frame(scene)
    half = 0.62 * frame.height
    corners = (frame.x - half, frame.y - 1.1 * frame.height, frame.x + half, frame.y + 0.1)
    left, top, right, bottom = (round(size * min(max(corner, 0), 1)) for corner in corners)
    return left, top, right, bottom


LAND_AND_SEA = tuple(subject for ground in GROUNDS for subject in ground)

EDITS: tuple[tuple[str, str, Sequence[str]], ...] = (
    ("img2img", "time", SUBJECTS),
    ("img2img", "weather", SUBJECTS),
    ("img2img", "colour", COLOURED_SUBJECTS),
    ("inpaint", "subject", LAND_AND_SEA),
    ("inpaint", "colour", COLOURED_SUBJECTS),
)
"""What is edited: the task, the attribute, and the subjects of the scenes."""
