"""English captions of scenes, in the many ways in which people put the same prompt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scripts.demo.scenes.scene import Scene, combinations, is_held_out, scene_at

# (weight, words, article or "" where none fits). The first entry is the plain name.
NOUNS: dict[str, tuple[tuple[float, str, str], ...]] = {
    "lighthouse": ((8, "lighthouse", "a"), (1, "lighthouse tower", "a")),
    "house": ((6, "house", "a"), (2, "cottage", "a"), (1, "little house", "a")),
    "boat": (
        (4, "sailing boat", "a"),
        (3, "sailboat", "a"),
        (2, "boat", "a"),
        (1, "sailing boat on the sea", "a"),
    ),
    "castle": ((6, "castle", "a"), (1, "castle on a hill", "a"), (1, "fortress", "a")),
    "windmill": ((6, "windmill", "a"), (1, "mill", "a")),
    "balloon": (
        (4, "hot air balloon", "a"),
        (3, "balloon", "a"),
        (1, "hot-air balloon", "a"),
    ),
    "robot": (
        (8, "rusty robot holding a torch", "a"),
        (2, "rusty robot with a torch", "a"),
        (2, "robot holding a torch", "a"),
        (2, "rusty robot", "a"),
        (1, "robot", "a"),
    ),
    "trees": (
        (4, "trees", ""),
        (4, "forest", "a"),
        (1, "pine trees", ""),
        (1, "fir trees", ""),
        (1, "woods", "the"),
    ),
    "mountains": (
        (6, "mountains", ""),
        (2, "mountain", "a"),
        (1, "mountain range", "a"),
        (1, "mountain landscape", "a"),
    ),
    "cat": ((4, "cat", "a"), (2, "cat on a wall", "a"), (2, "sitting cat", "a")),
}

# How a colour is attached other than by standing before the noun.
COLOUR_SUFFIX = {
    "boat": ("with a {} sail", "with {} sails"),
    "castle": ("with {} roofs", "with {} towers"),
    "house": ("with {} walls",),
}

TIME_PHRASES = {
    "dawn": (
        (5, "at dawn"),
        (3, "at sunrise"),
        (2, "in the early morning"),
        (1, "at daybreak"),
        (1, "in the morning"),
    ),
    "noon": (
        (5, "at noon"),
        (2, "at midday"),
        (2, "by day"),
        (2, "in daylight"),
        (1, "in the daytime"),
        (1, "in bright daylight"),
    ),
    "dusk": ((5, "at dusk"), (4, "at sunset"), (3, "in the evening"), (1, "at twilight")),
    "dark": (
        (6, "at dark"),
        (5, "at night"),
        (2, "in the dark"),
        (2, "by moonlight"),
        (2, "after nightfall"),
        (1, "after dark"),
        (1, "in the night"),
        (1, "at midnight"),
        (1, "under a dark sky"),
    ),
}
TIME_NOUNS = {
    "dawn": ((3, "dawn"), (2, "sunrise"), (2, "morning")),
    "noon": ((2, "noon"), (1, "midday"), (2, "day")),
    "dusk": ((3, "dusk"), (2, "sunset"), (3, "evening")),
    "dark": ((6, "night"),),
}
TIME_TAGS = {
    "dawn": ((3, "dawn"), (2, "sunrise"), (2, "early morning")),
    "noon": ((3, "noon"), (1, "midday"), (2, "daylight"), (2, "day")),
    "dusk": ((3, "dusk"), (2, "sunset"), (2, "evening")),
    "dark": ((3, "dark"), (3, "night"), (1, "moonlight"), (1, "dark sky")),
}
WEATHER_PHRASES = {
    "clear": ((4, "under a clear sky"), (3, "in clear weather"), (2, "with a clear sky")),
    "fog": (
        (5, "in fog"),
        (4, "in the fog"),
        (2, "in the mist"),
        (1, "in thick fog"),
        (1, "in mist"),
    ),
    "rain": ((6, "in the rain"), (3, "in rain"), (1, "in heavy rain"), (1, "while it rains")),
    "snow": (
        (5, "in the snow"),
        (3, "in snow"),
        (2, "during snowfall"),
        (1, "while it snows"),
        (1, "in falling snow"),
    ),
}
WEATHER_ADJECTIVES = {
    "clear": ((1, "clear"),),
    "fog": ((3, "foggy"), (2, "misty")),
    "rain": ((1, "rainy"),),
    "snow": ((1, "snowy"),),
}
WEATHER_TAGS = {
    "clear": ((2, "clear"), (2, "clear sky"), (1, "clear weather")),
    "fog": ((3, "fog"), (1, "mist"), (1, "foggy"), (1, "misty")),
    "rain": ((3, "rain"), (1, "rainy")),
    "snow": ((3, "snow"), (1, "snowfall"), (1, "snowy")),
}
PREFIXES = ("a painting of", "a picture of", "an illustration of", "painting of", "picture of")

# Chances that an attribute goes unmentioned. Clear weather is seldom worth a word, and other
# weather usually is, so that a caption silent about the weather mostly belongs to a clear scene.
SILENT_COLOUR = 0.17
SILENT_TIME = 0.17
SILENT_WEATHER = 0.10
SILENT_CLEAR = 0.70


def pick(rng: np.random.Generator, weighted: Sequence[tuple[float, str]]) -> str:
    """One of the texts, each as often as its weight says."""
    threshold = rng.random() * sum(entry[0] for entry in weighted)
    for entry in weighted:
        threshold -= entry[0]
        if threshold < 0:
            return entry[1]
    return weighted[-1][1]


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the texts, each as often as the others."""
    return options[int(rng.integers(len(options)))]


