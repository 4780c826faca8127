"""Which scenes there are, which of them training sees, and how they are drawn at random."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scripts.demo.scenes.scene import COLOURS, TIMES, WEATHERS

COLOURED_SUBJECTS = (
    *("lighthouse", "house", "boat", "castle", "windmill", "balloon"),
    *("tent", "car", "rocket", "mushroom", "tulip"),
)
PLAIN_SUBJECTS = (
    *("robot", "trees", "mountains", "cat"),
    *("dog", "sheep", "snowman", "church", "bridge"),
)
SUBJECTS = COLOURED_SUBJECTS + PLAIN_SUBJECTS

PLACES = ("left", "middle", "right")
SIZES = ("small", "medium", "large")
STYLES = ("painted", "flat", "ink")

PAIRED = (
    *("house", "castle", "windmill", "tent", "car", "rocket", "mushroom", "tulip"),
    *("robot", "cat", "dog", "sheep", "snowman", "church", "balloon"),
)
"""Subjects that may stand beside another: all that need no scenery of their own."""

NONE = "none"
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "colour": (NONE, *COLOURS),
    "second": (NONE, *SUBJECTS),
    "second colour": (NONE, *COLOURS),
    "place": PLACES,
    "size": SIZES,
    "time": TIMES,
    "weather": WEATHERS,
    "style": STYLES,
}
"""What an image is judged by, and the values of each.

