"""The world of the demo model at 256x256: twenty subjects, alone or in pairs, in three styles.

It builds on the scenes that the bundled weights were trained on, `scripts.demo.scenes`, with their
sky, ground, weather and subjects, and adds ten subjects, pairs, places, sizes and styles of
drawing. Images and captions depend on their arguments alone.
"""

from scripts.demo.world.captions import PROMPTS, caption, caption_at, withheld_prompts
from scripts.demo.world.drawing import draw
from scripts.demo.world.edits import EDITS, edit_scenes, subject_box
from scripts.demo.world.scene import ATTRIBUTES, Scene, Thing, is_held_out, mirrored, scene_at

__all__ = [
    "ATTRIBUTES",
    "EDITS",
    "PROMPTS",
    "Scene",
    "Thing",
    "caption",
    "caption_at",
    "draw",
    "edit_scenes",
    "is_held_out",
    "mirrored",
    "scene_at",
    "subject_box",
    "withheld_prompts",
]
