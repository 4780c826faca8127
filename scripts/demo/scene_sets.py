"""The sets of scenes that a demo model can learn from.

A set is a package whose functions draw scenes and describe them; a recipe (`scripts.demo.recipes`)
names one. Training and evaluation know nothing else of scenes. This module and the sets import no
torch, so that processes which draw start at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scripts.demo import scenes, world
from scripts.demo.scenes import Pixels

Attributes = dict[str, str]
"""What an image shows: a value for each attribute of its set of scenes."""


class AnyScene(Protocol):
    """A scene of any set."""

    @property
    def attributes(self) -> Attributes:
        """What an image of it shows."""


@dataclass(frozen=True)
class SceneSet:
    """Scenes with captions.

    Attributes:
        values: the attributes of a scene, and the values of each.
        scene_at: a scene by its number, that of its endless fixed set, and whether it is of the
            combinations withheld from training (True), of the others, or of all (None).
        mirrored: the attributes that an image of some attributes shows once it is mirrored.
        draw: draws a scene with so many pixels a side.
        caption_at: a caption of a scene by the same numbers; each ``version`` has other words.
        withheld_prompts: so many withheld scenes, each with a caption that names all attributes.
        caption: a caption of a scene, with words drawn at random, which names all attributes if it
            is to be ``complete``.
        edits: what an editing is measured by: task, attribute, and subjects of the scenes.
        edit_scenes: pairs of a scene to draw and one to make of it, by attribute, number and
            subjects.
        subject_box: left, top, right and bottom of a subject, in an image of so many pixels a side.
        prompts: those of the sheets to look at.
    """

    values: Mapping[str, Sequence[str]] = field(hash=False)
    scene_at: Callable[..., Any]
    mirrored: Callable[[Attributes], Attributes]
    draw: Callable[[Any, int], Pixels]
    caption_at: Callable[..., str]
    withheld_prompts: Callable[[int], list[tuple[Any, str]]]
    caption: Callable[..., str]
    edits: Sequence[tuple[str, str, Sequence[str]]]
    edit_scenes: Callable[[str, int, Sequence[str]], list[tuple[Any, Any]]]
    subject_box: Callable[[Any, int], tuple[int, int, int, int]]
    prompts: Sequence[str]


SCENES = SceneSet(
    values=scenes.ATTRIBUTES,
    scene_at=scenes.scene_at,
    mirrored=dict,  # nothing in them has a side
    draw=scenes.draw,
    caption_at=scenes.caption_at,
    withheld_prompts=scenes.withheld_prompts,
    caption=scenes.caption,
    edits=scenes.EDITS,
    edit_scenes=scenes.edit_scenes,
    subject_box=scenes.subject_box,
    prompts=scenes.PROMPTS,
)
"""Ten subjects, one in each image: what the bundled weights were trained on."""

WORLD = SceneSet(
    values=world.ATTRIBUTES,
    scene_at=world.scene_at,
    mirrored=world.mirrored,
    draw=world.draw,
    caption_at=world.caption_at,
    withheld_prompts=world.withheld_prompts,
    caption=world.caption,
    edits=world.EDITS,
    edit_scenes=world.edit_scenes,
    subject_box=world.subject_box,
    prompts=world.PROMPTS,
)
"""Twenty subjects, one or two in each image, in three styles."""
