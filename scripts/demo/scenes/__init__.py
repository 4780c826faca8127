"""Procedural scenes with captions: what the bundled demo model learns from.

A `Scene` names a subject, its colour, a time of day, the weather and a composition seed. `draw`
draws it and `caption` describes it in plain English. Both depend on their arguments alone, so that
any process can render any part of the set. The bundled weights were trained on exactly these
images and captions: a change to either makes the model card untrue.
"""

from scripts.demo.scenes.captions import PROMPTS, caption, caption_at, withheld_prompts
from scripts.demo.scenes.drawing import Pixels, contact_sheet, draw, subject_frame
from scripts.demo.scenes.edits import EDITS, edit_scenes, subject_box
from scripts.demo.scenes.scene import (
    ATTRIBUTES,
    COLOURED_SUBJECTS,
    COLOURS,
    PLAIN_SUBJECTS,
    SUBJECTS,
    TIMES,
    WEATHERS,
    Scene,
    combinations,
    is_held_out,
    random_scene,
    scene_at,
)

__all__ = [
    "ATTRIBUTES",
    "EDITS",
    "PROMPTS",
    "edit_scenes",
    "subject_box",
    "withheld_prompts",
    "COLOURED_SUBJECTS",
    "COLOURS",
    "PLAIN_SUBJECTS",
    "SUBJECTS",
    "TIMES",
    "WEATHERS",
    "Pixels",
    "Scene",
    "caption",
    "caption_at",
    "combinations",
    "contact_sheet",
    "draw",
    "is_held_out",
    "random_scene",
    "scene_at",
    "subject_frame",
]