def _noun_phrase(scene: Scene, colour: str | None, rng: np.random.Generator) -> tuple[str, str]:
    """The subject with its colour, without an article, and the article that it takes."""
    weights = [(entry[0], str(i)) for i, entry in enumerate(NOUNS[scene.subject])]
    _, noun, article = NOUNS[scene.subject][int(pick(rng, weights))]
    if colour is None:
        return noun, article
    suffixes = COLOUR_SUFFIX.get(scene.subject, ())
    if suffixes and " on " not in noun and rng.random() < 0.25:
        return f"{noun} {choose(rng, suffixes).format(colour)}", article
    return f"{colour} {noun}", article


def caption(scene: Scene, rng: np.random.Generator, complete: bool = False) -> str:
    """One English description of the scene, drawn from ``rng``.

    The subject is always named. Other attributes are left out at random unless ``complete``,
    which names them all (clear weather included).
    """
    colour: str | None = scene.colour
    time: str | None = scene.time
    weather: str | None = scene.weather
    draws = rng.random(3)
    if not complete:
        if draws[0] < SILENT_COLOUR:
            colour = None
        if draws[1] < SILENT_TIME:
            time = None
        if draws[2] < (SILENT_CLEAR if weather == "clear" else SILENT_WEATHER):
            weather = None

    style = rng.random()
    if style < 0.12:
        text = _plain_sentence(scene, colour, time, weather, rng)
    elif style < 0.23:
        text = _tag_list(scene, colour, time, weather, rng)
    elif style < 0.40 and time is not None:
        text = _time_noun_sentence(scene, colour, time, weather, rng)
    else:
        text = _phrase_sentence(scene, colour, time, weather, rng)

    if rng.random() < 0.12:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.06:
        text += "."
    return text


def _plain_sentence(
    scene: Scene,
    colour: str | None,
    time: str | None,
    weather: str | None,
    rng: np.random.Generator,
) -> str:
    """The plainest words, as a person types them first: "lighthouse at dark"."""
    _, noun, article = NOUNS[scene.subject][0]
    words = [noun if colour is None else f"{colour} {noun}"]
    if article and rng.random() < 0.5:
        words.insert(0, article)
    if time is not None:
        words.append(TIME_PHRASES[time][0][1])
    if weather is not None:
        words.append(WEATHER_PHRASES[weather][0][1])
    return " ".join(words)


def with_article(words: str, article: str, rng: np.random.Generator) -> str:
    """Words with their article, if they take one, which is often left out."""
    if not article or rng.random() < 0.35:
        return words
    if article == "a" and rng.random() < 0.08:
        article = "the"
    return f"{article} {words}"


