"""Does an image show what its prompt asked for? Prompts to ask, and how answers are scored."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scripts.demo.scene_sets import SCENES, AnyScene, Attributes, SceneSet

USUAL = frozenset({"none", "middle", "medium", "painted"})
"""Values that an image need not show: nothing else was asked for, so there is none to get wrong."""


@dataclass(frozen=True)
class Task:
    """A prompt, the seed of its noise, and the scene that it asks for."""

    scene: AnyScene
    prompt: str
    seed: int


def withheld_tasks(count: int, scene_set: SceneSet = SCENES) -> list[Task]:
    """Tasks from the combinations withheld from training, whose words name all attributes."""
    withheld = scene_set.withheld_prompts(count)
    return [Task(scene, prompt, seed) for seed, (scene, prompt) in enumerate(withheld)]


def score(asked: Sequence[AnyScene], seen: Sequence[Attributes]) -> dict[str, float]:
    """Percentages of images that show each attribute as asked, and all of them.

    Values that are `USUAL` do not count: the prompts do not ask for them.
    """
    pairs = [(scene.attributes, got) for scene, got in zip(asked, seen, strict=True)]
    scores = {}
    for name in pairs[0][0]:
        counted = [(want, got) for want, got in pairs if want[name] not in USUAL]
        scores[name] = percentage(want[name] == got[name] for want, got in counted)
    scores["all"] = percentage(not mistakes(want, got) for want, got in pairs)
    return scores


def score_by_value(asked: Sequence[AnyScene], seen: Sequence[Attributes]) -> dict[str, float]:
    """Percentage of images that show a value among those that were to show it."""
    hits: dict[str, list[bool]] = collections.defaultdict(list)
    for scene, got in zip(asked, seen, strict=True):
        for name, value in scene.attributes.items():
            hits[value].append(got[name] == value)
    return {value: percentage(hit) for value, hit in sorted(hits.items())}


def score_edits(
    targets: Sequence[AnyScene], seen: Sequence[Attributes], attribute: str
) -> dict[str, float]:
    """Percentages of images where the attribute is as asked, where the others are, and both."""
    wrong = [mistakes(t.attributes, got) for t, got in zip(targets, seen, strict=True)]
    return {
        "changed as asked": percentage(attribute not in names for names in wrong),
        "rest stayed": percentage(not set(names) - {attribute} for names in wrong),
        "both": percentage(not names for names in wrong),
    }


def mistakes(want: Attributes, got: Attributes) -> list[str]:
    """The attributes that differ, where the prompt asked for the value."""
    return [name for name in want if want[name] != got[name] and want[name] not in USUAL]


def percentage(hits: Iterable[bool]) -> float:
    """Share of hits in percent; NaN where there is nothing to hit."""
    values = list(hits)
    return 100 * sum(values) / len(values) if values else math.nan
