"""Which scenes there are, which of them training sees, and how they are drawn at random."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

TIMES = ("dawn", "noon", "dusk", "dark")
WEATHERS = ("clear", "fog", "rain", "snow")
COLOURS = ("red", "white", "blue", "green", "yellow")
COLOURED_SUBJECTS = ("lighthouse", "house", "boat", "castle", "windmill", "balloon")
PLAIN_SUBJECTS = ("robot", "trees", "mountains", "cat")
SUBJECTS = COLOURED_SUBJECTS + PLAIN_SUBJECTS

NO_COLOUR = "none"
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "colour": (NO_COLOUR, *COLOURS),
    "time": TIMES,
    "weather": WEATHERS,
}
"""What an image is judged by, and the values of each."""

CLEAR_PROBABILITY = 0.4
HELD_OUT_FRACTION = 0.1
# Chosen so that the withheld combinations spread evenly over the values of every attribute.
HELD_OUT_SALT = 1984


@dataclass(frozen=True)
class Scene:
    """Everything that an image depends on except its size.

    ``colour`` is one of COLOURS for COLOURED_SUBJECTS and None for PLAIN_SUBJECTS; ``seed`` (a
    non-negative integer) fixes the composition.
    """

    subject: str
    colour: str | None
    time: str
    weather: str
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subject not in SUBJECTS:
            raise ValueError(f"unknown subject {self.subject!r}; one of {', '.join(SUBJECTS)}")
        if self.time not in TIMES:
            raise ValueError(f"unknown time {self.time!r}; one of {', '.join(TIMES)}")
        if self.weather not in WEATHERS:
            raise ValueError(f"unknown weather {self.weather!r}; one of {', '.join(WEATHERS)}")
        allowed = COLOURS if self.subject in COLOURED_SUBJECTS else (None,)
        if self.colour not in allowed:
            raise ValueError(f"a {self.subject} has colour {allowed}, not {self.colour!r}")

    @property
    def attributes(self) -> dict[str, str]:
        """What an image of the scene shows: a value for each of `ATTRIBUTES`."""
        return {name: getattr(self, name) or NO_COLOUR for name in ATTRIBUTES}


def combinations() -> Iterator[Scene]:
    """Every combination of subject, colour, time and weather, each with seed 0."""
    for subject in SUBJECTS:
        for colour in COLOURS if subject in COLOURED_SUBJECTS else (None,):
            for time in TIMES:
                for weather in WEATHERS:
                    yield Scene(subject, colour, time, weather)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's combination of attributes is withheld from training.

    A stable hash of the four attributes decides; the composition seed has no say. About
    HELD_OUT_FRACTION of the combinations are withheld, some for every value of every attribute.
    """
    key = f"{scene.subject}/{scene.colour}/{scene.time}/{scene.weather}/{HELD_OUT_SALT}"
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_FRACTION * 2**32


def random_scene(rng: np.random.Generator, held_out: bool | None = False) -> Scene:
    """A scene drawn from ``rng``: of the training set, of the withheld set (True), of both (None).

    Subjects, colours and times are uniform; the weather is clear with CLEAR_PROBABILITY and
    otherwise uniform.
    """
    while True:
        subject = SUBJECTS[rng.integers(len(SUBJECTS))]
        colour = COLOURS[rng.integers(len(COLOURS))] if subject in COLOURED_SUBJECTS else None
        time = TIMES[rng.integers(len(TIMES))]
        clear = rng.random() < CLEAR_PROBABILITY
        weather = "clear" if clear else WEATHERS[1 + rng.integers(len(WEATHERS) - 1)]
        scene = Scene(subject, colour, time, weather, int(rng.integers(2**31)))
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def scene_at(index: int, seed: int = 0, held_out: bool | None = False) -> Scene:
    """Member ``index`` of the endless fixed set number ``seed``, independent of all others."""
    return random_scene(np.random.default_rng([seed, index]), held_out)
