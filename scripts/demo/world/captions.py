"""English captions of the world's scenes, in the many ways in which people put the same prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scripts.demo.scenes.captions import (
    COLOUR_SUFFIX,
    NOUNS,
    SILENT_CLEAR,
    SILENT_COLOUR,
    SILENT_TIME,
    SILENT_WEATHER,
    TIME_NOUNS,
    TIME_PHRASES,
    TIME_TAGS,
    WEATHER_ADJECTIVES,
    WEATHER_PHRASES,
    WEATHER_TAGS,
    choose,
    pick,
)
from scripts.demo.world.scene import Scene, Thing, scene_at

# (weight, words, article or "" where none fits). The first entry is the plain name.
WORLD_NOUNS: dict[str, tuple[tuple[float, str, str], ...]] = {
    **NOUNS,
    "house": ((6, "house", "a"), (2, "cottage", "a")),
    "cat": ((6, "cat", "a"), (2, "sitting cat", "a"), (1, "ginger cat", "a")),
    "tent": ((8, "tent", "a"), (1, "camping tent", "a")),
    "car": ((8, "car", "a"), (1, "motor car", "a"), (1, "automobile", "an")),
    "rocket": ((6, "rocket", "a"), (2, "space rocket", "a"), (1, "spaceship", "a")),
    "mushroom": ((8, "mushroom", "a"), (1, "toadstool", "a")),
    "tulip": ((6, "tulip", "a"), (3, "flower", "a")),
    "dog": ((8, "dog", "a"), (1, "brown dog", "a")),
    "sheep": ((8, "sheep", "a"), (1, "woolly sheep", "a")),
    "snowman": ((8, "snowman", "a"), (1, "snowman with a hat", "a")),
    "church": ((8, "church", "a"), (2, "chapel", "a"), (1, "village church", "a")),
    "bridge": ((6, "bridge", "a"), (3, "stone bridge", "a"), (1, "bridge over water", "a")),
}

SIZE_WORDS = {
    "small": ((4, "small"), (2, "little"), (1, "tiny")),
    "large": ((4, "large"), (3, "big"), (1, "huge")),
}
PLACE_PHRASES = {
    "left": ((5, "on the left"), (1, "on the left side"), (1, "at the left")),
    "right": ((5, "on the right"), (1, "on the right side"), (1, "at the right")),
}
STYLE_PREFIXES = {
    "painted": ((4, "a painting of"), (1, "an oil painting of"), (1, "painting of")),
    "flat": ((3, "a flat illustration of"), (2, "a flat drawing of"), (1, "flat poster of")),
    "ink": ((4, "an ink drawing of"), (2, "an ink sketch of"), (1, "ink drawing of")),
}
STYLE_TAGS = {
    "painted": ((3, "painting"), (2, "painted"), (1, "oil painting")),
    "flat": ((3, "flat"), (2, "flat illustration"), (1, "flat colours")),
    "ink": ((3, "ink"), (3, "ink drawing"), (1, "pen and ink")),
}

# Relations of a thing on the left, {0}, and one on the right, {1}, with the words "left" or "right"
# and without.
SIDES = (
    (4, "{0} to the left of {1}"),
    (4, "{1} to the right of {0}"),
    (2, "{0} on the left and {1} on the right"),
    (1, "{1} on the right and {0} on the left"),
    (1, "on the left {0}, on the right {1}"),
)
TOGETHER = ((4, "{0} and {1}"), (4, "{0} beside {1}"), (3, "{0} next to {1}"))

SILENT_SIDES = 0.45
SILENT_PLACE = 0.15
SILENT_SIZE = 0.15
SILENT_PAINTED = 0.75
SILENT_STYLE = 0.12
"""Chances that something goes unmentioned. What is usual seldom needs a word."""


@dataclass(frozen=True)
class _Said:
    """What a caption says; None is what it leaves out."""

    things: str
    place: str | None
    time: str | None
    weather: str | None
    style: str | None


def caption(scene: Scene, rng: np.random.Generator, complete: bool = False) -> str:
    """One English description of the scene, drawn from ``rng``.

    The subjects are always named. Everything else is left out at random unless ``complete``, which
    names all that is not usual, and clear weather too.
    """
    silent = rng.random(5)

    def said(value: str, place: int, chance: float) -> str | None:
        return value if complete or silent[place] >= chance else None

    place = None
    if scene.place != "middle":
        place = said(scene.place, 0, SILENT_PLACE)
    weather_chance = SILENT_CLEAR if scene.weather == "clear" else SILENT_WEATHER
    style: str | None = None
    if not complete or scene.style != "painted":
        style = said(scene.style, 3, SILENT_PAINTED if scene.style == "painted" else SILENT_STYLE)
    parts = _Said(
        _things(scene, rng, complete),
        place,
        said(scene.time, 1, SILENT_TIME),
        said(scene.weather, 2, weather_chance),
        style,
    )
    form = rng.choice(len(FORMS), p=[chance for chance, _ in FORMS])
    text = FORMS[form][1](parts, rng)
    if rng.random() < 0.12:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.06:
        text += "."
    return text


def _things(scene: Scene, rng: np.random.Generator, complete: bool) -> str:
    """The subjects: "a red house", "a small cat beside a red house"."""
    named = [_thing(thing, rng, complete) for thing in scene.things]
    if len(named) == 1:
        return named[0]
    if complete or rng.random() >= SILENT_SIDES:
        return pick(rng, SIDES).format(*named)
    if rng.random() < 0.5:  # nothing says which is where
        named.reverse()
    return pick(rng, TOGETHER).format(*named)


def _thing(thing: Thing, rng: np.random.Generator, complete: bool) -> str:
    nouns = WORLD_NOUNS[thing.subject]
    weights = [(entry[0], str(i)) for i, entry in enumerate(nouns)]
    _, noun, article = nouns[int(pick(rng, weights))]
    colour, size = thing.colour, thing.size
    words = [noun]
    if colour is not None and (complete or rng.random() >= SILENT_COLOUR):
        suffixes = COLOUR_SUFFIX.get(thing.subject, ())
        if suffixes and " on " not in noun and rng.random() < 0.2:
            words = [noun, choose(rng, suffixes).format(colour)]
        else:
            words = [colour, noun]
    if size != "medium" and (complete or rng.random() >= SILENT_SIZE):
        words.insert(0, pick(rng, SIZE_WORDS[size]))
    text = " ".join(words)
    if not article or rng.random() < 0.25:
        return text
    if article == "the":
        return f"the {text}"
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _plain(said: _Said, rng: np.random.Generator) -> str:
    """The plainest words, as a person types them first: "red house at dark on the left"."""
    words = [said.things]
    if said.place is not None:
        words.append(PLACE_PHRASES[said.place][0][1])
    if said.time is not None:
        words.append(TIME_PHRASES[said.time][0][1])
    if said.weather is not None:
        words.append(WEATHER_PHRASES[said.weather][0][1])
    text = " ".join(words)
    return text if said.style is None else f"{text}, {STYLE_TAGS[said.style][0][1]}"


def _tags(said: _Said, rng: np.random.Generator) -> str:
    """A comma list: "cat beside a red house, night, rain, ink"."""
    tables = (
        (said.place, PLACE_PHRASES),
        (said.time, TIME_TAGS),
        (said.weather, WEATHER_TAGS),
        (said.style, STYLE_TAGS),
    )
    tags = [pick(rng, table[value]) for value, table in tables if value is not None]
    tags = [tags[i] for i in rng.permutation(len(tags))]
    return ", ".join([said.things, *tags])


def _time_noun(said: _Said, rng: np.random.Generator) -> str:
    """The time as a noun: "foggy dawn with a castle", "snowy evening, a blue house"."""
    if said.time is None:
        return _phrases(said, rng)
    when = pick(rng, TIME_NOUNS[said.time])
    if said.weather is not None:
        when = f"{pick(rng, WEATHER_ADJECTIVES[said.weather])} {when}"
    things = said.things
    if said.place is not None:
        things = f"{things} {pick(rng, PLACE_PHRASES[said.place])}"
    text = f"{when} with {things}" if rng.random() < 0.5 else f"{when}, {things}"
    return text if said.style is None else f"{text}, {pick(rng, STYLE_TAGS[said.style])}"


def _phrases(said: _Said, rng: np.random.Generator) -> str:
    """Prepositional phrases around the subjects: "an ink drawing of a windmill at dusk in fog"."""
    phrases = []
    if said.place is not None:
        phrases.append(pick(rng, PLACE_PHRASES[said.place]))
    if said.time is not None:
        phrases.append(pick(rng, TIME_PHRASES[said.time]))
    if said.weather is not None:
        phrases.append(pick(rng, WEATHER_PHRASES[said.weather]))
    if rng.random() < 0.35:
        phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    things = said.things
    if said.style is not None and rng.random() < 0.7:
        things = f"{pick(rng, STYLE_PREFIXES[said.style])} {things}"
    elif said.style is not None:
        phrases[-1:] = [", ".join([*phrases[-1:], pick(rng, STYLE_TAGS[said.style])])]
    elif phrases and rng.random() < 0.2:
        return f"{phrases[0]}, {' '.join([things, *phrases[1:]])}"
    elif rng.random() < 0.08:
        things = f"a picture of {things}"
    return " ".join([things, *phrases])


FORMS: tuple[tuple[float, Callable[[_Said, np.random.Generator], str]], ...] = (
    (0.14, _plain),
    (0.14, _tags),
    (0.16, _time_noun),
    (0.56, _phrases),
)
"""How captions are put, and the chance of each way."""


def caption_at(index: int, seed: int = 0, held_out: bool | None = False, version: int = 0) -> str:
    """A caption of ``scene_at(index, seed, held_out)``; each ``version`` is drawn afresh."""
    rng = np.random.default_rng([seed, index, 1 + version])
    return caption(scene_at(index, seed, held_out), rng)


PROMPTS = (
    "lighthouse at dark",
    "a red lighthouse at noon on the left",
    "an ink drawing of a castle at dusk",
    "a blue house in the snow at night",
    "a green sailing boat at noon, flat",
    "a cat beside a red house",
    "a small dog to the left of a large blue tent at noon",
    "a red windmill and a sheep at dawn",
    "a rusty robot holding a torch at night",
    "a yellow car to the right of a church in the rain",
    "trees in the snow at noon",
    "mountains at dawn",
    "a cat at dusk, ink",
    "a white balloon to the left of a green rocket at noon",
    "a snowman beside a red mushroom in the snow",
    "a bridge at night in fog",
)
"""Prompts of the sheets to look at."""

PROMPT_SET = 7003
"""Number of the endless set of scenes that withheld prompts are of."""


def withheld_prompts(count: int) -> list[tuple[Scene, str]]:
    """Scenes of combinations withheld from training, with captions that name all attributes."""
    prompts = []
    for i in range(count):
        scene = scene_at(i, PROMPT_SET, held_out=True)
        prompts.append((scene, caption(scene, np.random.default_rng([PROMPT_SET, i]), True)))
    return prompts