def _tag_list(
    scene: Scene,
    colour: str | None,
    time: str | None,
    weather: str | None,
    rng: np.random.Generator,
) -> str:
    """A comma list: "house, red, night, rain" or "red house, rain, night"."""
    tags = [] if time is None else [pick(rng, TIME_TAGS[time])]
    if weather is not None:
        tags.append(pick(rng, WEATHER_TAGS[weather]))
    if colour is not None and rng.random() < 0.5:
        tags.insert(0, colour)
        colour = None
    if rng.random() < 0.4:
        tags = [tags[i] for i in rng.permutation(len(tags))]
    words, _ = _noun_phrase(scene, colour, rng)
    return ", ".join([words, *tags])


def _time_noun_sentence(
    scene: Scene,
    colour: str | None,
    time: str,
    weather: str | None,
    rng: np.random.Generator,
) -> str:
    """The time as a noun: "foggy dawn with a castle", "snowy evening, blue house"."""
    words, article = _noun_phrase(scene, colour, rng)
    subject = with_article(words, article, rng)
    when = pick(rng, TIME_NOUNS[time])
    if weather is not None:
        when = f"{pick(rng, WEATHER_ADJECTIVES[weather])} {when}"
    else:
        when = f"{'dark ' if time == 'dark' and rng.random() < 0.4 else ''}{when}"
    one = "an" if when[0] in "aeiou" else "a"
    style = rng.random()
    if style < 0.3:
        return f"{when} with {subject}"
    if style < 0.6:
        return f"{when}, {subject}"
    # "on a noon", "on a dawn" are not English without an adjective.
    if weather is None and when not in ("day", "night", "evening", "morning"):
        return f"{subject}, {when}"
    return f"{subject} on {one} {when}"


def _phrase_sentence(
    scene: Scene,
    colour: str | None,
    time: str | None,
    weather: str | None,
    rng: np.random.Generator,
) -> str:
    """Prepositional phrases around the subject: "at dusk, a windmill in fog"."""
    words, article = _noun_phrase(scene, colour, rng)
    subject = with_article(words, article, rng)
    phrases = [] if time is None else [pick(rng, TIME_PHRASES[time])]
    if weather is not None:
        if rng.random() < 0.2:  # "rainy, a red house at night"
            adjective = pick(rng, WEATHER_ADJECTIVES[weather])
            return f"{adjective}, {' '.join([subject, *phrases])}"
        phrases.append(pick(rng, WEATHER_PHRASES[weather]))
    if len(phrases) == 2 and rng.random() < 0.35:
        phrases.reverse()
    if phrases and rng.random() < 0.22:
        return f"{phrases[0]}, {' '.join([subject, *phrases[1:]])}"
    if rng.random() < 0.12:
        subject = f"{choose(rng, PREFIXES)} {subject}"
    return " ".join([subject, *phrases])


def caption_at(index: int, seed: int = 0, held_out: bool | None = False, version: int = 0) -> str:
    """A caption of ``scene_at(index, seed, held_out)``; each ``version`` is drawn afresh."""
    rng = np.random.default_rng([seed, index, 1 + version])
    return caption(scene_at(index, seed, held_out), rng)


PROMPTS = (
    "lighthouse at dark",
    "a red lighthouse at noon",
    "a lighthouse at dusk in the rain",
    "a blue house in the snow at night",
    "a green sailing boat at noon",
    "a yellow boat at dawn in fog",
    "a castle at dusk",
    "a red windmill at noon",
    "a rusty robot holding a torch",
    "a rusty robot holding a torch at night",
    "trees in the snow at noon",
    "mountains at dawn",
    "a cat at dusk",
    "a white balloon at noon",
    "a castle with blue roofs at night in the rain",
    "a windmill in fog at dawn",
)
"""Prompts of the sheets to look at."""

PROMPT_SET = 7003
"""Number of the set of random numbers that words are drawn from; the model is trained on set 0."""


def withheld_prompts(count: int) -> list[tuple[Scene, str]]:
    """Scenes of combinations withheld from training, each as often as the others, with captions.

    Every occurrence has its own words, which name all attributes.
    """
    withheld = [scene for scene in combinations() if is_held_out(scene)]
    order = np.random.default_rng(PROMPT_SET).permutation(len(withheld))
    prompts = []
    for i, place in zip(range(count), itertools.cycle(order), strict=False):
        rng = np.random.default_rng([PROMPT_SET, i])
        scene = replace(withheld[place], seed=int(rng.integers(2**31)))
        prompts.append((scene, caption(scene, rng, complete=True)))
    return prompts
