"""Does an image show what its prompt asked for? Prompts to ask, and how answers are scored."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scripts.demo import scenes
from scripts.demo.scenes import Scene

NO_COLOUR = "none"
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": scenes.SUBJECTS,
    "colour": (NO_COLOUR, *scenes.COLOURS),
    "time": scenes.TIMES,
    "weather": scenes.WEATHERS,
}
"""What an image is judged by, and the values of each."""

PROMPT_SET = 7003
"""Number of the set of random numbers that words are drawn from; the model is trained on set 0."""

Attributes = dict[str, str]
"""A value for each of `ATTRIBUTES`."""


def attributes(scene: Scene) -> Attributes:
    """What an image of the scene shows."""
    return {name: getattr(scene, name) or NO_COLOUR for name in ATTRIBUTES}


@dataclass(frozen=True)
class Task:
    """A prompt, the seed of its noise, and the scene that it asks for."""

    scene: Scene
    prompt: str
    seed: int


def withheld_tasks(count: int) -> list[Task]:
    """Tasks from the combinations withheld from training, each as often as the others.

    Every occurrence has its own words, which name all attributes.
    """
    withheld = [scene for scene in scenes.combinations() if scenes.is_held_out(scene)]
    order = np.random.default_rng(PROMPT_SET).permutation(len(withheld))
    tasks = []
    for i, place in zip(range(count), itertools.cycle(order), strict=False):
        rng = np.random.default_rng([PROMPT_SET, i])
        scene = replace(withheld[place], seed=int(rng.integers(2**31)))
        tasks.append(Task(scene, scenes.caption(scene, rng, complete=True), seed=i))
    return tasks


def score(asked: Sequence[Scene], seen: Sequence[Attributes]) -> dict[str, float]:
    """Percentages of images that show each attribute as asked, and all of them.

    The colour counts where one was asked for: in the others there is none to get wrong.
    """
    pairs = [(attributes(scene), got) for scene, got in zip(asked, seen, strict=True)]
    scores = {}
    for name in ATTRIBUTES:
        counted = [(want, got) for want, got in pairs if want[name] != NO_COLOUR]
        scores[name] = percentage(want[name] == got[name] for want, got in counted)
    scores["all"] = percentage(not mistakes(want, got) for want, got in pairs)
    return scores


def score_by_value(asked: Sequence[Scene], seen: Sequence[Attributes]) -> dict[str, float]:
    """Percentage of images that show a value among those that were to show it."""
    hits: dict[str, list[bool]] = collections.defaultdict(list)
    for scene, got in zip(asked, seen, strict=True):
        for name, value in attributes(scene).items():
            hits[value].append(got[name] == value)
    return {value: percentage(hit) for value, hit in sorted(hits.items())}


def score_edits(
    targets: Sequence[Scene], seen: Sequence[Attributes], attribute: str
) -> dict[str, float]:
    """Percentages of images where the attribute is as asked, where the others are, and both."""
    wrong = [mistakes(attributes(t), got) for t, got in zip(targets, seen, strict=True)]
    return {
        "changed as asked": percentage(attribute not in names for names in wrong),
        "rest stayed": percentage(not set(names) - {attribute} for names in wrong),
        "both": percentage(not names for names in wrong),
    }


def mistakes(want: Attributes, got: Attributes) -> list[str]:
    """The attributes that differ; the colour only where one was asked for."""
    return [n for n in ATTRIBUTES if want[n] != got[n] and want[n] != NO_COLOUR]


def percentage(hits: Iterable[bool]) -> float:
    """Share of hits in percent; NaN where there is nothing to hit."""
    values = list(hits)
    return 100 * sum(values) / len(values) if values else math.nan