Of two subjects the first is the one on the left, and the size is its own: the other's follows.
"""

PAIR_PROBABILITY = 0.35
CLEAR_PROBABILITY = 0.4
PLAIN_PROBABILITY = 0.5
"""Chances of two subjects, of clear weather, and of the middle and a medium size."""

PAINTED_PROBABILITY = 0.5
HELD_OUT_FRACTION = 0.1
HELD_OUT_SALT = 7


@dataclass(frozen=True)
class Thing:
    """A subject of a scene.

    ``colour`` is one of COLOURS for COLOURED_SUBJECTS and None for PLAIN_SUBJECTS.
    """

    subject: str
    colour: str | None = None
    size: str = "medium"

    def __post_init__(self) -> None:
        _check("subject", self.subject, SUBJECTS)
        _check("size", self.size, SIZES)
        allowed = COLOURS if self.subject in COLOURED_SUBJECTS else (None,)
        if self.colour not in allowed:
            raise ValueError(f"a {self.subject} has colour {allowed}, not {self.colour!r}")


@dataclass(frozen=True)
class Scene:
    """Everything that an image depends on except its resolution.

    Attributes:
        things: one subject, or two from left to right.
        place: where a single subject stands; "middle" for two.
        time: of day.
        weather: as it says.
        style: of drawing.
        seed: a non-negative integer, which fixes the composition.
    """

    things: tuple[Thing, ...]
    place: str
    time: str
    weather: str
    style: str
    seed: int = 0

    def __post_init__(self) -> None:
        _check("place", self.place, PLACES)
        _check("time", self.time, TIMES)
        _check("weather", self.weather, WEATHERS)
        _check("style", self.style, STYLES)
        if len(self.things) not in (1, 2):
            raise ValueError(f"a scene has one or two subjects, not {len(self.things)}")
        if len(self.things) == 2:
            subjects = [thing.subject for thing in self.things]
            if subjects[0] == subjects[1] or not set(subjects) <= set(PAIRED):
                raise ValueError(f"{subjects[0]} and {subjects[1]} do not stand side by side")
            if self.place != "middle":
                raise ValueError("two subjects fill the image; they have no place in it")

    @property
    def attributes(self) -> dict[str, str]:
        """What an image of the scene shows: a value for each of `ATTRIBUTES`."""
        first, second = (*self.things, None)[:2]
        assert first is not None
        return {
            "subject": first.subject,
            "colour": first.colour or NONE,
            "second": NONE if second is None else second.subject,
            "second colour": NONE if second is None else second.colour or NONE,
            "place": self.place,
            "size": first.size,
            "time": self.time,
            "weather": self.weather,
            "style": self.style,
        }


def mirrored(attributes: dict[str, str]) -> dict[str, str]:
    """What an image of such `Scene.attributes` shows once it is mirrored."""
    places = dict(zip(PLACES, PLACES[::-1], strict=True))
    shown = {**attributes, "place": places[attributes["place"]]}
    if attributes["second"] != NONE:
        # The other is small where this one is large, and the other way round.
        sizes = dict(zip(SIZES, SIZES[::-1], strict=True))
        shown["subject"], shown["second"] = attributes["second"], attributes["subject"]
        shown["colour"], shown["second colour"] = attributes["second colour"], attributes["colour"]
        shown["size"] = sizes[attributes["size"]]
    return shown


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; one of {', '.join(known)}")


def combinations() -> Iterator[Scene]:
    """Every single subject in the middle, by colour, time and weather, painted, with seed 0."""
    for subject in SUBJECTS:
        for colour in COLOURS if subject in COLOURED_SUBJECTS else (None,):
            for time in TIMES:
                for weather in WEATHERS:
                    yield Scene((Thing(subject, colour),), "middle", time, weather, "painted")


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's combination is withheld from training.

    For one subject the combination is subject, colour, time and weather; for two it is both
    subjects and their colours, whichever stands on the left. A stable hash decides.
    """
    names = sorted(f"{thing.subject}/{thing.colour}" for thing in scene.things)
    if len(names) == 1:
        names += [scene.time, scene.weather]
    digest = hashlib.sha256("/".join([*names, str(HELD_OUT_SALT)]).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_FRACTION * 2**32


def random_scene(rng: np.random.Generator, held_out: bool | None = False) -> Scene:
    """A scene drawn from ``rng``: of the training set, of the withheld set (True), of both (None).

    Subjects, colours and times are uniform. A value that captions seldom mention is the usual one:
    clear weather, the middle of the image, a medium size, the painted style.
    """
    while True:
        scene = _any_scene(rng)
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def _any_scene(rng: np.random.Generator) -> Scene:
    time = TIMES[rng.integers(len(TIMES))]
    weather = _usually(rng, CLEAR_PROBABILITY, WEATHERS, "clear")
    style = _usually(rng, PAINTED_PROBABILITY, STYLES, "painted")
    seed = int(rng.integers(2**31))
    if rng.random() < PAIR_PROBABILITY:
        first, second = rng.choice(len(PAIRED), 2, replace=False)
        sizes = ("medium", "medium")
        if rng.random() > PLAIN_PROBABILITY:
            sizes = ("small", "large") if rng.random() < 0.5 else ("large", "small")
        left, right = (
            Thing(PAIRED[k], _colour(rng, PAIRED[k]), size)
            for k, size in zip((first, second), sizes, strict=True)
        )
        return Scene((left, right), "middle", time, weather, style, seed)
    subject = SUBJECTS[rng.integers(len(SUBJECTS))]
    place = _usually(rng, PLAIN_PROBABILITY, PLACES, "middle")
    size = _usually(rng, PLAIN_PROBABILITY, SIZES, "medium")
    if subject in ("trees", "mountains"):  # they fill the image
        place, size = "middle", "medium"
    return Scene((Thing(subject, _colour(rng, subject), size),), place, time, weather, style, seed)


def _colour(rng: np.random.Generator, subject: str) -> str | None:
    return COLOURS[rng.integers(len(COLOURS))] if subject in COLOURED_SUBJECTS else None


def _usually(
    rng: np.random.Generator, probability: float, values: tuple[str, ...], usual: str
) -> str:
    """The usual value with a probability, and otherwise any of the others."""
    if rng.random() < probability:
        return usual
    others = [value for value in values if value != usual]
    return others[rng.integers(len(others))]


def scene_at(index: int, seed: int = 0, held_out: bool | None = False) -> Scene:
    """Member ``index`` of the endless fixed set number ``seed``, independent of all others."""
    return random_scene(np.random.default_rng([seed, index]), held_out)
