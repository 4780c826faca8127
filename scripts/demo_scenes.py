"""Procedural scenes with captions: what the bundled demo model learns from.

A :class:`Scene` names a subject, its colour, a time of day, the weather and a composition seed.
:func:`draw` paints it, :func:`caption` describes it in plain English, and both depend on their
arguments alone, so any process can render any part of the set.

Shapes are signed distance functions evaluated inside their bounding boxes; coverage is the
distance clamped to one pixel, which anti-aliases without supersampling. Picture coordinates are
x to the right and y downwards, both in [0, 1]; a subject has its own frame with u to the right,
v upwards and its height as the unit.

    python scripts/demo_scenes.py sheet OUT.png [--seed N] [--size N]
    python scripts/demo_scenes.py draw OUT.png --subject house --colour red --time dusk
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

Array = np.ndarray
RGB = tuple[float, float, float]
Point = tuple[float, float]

TIMES = ("dawn", "noon", "dusk", "dark")
WEATHERS = ("clear", "fog", "rain", "snow")
COLOURS = ("red", "white", "blue", "green", "yellow")
COLOURED_SUBJECTS = ("lighthouse", "house", "boat", "castle", "windmill", "balloon")
PLAIN_SUBJECTS = ("robot", "trees", "mountains", "cat")
SUBJECTS = COLOURED_SUBJECTS + PLAIN_SUBJECTS

CLEAR_PROBABILITY = 0.4
HELD_OUT_FRACTION = 0.1
# Chosen so that the withheld combinations spread evenly over the values of every attribute.
HELD_OUT_SALT = 1984


@dataclass(frozen=True)
class Scene:
    """Everything a picture depends on except its size.

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


# ------------------------------------------------------------------------------------------------
# Which scenes there are
# ------------------------------------------------------------------------------------------------


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


def caption_at(index: int, seed: int = 0, held_out: bool | None = False, version: int = 0) -> str:
    """A caption of ``scene_at(index, seed, held_out)``; each ``version`` is drawn afresh."""
    rng = np.random.default_rng([seed, index, 1 + version])
    return caption(scene_at(index, seed, held_out), rng)


# ------------------------------------------------------------------------------------------------
# Captions
# ------------------------------------------------------------------------------------------------

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


def _pick(rng: np.random.Generator, weighted: Sequence[tuple[float, str]]) -> str:
    threshold = rng.random() * sum(entry[0] for entry in weighted)
    for entry in weighted:
        threshold -= entry[0]
        if threshold < 0:
            return entry[1]
    return weighted[-1][1]


def _choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _noun_phrase(scene: Scene, colour: str | None, rng: np.random.Generator) -> tuple[str, str]:
    """The subject with its colour, without an article, and the article that it takes."""
    weights = [(entry[0], str(i)) for i, entry in enumerate(NOUNS[scene.subject])]
    _, noun, article = NOUNS[scene.subject][int(_pick(rng, weights))]
    if colour is None:
        return noun, article
    suffixes = COLOUR_SUFFIX.get(scene.subject, ())
    if suffixes and " on " not in noun and rng.random() < 0.25:
        return f"{noun} {_choose(rng, suffixes).format(colour)}", article
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


def _with_article(words: str, article: str, rng: np.random.Generator) -> str:
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
    tags = [] if time is None else [_pick(rng, TIME_TAGS[time])]
    if weather is not None:
        tags.append(_pick(rng, WEATHER_TAGS[weather]))
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
    subject = _with_article(words, article, rng)
    when = _pick(rng, TIME_NOUNS[time])
    if weather is not None:
        when = f"{_pick(rng, WEATHER_ADJECTIVES[weather])} {when}"
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
    subject = _with_article(words, article, rng)
    phrases = [] if time is None else [_pick(rng, TIME_PHRASES[time])]
    if weather is not None:
        if rng.random() < 0.2:  # "rainy, a red house at night"
            adjective = _pick(rng, WEATHER_ADJECTIVES[weather])
            return f"{adjective}, {' '.join([subject, *phrases])}"
        phrases.append(_pick(rng, WEATHER_PHRASES[weather]))
    if len(phrases) == 2 and rng.random() < 0.35:
        phrases.reverse()
    if phrases and rng.random() < 0.22:
        return f"{phrases[0]}, {' '.join([subject, *phrases[1:]])}"
    if rng.random() < 0.12:
        subject = f"{_choose(rng, PREFIXES)} {subject}"
    return " ".join([subject, *phrases])


# ------------------------------------------------------------------------------------------------
# Light and weather
# ------------------------------------------------------------------------------------------------


def _rgb(values: Sequence[float] | Array) -> Array:
    return np.asarray(values, dtype=np.float32)


def _mix(a: Sequence[float] | Array, b: Sequence[float] | Array, t: float) -> Array:
    return _rgb(a) * np.float32(1 - t) + _rgb(b) * np.float32(t)


@dataclass(frozen=True)
class Light:
    """Colours of one time of day. ``lit`` and ``shade`` multiply albedos on either side of a thing.

    ``lamps`` says how much artificial light shows (0 by day, 1 at dark). ``overcast`` is the grey
    of rain clouds, ``mist`` of fog, ``flurry`` of a snowing sky.
    """

    top: RGB
    middle: RGB
    low: RGB
    lit: RGB
    shade: RGB
    sun: RGB
    cloud: RGB
    overcast: RGB
    mist: RGB
    flurry: RGB
    lamps: float


LIGHTS = {
    "dawn": Light(
        top=(0.55, 0.67, 0.88),
        middle=(0.97, 0.76, 0.80),
        low=(1.00, 0.87, 0.68),
        lit=(1.10, 0.92, 0.84),
        shade=(0.70, 0.58, 0.70),
        sun=(1.00, 0.93, 0.74),
        cloud=(1.00, 0.86, 0.86),
        overcast=(0.72, 0.60, 0.64),
        mist=(0.84, 0.74, 0.78),
        flurry=(0.84, 0.72, 0.78),
        lamps=0.0,
    ),
    "noon": Light(
        top=(0.20, 0.50, 0.90),
        middle=(0.46, 0.73, 0.97),
        low=(0.80, 0.92, 1.00),
        lit=(1.08, 1.06, 1.00),
        shade=(0.72, 0.76, 0.84),
        sun=(1.00, 0.98, 0.88),
        cloud=(1.00, 1.00, 1.00),
        overcast=(0.50, 0.56, 0.62),
        mist=(0.82, 0.86, 0.88),
        flurry=(0.68, 0.74, 0.81),
        lamps=0.0,
    ),
    "dusk": Light(
        top=(0.19, 0.13, 0.40),
        middle=(0.74, 0.28, 0.42),
        low=(1.00, 0.58, 0.20),
        lit=(1.04, 0.75, 0.59),
        shade=(0.48, 0.34, 0.50),
        sun=(1.00, 0.72, 0.30),
        cloud=(0.86, 0.40, 0.44),
        overcast=(0.34, 0.23, 0.32),
        mist=(0.64, 0.40, 0.42),
        flurry=(0.46, 0.31, 0.46),
        lamps=0.75,
    ),
    "dark": Light(
        top=(0.015, 0.03, 0.13),
        middle=(0.05, 0.09, 0.27),
        low=(0.12, 0.19, 0.42),
        lit=(0.54, 0.57, 0.80),
        shade=(0.26, 0.29, 0.48),
        sun=(0.96, 0.95, 0.84),
        cloud=(0.14, 0.19, 0.38),
        overcast=(0.06, 0.075, 0.13),
        mist=(0.24, 0.27, 0.37),
        flurry=(0.11, 0.14, 0.26),
        lamps=1.0,
    ),
}

PAINT = {
    "red": (0.86, 0.13, 0.10),
    "white": (0.95, 0.94, 0.92),
    "blue": (0.10, 0.32, 0.86),
    "green": (0.12, 0.60, 0.22),
    "yellow": (1.00, 0.84, 0.10),
}
SNOW_COVER = (0.97, 0.98, 1.00)
WARM = (1.00, 0.86, 0.50)


# ------------------------------------------------------------------------------------------------
# Shapes: a bounding box (x0, y0, x1, y1) and a signed distance, negative inside
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    bounds: tuple[float, float, float, float]
    distance: Callable[[Array, Array], Array]


def _polygon(points: Sequence[Point]) -> Shape:
    """A convex polygon: the largest of its edges' half-plane distances."""
    xs = [p[0] for p in points]
    ys = [p[1] for p in points]
    area = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(points)))
    edges = []
    for i in range(len(points)):
        dx, dy = xs[i] - xs[i - 1], ys[i] - ys[i - 1]
        scale = math.copysign(1 / max(math.hypot(dx, dy), 1e-9), area)
        edges.append((dy * scale, -dx * scale, xs[i], ys[i]))

    def distance(x: Array, y: Array) -> Array:
        nx, ny, px, py = edges[0]
        d = nx * (x - px) + ny * (y - py)
        for nx, ny, px, py in edges[1:]:
            np.maximum(d, nx * (x - px) + ny * (y - py), out=d)
        return d

    return Shape((min(xs), min(ys), max(xs), max(ys)), distance)


def _ellipse(cx: float, cy: float, rx: float, ry: float) -> Shape:
    small = min(rx, ry)

    def distance(x: Array, y: Array) -> Array:
        return (np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2) - 1) * small

    return Shape((cx - rx, cy - ry, cx + rx, cy + ry), distance)


def _capsule(a: Point, b: Point, ra: float, rb: float) -> Shape:
    """A line from ``a`` to ``b`` whose radius goes from ``ra`` to ``rb``."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    square = max(dx * dx + dy * dy, 1e-9)

    def distance(x: Array, y: Array) -> Array:
        t = np.clip(((x - a[0]) * dx + (y - a[1]) * dy) / square, 0, 1)
        return np.hypot(x - a[0] - t * dx, y - a[1] - t * dy) - (ra + t * (rb - ra))

    r = max(ra, rb)
    bounds = (min(a[0], b[0]) - r, min(a[1], b[1]) - r, max(a[0], b[0]) + r, max(a[1], b[1]) + r)
    return Shape(bounds, distance)


def _without(shape: Shape, hole: Shape) -> Shape:
    """What is left of a shape where another is cut out of it."""
    return Shape(shape.bounds, lambda x, y: np.maximum(shape.distance(x, y), -hole.distance(x, y)))


@dataclass(frozen=True)
class Frame:
    """A subject's own coordinates: u to the right (left if mirrored), v up, unit its height."""

    x: float
    y: float
    height: float
    mirror: float = 1.0

    def at(self, u: float, v: float) -> Point:
        return self.x + self.mirror * u * self.height, self.y - v * self.height

    def polygon(self, *points: Point) -> Shape:
        return _polygon([self.at(*p) for p in points])

    def box(self, u0: float, v0: float, u1: float, v1: float) -> Shape:
        return self.polygon((u0, v0), (u1, v0), (u1, v1), (u0, v1))

    def ellipse(self, u: float, v: float, ru: float, rv: float) -> Shape:
        return _ellipse(*self.at(u, v), ru * self.height, rv * self.height)

    def line(self, a: Point, b: Point, width: float, end_width: float | None = None) -> Shape:
        end = width if end_width is None else end_width
        return _capsule(self.at(*a), self.at(*b), width * self.height / 2, end * self.height / 2)


# ------------------------------------------------------------------------------------------------
# The painter
# ------------------------------------------------------------------------------------------------


class Painter:
    """A picture in progress: pixels, light, weather and the lamps to be lit at the end."""

    def __init__(self, scene: Scene, size: int) -> None:
        self.scene = scene
        self.rng = np.random.default_rng(scene.seed)
        self.size = size
        self.px = 1.0 / size
        centres = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.x = centres[None, :]
        self.y = centres[:, None]
        self.image = np.zeros((size, size, 3), np.float32)
        self.light = LIGHTS[scene.time]
        self.weather = scene.weather
        self.lamps = self.light.lamps
        self.sun_side = -1.0 if self.rng.random() < 0.5 else 1.0
        dim = {"clear": 1.0, "fog": 1.0, "rain": 0.86, "snow": 0.97}[scene.weather]
        # Clouds and fog scatter the light, so the two sides of a thing look more alike.
        spread = {"clear": 0.0, "fog": 0.3, "rain": 0.35, "snow": 0.25}[scene.weather]
        self.lit = _mix(self.light.lit, self.light.shade, spread) * dim
        self.shade = _mix(self.light.shade, self.light.lit, spread * 0.5) * dim
        self.ambient = (self.lit + self.shade) / 2
        self.ground_tone = self._ground_tone()
        # Fog is a little of the sky's colour at the top and brightest low down.
        rise = np.clip(self.y, 0, 1)[..., None]
        above = _mix(self.light.mist, self.light.top, 0.10 if scene.time == "noon" else 0.26)
        below = _mix(self.light.mist, self.light.low, 0.16)
        self.mist = above + rise * (below - above)
        self.glows: list[tuple[float, float, float, Array]] = []

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    # -- painting -------------------------------------------------------------------------------

    def _window(
        self, bounds: tuple[float, float, float, float], pad: float
    ) -> tuple[slice, slice] | None:
        n = self.size
        x0 = max(math.floor((bounds[0] - pad) * n), 0)
        y0 = max(math.floor((bounds[1] - pad) * n), 0)
        x1 = min(math.ceil((bounds[2] + pad) * n), n)
        y1 = min(math.ceil((bounds[3] + pad) * n), n)
        if x0 >= x1 or y0 >= y1:
            return None
        return slice(y0, y1), slice(x0, x1)

    def flat(
        self, shape: Shape, colour: Sequence[float] | Array, opacity: float = 1.0, soft: float = 0.0
    ) -> None:
        """Covers a shape with one colour as it is; ``soft`` widens the edge (picture units)."""
        window = self._window(shape.bounds, self.px + soft)
        if window is None:
            return
        rows, columns = window
        d = shape.distance(self.x[:, columns], self.y[rows])
        edge = 1.15 * self.px + 2 * soft
        cover = np.clip(0.5 - d / edge, 0, 1)
        if soft:
            cover *= cover * (3 - 2 * cover)
        region = self.image[rows, columns]
        region += (cover * np.float32(opacity))[..., None] * (_rgb(colour) - region)

    def solid(self, shape: Shape, albedo: Sequence[float] | Array, turn: float = 1.0) -> None:
        """Covers a shape with a lit material, brighter on the side of the sun.

        ``turn`` scales the contrast between the sides: 1 for round things, less for flat ones.
        """
        window = self._window(shape.bounds, self.px)
        if window is None:
            return
        rows, columns = window
        x = self.x[:, columns]
        d = shape.distance(x, self.y[rows])
        cover = np.clip(0.5 - d / (1.15 * self.px), 0, 1)
        x0, x1 = shape.bounds[0], shape.bounds[2]
        across = np.clip((x - x0) / max(x1 - x0, self.px), 0, 1)
        facing = across if self.sun_side > 0 else 1 - across
        facing = 0.62 + (facing - 0.5) * 0.76 * turn
        colour = self.shade + facing[..., None] * (self.lit - self.shade)
        colour = np.minimum(colour * _rgb(albedo), 1)
        region = self.image[rows, columns]
        region += cover[..., None] * (colour - region)

    def lamp(
        self, shape: Shape, off: Sequence[float], on: Sequence[float] = WARM, always: bool = False
    ) -> None:
        """A pane that is ``off`` by day and shines with the colour ``on`` when it gets dark."""
        amount = 1.0 if always else min(self.lamps * 1.2, 1.0)
        self.flat(shape, _mix(_rgb(off) * self.ambient, on, amount))

    def glow(self, centre: Point, radius: float, strength: float, colour: RGB = WARM) -> None:
        """Remembers a halo to be added over everything, wider where fog scatters it."""
        if self.weather == "fog":
            radius *= 1.25
        self.glows.append((*centre, radius, _rgb(colour) * np.float32(strength)))

    def _screen(self, rows: slice, columns: slice, light: Array) -> None:
        region = self.image[rows, columns]
        region += (1 - region) * light

    def halo(self, cx: float, cy: float, radius: float, light: Array) -> None:
        window = self._window((cx - radius, cy - radius, cx + radius, cy + radius), 0)
        if window is None:
            return
        rows, columns = window
        square = (self.x[:, columns] - cx) ** 2 + (self.y[rows] - cy) ** 2
        falloff = np.clip(1 - square / np.float32(radius * radius), 0, 1)
        self._screen(rows, columns, (falloff * falloff * falloff)[..., None] * light)

    def beam(self, centre: Point, angle: float, spread: float, strength: float) -> None:
        """A soft wedge of light from a lamp, along ``angle`` (radians, 0 to the right)."""
        c, s = math.cos(angle), math.sin(angle)
        dx, dy = self.x - centre[0], self.y - centre[1]
        along = dx * c + dy * s
        width = np.maximum(along, 0) * spread + 0.012
        inside = np.clip(1 - np.abs(dy * c - dx * s) / width, 0, 1)
        fade = np.clip(1 - along / 1.1, 0, 1) * np.clip(along / 0.02, 0, 1)
        light = inside * (2 - inside) * fade * np.float32(strength)
        self._screen(slice(None), slice(None), light[..., None] * _rgb((1.0, 0.93, 0.66)))

    def veil(self, colour: Sequence[float] | Array, amount: Array | float) -> None:
        """Mixes everything painted so far with a colour; ``amount`` is a number or (H, W or 1)."""
        if isinstance(amount, np.ndarray):
            amount = amount[..., None]
        self.image += amount * (_rgb(colour) - self.image)

    def ridge(
        self,
        height: Array,
        upper: Array,
        lower: Array,
        depth: float = 0.3,
    ) -> None:
        """Everything below the line ``height`` (1, W), shaded from ``upper`` down to ``lower``."""
        start = max(int(float(height.min()) * self.size) - 2, 0)
        rows = slice(start, self.size)
        y = self.y[rows]
        cover = np.clip(0.5 + (y - height) / (1.3 * self.px), 0, 1)
        t = np.clip((y - height) / depth, 0, 1)[..., None]
        colour = upper + t * (lower - upper)
        region = self.image[rows]
        region += cover[..., None] * (colour - region)

    def waves(self, base: float, amplitude: float, frequency: float = 1.0) -> Array:
        """A rolling line (1, W) around the height ``base``."""
        line = np.full_like(self.x, base)
        for octave in (1.0, 2.3):
            phase = self.uniform(0, 2 * math.pi)
            rate = 2 * math.pi * frequency * octave * self.uniform(0.7, 1.2)
            line += np.float32(amplitude / octave) * np.sin(self.x * np.float32(rate) + phase)
        return line

    def dots(self, cells: int, small: float, large: float, share: float) -> Array:
        """Soft round spots (H, W) in [0, 1], at most one in each cell of a jittered grid."""
        shape = (cells, cells)
        radius = self.rng.uniform(small, large, shape).astype(np.float32)
        room = np.maximum(0.5 / cells - radius, 0) * cells
        cx = 0.5 + self.rng.uniform(-1, 1, shape).astype(np.float32) * room
        cy = 0.5 + self.rng.uniform(-1, 1, shape).astype(np.float32) * room
        # An absent spot keeps its cell but shrinks to nothing.
        radius = np.where(self.rng.random(shape) < share, radius, np.float32(1e-4))
        index = np.minimum((self.x[0] * cells).astype(np.int64), cells - 1)
        grid = np.ix_(index, index)
        fx = self.x * cells - index[None, :]
        fy = self.y * cells - index[:, None]
        square = ((fx - cx[grid]) ** 2 + (fy - cy[grid]) ** 2) / (radius[grid] * cells) ** 2
        return np.clip(1.35 * (1 - square), 0, 1)

    # -- sky ------------------------------------------------------------------------------------

    def paint_sky(self, horizon: float) -> None:
        light = self.light
        top, middle, low = _rgb(light.top), _rgb(light.middle), _rgb(light.low)
        jitter = self.rng.uniform(-0.025, 0.025, 3).astype(np.float32)
        scale = 0.4 if self.scene.time == "dark" else 1.0
        top, middle = top + jitter * scale, middle + jitter * scale * 0.5
        grey, amount = {
            "clear": (light.low, 0.0),
            "fog": (light.mist, 0.76),
            "rain": (light.overcast, 0.74),
            "snow": (light.flurry, 0.80),
        }[self.weather]
        top, middle, low = (_mix(c, grey, amount) for c in (top, middle, low))
        if self.weather == "rain":
            top = top * np.float32(0.72)
        t = np.clip(self.y / horizon, 0, 1)[..., None]
        bend = self.uniform(0.48, 0.62)
        upper = np.clip(t / bend, 0, 1)
        lower = np.clip((t - bend) / (1 - bend), 0, 1)
        self.image[:] = top + upper * (middle - top) + lower * (low - middle)

    def paint_sun(self, horizon: float, subject_x: float) -> Point | None:
        """The sun or the moon, beside the subject; returns where, or None when hidden."""
        side = self.sun_side
        x = subject_x + side * self.uniform(0.27, 0.40)
        if not 0.08 < x < 0.92:
            x = min(max(x, 0.10), 0.90)
        time = self.scene.time
        y = {
            "dawn": horizon - self.uniform(0.04, 0.12),
            "noon": self.uniform(0.10, 0.20),
            "dusk": horizon - self.uniform(0.02, 0.10),
            "dark": self.uniform(0.12, 0.26),
        }[time]
        phase = self.uniform(0, 1)
        if self.weather in ("rain", "snow"):
            return None
        sun = _rgb(self.light.sun)
        visible = 0.55 if self.weather == "fog" else 1.0
        if time == "dark":
            self.halo(x, y, 0.32, _rgb((0.30, 0.36, 0.55)) * visible)
            moon = _ellipse(x, y, 0.064, 0.064)
            if phase < 0.4 and self.weather == "clear":
                moon = _without(moon, _ellipse(x - side * 0.034, y - 0.016, 0.056, 0.056))
            self.flat(moon, sun, visible)
        elif time == "noon":
            self.halo(x, y, 0.42, sun * np.float32(0.55 * visible))
            self.flat(_ellipse(x, y, 0.060, 0.060), sun, visible, soft=0.006)
        else:
            warm = sun if time == "dawn" else _rgb((1.0, 0.52, 0.18))
            self.halo(x, y, 0.62, warm * np.float32(0.62 * visible))
            radius = 0.062 if time == "dawn" else 0.082
            self.flat(_ellipse(x, y, radius, radius), sun, visible, soft=0.004)
        return x, y

    def paint_clouds(self, horizon: float) -> None:
        overcast = self.weather in ("rain", "snow")
        if self.weather == "fog":
            return
        count = int(self.rng.integers(4, 6)) if overcast else int(self.rng.integers(0, 4))
        for k in range(count):
            if overcast:
                grey = self.light.overcast if self.weather == "rain" else self.light.flurry
                dark = np.float32(0.80 if self.weather == "rain" else 0.92)
                colour = _rgb(grey) * np.float32(self.uniform(0.85, 1.05)) * dark
                x, y = (k + self.uniform(0.1, 0.9)) / count, self.uniform(-0.02, 0.12)
                width, opacity, soft = self.uniform(0.16, 0.26), 0.85, 0.035
            else:
                colour = _mix(self.light.cloud, self.light.low, self.uniform(0, 0.3))
                x, y = self.uniform(0, 1), self.uniform(0.10, 0.55) * horizon
                width, opacity, soft = self.uniform(0.09, 0.17), self.uniform(0.55, 0.85), 0.014
            self.flat(_ellipse(x, y, width, width * 0.24), colour, opacity, soft)
            for side in (-0.35, 0.25):
                bump = width * self.uniform(0.32, 0.46)
                at = x + side * width, y - width * 0.18
                self.flat(_ellipse(*at, bump, bump * 0.8), colour, opacity, soft)

    def paint_stars(self, horizon: float) -> None:
        if self.scene.time != "dark" or self.weather != "clear":
            return
        spots = self.dots(8, 0.007, 0.012, 0.42)
        spots *= np.clip((horizon - self.y) / 0.25, 0, 1)
        self.veil((0.88, 0.91, 1.0), spots * np.float32(0.85))

    # -- land and sea ---------------------------------------------------------------------------

    def distance_haze(self, colour: Array, amount: float) -> Array:
        """A far colour faded towards the light above the horizon."""
        haze = {
            "clear": self.light.low,
            "fog": self.light.mist,
            "rain": self.light.overcast,
            "snow": self.light.flurry,
        }[self.weather]
        more = {"clear": 0.0, "fog": 0.3, "rain": 0.12, "snow": 0.08}[self.weather]
        return _mix(colour, haze, min(amount + more, 0.92))

    def _ground_tone(self) -> Array:
        jitter = self.uniform(-0.05, 0.05)
        if self.weather == "snow":
            return _rgb(SNOW_COVER)
        grass = _rgb((0.40 + jitter, 0.60, 0.25 - jitter * 0.5))
        return grass * np.float32(0.8) if self.weather == "rain" else grass

    def paint_hills(self, horizon: float) -> None:
        albedo = self.ground_tone
        blue = _rgb((0.40, 0.52, 0.62)) if self.weather != "snow" else _rgb((0.80, 0.86, 0.95))
        for k, (lift, amplitude, fade) in enumerate(((0.10, 0.035, 0.50), (0.045, 0.025, 0.22))):
            colour = _mix(blue, albedo, 0.35 + 0.4 * k) * self.ambient
            colour = self.distance_haze(colour, fade)
            line = self.waves(horizon - lift * self.uniform(0.6, 1.3), amplitude, 0.8 + 0.3 * k)
            self.ridge(line, colour, colour * np.float32(0.90))

    def paint_ground(self, horizon: float) -> None:
        albedo = self.ground_tone
        line = self.waves(horizon + 0.01, 0.012, 0.6)
        near = np.float32(0.66 if self.weather != "snow" else 0.80)
        self.ridge(line, self.lit * albedo * 0.92, self.ambient * albedo * near, 1.02 - horizon)

    def paint_sea(self, horizon: float, sun: Point | None) -> None:
        near = _rgb((0.12, 0.36, 0.52))
        if self.weather in ("rain", "snow", "fog"):
            near = _rgb((0.24, 0.38, 0.48))
        near = near * self.ambient * 1.15
        far = self.distance_haze(near, 0.55)
        self.ridge(np.full_like(self.x, horizon), far, near, 0.9 * (1 - horizon))
        depth = 1 - horizon
        for k in range(4):  # broad soft swells
            y = horizon + depth * (0.12 + 0.23 * k + self.uniform(0, 0.1))
            x, width = self.uniform(0.1, 0.9), self.uniform(0.22, 0.4)
            self.flat(_ellipse(x, y, width, 0.008 + 0.004 * k), far, 0.40, soft=0.006)
        if sun is None or self.weather != "clear":
            return
        strength = {"dawn": 0.6, "noon": 0.25, "dusk": 0.75, "dark": 0.5}[self.scene.time]
        for k in range(5):  # the sun's or the moon's path on the water
            y = horizon + depth * (0.07 + 0.2 * k)
            width = 0.05 + 0.018 * k
            x = sun[0] + self.uniform(-0.012, 0.012)
            self.flat(
                _ellipse(x, y, width, 0.013), self.light.sun, strength * (1 - 0.13 * k), 0.008
            )

    # -- what the weather puts in front ---------------------------------------------------------

    def paint_far_weather(self) -> None:
        if self.weather == "fog":
            self.veil(self.mist, 0.52)

    def paint_near_weather(self, horizon: float) -> None:
        if self.weather != "fog":
            return
        # A veil over all, thicker near the ground, with a drifting bank or two.
        rise = np.exp(-(((self.y - horizon - 0.08) / 0.20) ** 2))
        self.veil(self.mist, np.float32(0.22) + np.float32(0.26) * rise)
        for _ in range(3):
            x, y = self.uniform(0, 1), horizon + self.uniform(-0.08, 0.14)
            shape = _ellipse(x, y, self.uniform(0.25, 0.45), self.uniform(0.03, 0.055))
            self.flat(shape, np.minimum(_rgb(self.light.mist) * 1.04, 1), 0.42, soft=0.03)

    def paint_glows(self) -> None:
        for cx, cy, radius, light in self.glows:
            self.halo(cx, cy, radius, light)

    def paint_falling(self) -> None:
        if self.weather == "rain":
            self._paint_rain()
        elif self.weather == "snow":
            brightness = {"dawn": 1.0, "noon": 1.0, "dusk": 0.92, "dark": 0.85}[self.scene.time]
            spots = self.dots(8, 0.014, 0.021, 0.75)
            np.maximum(spots, self.dots(5, 0.018, 0.027, 0.55), out=spots)
            colour = np.minimum(_mix(SNOW_COVER, self.light.cloud, 0.12), 1) * brightness
            self.veil(colour, spots * np.float32(0.92))

    def _paint_rain(self) -> None:
        lanes = 17
        slant = self.sun_side * self.uniform(0.22, 0.34)
        across = (self.x + self.y * np.float32(slant) + 1) * lanes
        lane = across.astype(np.int64)
        offset = self.rng.random(4 * lanes).astype(np.float32)
        rate = self.rng.uniform(2.2, 3.2, 4 * lanes).astype(np.float32)
        side = np.abs(across - lane - 0.5) / (0.0105 * lanes)
        phase = self.y * rate[lane] + offset[lane]
        phase -= np.floor(phase)
        along = np.clip(1 - np.abs(phase - 0.5) / 0.26, 0, 1)
        streak = np.clip(1.5 * (1 - side), 0, 1) * np.minimum(along * 3, 1)
        colour = _mix(self.light.cloud, (0.85, 0.90, 1.0), 0.6)
        strength = {"dawn": 0.62, "noon": 0.62, "dusk": 0.50, "dark": 0.42}[self.scene.time]
        self.veil(colour, streak * np.float32(strength))


# ------------------------------------------------------------------------------------------------
# Subjects. Each paints itself in a frame whose base stands on the ground.
# ------------------------------------------------------------------------------------------------

STONE = (0.66, 0.64, 0.62)
SLATE = (0.30, 0.29, 0.34)
WOOD = (0.46, 0.30, 0.18)
GLASS = (0.45, 0.58, 0.68)
TRIM = (0.93, 0.92, 0.90)


def _window_pane(p: Painter, shape: Shape) -> None:
    p.lamp(shape, GLASS)


def _snow_cap(p: Painter, *shapes: Shape) -> None:
    if p.weather == "snow":
        for shape in shapes:
            p.solid(shape, SNOW_COVER, 0.5)


def _lighthouse(p: Painter, f: Frame, paint: RGB) -> None:
    lamp = f.at(0, 0.815)
    if p.lamps > 0:
        tilt, spread = p.uniform(-0.14, 0.14), p.uniform(0.17, 0.25)
        strength = (0.50 if p.weather == "clear" else 0.60) * p.lamps
        p.beam(lamp, tilt, spread, strength)
        p.beam(lamp, tilt + math.pi, spread, strength)
    rock = SNOW_COVER if p.weather == "snow" else (0.42, 0.37, 0.34)
    low = (0.34, 0.31, 0.30)
    p.solid(f.ellipse(0.02, -0.08, 0.50, 0.115), low)
    p.solid(f.ellipse(-0.05, -0.025, 0.36, 0.085), rock)

    def half(v: float) -> float:
        return 0.160 - 0.065 * v / 0.72

    def ring(v0: float, v1: float) -> Shape:
        return f.polygon((-half(v0), v0), (half(v0), v0), (half(v1), v1), (-half(v1), v1))

    p.solid(ring(0, 0.72), paint)
    if paint != PAINT["white"]:
        for v in (0.15, 0.43):
            p.solid(ring(v, v + 0.14), TRIM)
    p.solid(f.box(-0.035, 0.01, 0.035, 0.115), SLATE)
    p.solid(f.box(-0.135, 0.715, 0.135, 0.752), SLATE)
    p.lamp(f.box(-0.078, 0.752, 0.078, 0.875), (0.80, 0.88, 0.92), (1.0, 0.95, 0.68))
    roof = SLATE if paint == PAINT["white"] else paint
    p.solid(f.polygon((-0.105, 0.87), (0.105, 0.87), (0.0, 0.985)), roof)
    _snow_cap(p, f.polygon((-0.06, 0.925), (0.06, 0.925), (0.0, 0.99)))
    if p.lamps > 0:
        p.glow(lamp, 0.30 * f.height, 0.85 * p.lamps)
        p.glow(lamp, 0.11 * f.height, 0.8 * p.lamps, (1.0, 0.97, 0.80))


def _shadow(p: Painter, f: Frame, half: float, v: float = 0.0) -> None:
    """The soft darkness under a thing that stands on the ground."""
    colour = p.shade * p.ground_tone * np.float32(0.55)
    p.flat(f.ellipse(0, v, half, 0.045), colour, 0.6, soft=0.014)


def _house(p: Painter, f: Frame, paint: RGB) -> None:
    roof = (0.40, 0.24, 0.20) if paint != PAINT["red"] else SLATE
    gable = p.rng.random() < 0.5
    _shadow(p, f, 0.56)
    p.solid(f.box(0.22, 0.62, 0.34, 0.98), (0.55, 0.34, 0.28), 0.6)
    _snow_cap(p, f.box(0.21, 0.95, 0.35, 1.0))
    p.solid(f.box(-0.50, 0.0, 0.50, 0.56), paint, 0.7)
    if gable:
        p.solid(f.polygon((-0.50, 0.55), (0.50, 0.55), (0.0, 0.94)), paint, 0.7)
        for side in (-1, 1):
            p.solid(f.line((0, 0.94), (side * 0.57, 0.50), 0.10), roof, 0.4)
            _snow_cap(p, f.line((0, 0.97), (side * 0.57, 0.535), 0.07))
        _window_pane(p, f.ellipse(0, 0.66, 0.085, 0.085))
    else:
        p.solid(f.polygon((-0.60, 0.52), (0.60, 0.52), (0.42, 0.90), (-0.42, 0.90)), roof, 0.5)
        _snow_cap(p, f.polygon((-0.545, 0.64), (0.545, 0.64), (0.42, 0.92), (-0.42, 0.92)))
    p.solid(f.box(-0.10, 0.0, 0.10, 0.33), WOOD, 0.5)
    for u in (-0.32, 0.32):
        p.solid(f.box(u - 0.125, 0.17, u + 0.125, 0.43), TRIM, 0.4)
        _window_pane(p, f.box(u - 0.095, 0.20, u + 0.095, 0.40))
        if p.lamps > 0:
            p.glow(f.at(u, 0.30), 0.34 * f.height, 0.55 * p.lamps)


def _boat(p: Painter, f: Frame, paint: RGB) -> None:
    p.solid(f.box(-0.012, 0.10, 0.022, 1.0), WOOD)
    p.solid(f.polygon((0.045, 0.20), (0.045, 0.97), (0.50, 0.20)), paint, 0.8)
    p.solid(f.polygon((-0.04, 0.20), (-0.04, 0.84), (-0.38, 0.20)), np.array(paint) * 0.88, 0.8)
    hull = (0.44, 0.26, 0.16)
    p.solid(f.polygon((-0.46, 0.15), (0.54, 0.15), (0.36, -0.04), (-0.34, -0.04)), hull, 0.6)
    p.solid(f.polygon((-0.47, 0.155), (0.55, 0.155), (0.51, 0.105), (-0.43, 0.105)), TRIM, 0.5)
    p.flat(f.ellipse(0.0, -0.05, 0.50, 0.028), p.ambient * _rgb((0.62, 0.78, 0.86)), 0.6, 0.008)
    if p.lamps > 0:
        lamp = f.at(-0.40, 0.22)
        p.flat(_ellipse(*lamp, 0.032 * f.height, 0.032 * f.height), (1.0, 0.93, 0.65))
        p.glow(lamp, 0.36 * f.height, 0.75 * p.lamps)
        p.glow(f.at(-0.40, -0.12), 0.22 * f.height, 0.35 * p.lamps)


def _castle(p: Painter, f: Frame, paint: RGB) -> None:
    stone = _mix(STONE, paint, 0.10)
    if p.weather == "snow":
        p.flat(f.ellipse(0, -0.16, 0.95, 0.24), p.ambient * _rgb(SNOW_COVER))
    else:
        p.solid(f.ellipse(0, -0.16, 0.95, 0.24), p.ground_tone * np.float32(0.85), 0.6)

    def tower(u: float, half: float, top: float, roof: float, bottom: float = 0.0) -> None:
        p.solid(f.box(u - half, bottom, u + half, top), stone)
        tip = (u, top + roof)
        p.solid(f.polygon((u - half * 1.35, top), (u + half * 1.35, top), tip), paint)
        snow = f.polygon(
            (u - half * 0.68, top + roof * 0.5), (u + half * 0.68, top + roof * 0.5), tip
        )
        _snow_cap(p, snow)

    def banner(u: float, v: float) -> None:
        p.solid(f.line((u, v - 0.03), (u, v + 0.13), 0.016), SLATE)
        p.solid(f.polygon((u, v + 0.135), (u + 0.13, v + 0.095), (u, v + 0.05)), paint, 0.4)

    tower(0.0, 0.135, 0.64, 0.25, 0.30)
    banner(0.0, 0.865)
    p.solid(f.box(-0.38, 0.0, 0.38, 0.36), np.asarray(stone) * 0.93, 0.6)
    for u in (-0.20, -0.07, 0.07, 0.20):
        p.solid(f.box(u - 0.035, 0.355, u + 0.035, 0.41), np.asarray(stone) * 0.93, 0.3)
    left, right = p.uniform(0.46, 0.54), p.uniform(0.46, 0.54)
    tower(-0.40, 0.115, left, 0.24)
    tower(0.40, 0.115, right, 0.24)
    p.solid(f.box(-0.085, 0.0, 0.085, 0.14), (0.25, 0.17, 0.13), 0.4)
    p.solid(f.ellipse(0, 0.14, 0.085, 0.08), (0.25, 0.17, 0.13), 0.4)
    for u, v in ((0.0, 0.52), (-0.40, left - 0.14), (0.40, right - 0.14)):
        _window_pane(p, f.box(u - 0.036, v - 0.055, u + 0.036, v + 0.055))
        if p.lamps > 0:
            p.glow(f.at(u, v), 0.24 * f.height, 0.6 * p.lamps)


def _windmill(p: Painter, f: Frame, paint: RGB) -> None:
    _shadow(p, f, 0.27)
    p.solid(f.polygon((-0.22, 0.0), (0.22, 0.0), (0.125, 0.60), (-0.125, 0.60)), paint)
    p.solid(f.ellipse(0, 0.61, 0.150, 0.115), (0.36, 0.24, 0.20))
    _snow_cap(p, f.ellipse(0, 0.665, 0.115, 0.065))
    p.solid(f.box(-0.055, 0.0, 0.055, 0.15), WOOD, 0.5)
    _window_pane(p, f.box(-0.05, 0.30, 0.05, 0.41))
    if p.lamps > 0:
        p.glow(f.at(0, 0.355), 0.20 * f.height, 0.6 * p.lamps)
    hub = (0.0, 0.60)
    start = p.uniform(0.10, math.pi / 2 - 0.10)
    for k in range(4):
        angle = start + k * math.pi / 2
        c, s = math.cos(angle), math.sin(angle)

        def blade(along: float, across: float, c: float = c, s: float = s) -> Point:
            return hub[0] + c * along - s * across, hub[1] + s * along + c * across

        sail = f.polygon(
            blade(0.10, 0.012), blade(0.415, 0.012), blade(0.415, 0.115), blade(0.10, 0.095)
        )
        p.solid(sail, (0.93, 0.87, 0.74), 0.3)
        p.solid(f.line(hub, blade(0.425, 0.0), 0.034), WOOD, 0.3)
    p.solid(f.ellipse(*hub, 0.042, 0.042), WOOD)


def _balloon(p: Painter, f: Frame, paint: RGB) -> None:
    # Ropes, basket, then the envelope with paler gores.
    for u in (-0.075, 0.075):
        p.solid(f.line((u, 0.10), (u * 2.2, 0.32), 0.018), WOOD)
    pale = _mix(paint, TRIM, 0.62) if paint != PAINT["white"] else _rgb((0.80, 0.80, 0.82))
    p.solid(f.polygon((-0.30, 0.45), (0.30, 0.45), (0.11, 0.22), (-0.11, 0.22)), paint)
    p.solid(f.ellipse(0, 0.645, 0.355, 0.355), paint)
    p.solid(f.ellipse(0, 0.645, 0.145, 0.352), pale)
    p.solid(f.polygon((-0.132, 0.50), (0.132, 0.50), (0.045, 0.22), (-0.045, 0.22)), pale)
    p.solid(f.box(-0.11, 0.0, 0.11, 0.13), (0.55, 0.36, 0.20), 0.7)
    _snow_cap(p, f.ellipse(0, 0.955, 0.17, 0.045))
    if p.lamps > 0:
        p.flat(f.ellipse(0, 0.185, 0.028, 0.048), (1.0, 0.90, 0.55))
        p.glow(f.at(0, 0.22), 0.26 * f.height, 0.75 * p.lamps)
        # The burner lights the envelope from within.
        p.glow(f.at(0, 0.48), 0.42 * f.height, 0.42 * p.lamps, tuple(_mix(paint, WARM, 0.35)))


def _robot(p: Painter, f: Frame, _: RGB) -> None:
    rust, dark, pale = (0.70, 0.36, 0.18), (0.44, 0.24, 0.15), (0.80, 0.52, 0.32)
    _shadow(p, f, 0.30)
    for u in (-0.12, 0.12):
        p.solid(f.line((u, 0.30), (u, 0.06), 0.10), dark)
        p.solid(f.box(u - 0.095, 0.0, u + 0.095, 0.07), dark)
    p.solid(f.line((-0.25, 0.56), (-0.35, 0.34), 0.085), dark)
    p.solid(f.ellipse(-0.355, 0.31, 0.055, 0.055), rust)
    p.solid(f.box(-0.245, 0.27, 0.245, 0.63), rust)
    for _i in range(3):  # patches of deeper rust
        u, v = p.uniform(-0.16, 0.16), p.uniform(0.32, 0.58)
        p.flat(f.ellipse(u, v, 0.06, 0.045), p.ambient * _rgb(dark), 0.55, soft=0.008)
    p.solid(f.ellipse(0, 0.47, 0.085, 0.085), pale, 0.5)
    p.solid(f.box(-0.055, 0.62, 0.055, 0.68), dark)
    p.solid(f.box(-0.17, 0.67, 0.17, 0.91), rust)
    p.solid(f.line((0, 0.90), (0, 0.965), 0.024), dark)
    p.solid(f.ellipse(0, 0.975, 0.032, 0.032), pale)
    p.flat(f.box(-0.14, 0.77, 0.14, 0.86), p.ambient * _rgb((0.20, 0.13, 0.11)))
    for u in (-0.07, 0.07):
        p.lamp(f.ellipse(u, 0.815, 0.036, 0.036), (0.80, 0.95, 0.92), (0.70, 1.0, 0.92))
        if p.lamps > 0:
            p.glow(f.at(u, 0.815), 0.10 * f.height, 0.4 * p.lamps, (0.5, 0.95, 0.9))
    p.solid(f.box(-0.085, 0.705, 0.085, 0.735), dark, 0.4)
    p.solid(f.line((0.25, 0.57), (0.40, 0.52), 0.085), dark)
    p.solid(f.line((0.40, 0.52), (0.42, 0.66), 0.080), rust)
    p.solid(f.line((0.42, 0.60), (0.45, 0.84), 0.040, 0.065), WOOD)
    p.solid(f.ellipse(0.42, 0.67, 0.055, 0.055), rust)
    _snow_cap(p, f.box(-0.17, 0.895, 0.17, 0.925), f.box(-0.25, 0.62, -0.07, 0.645))
    flame = f.at(0.452, 0.925)
    p.flat(f.ellipse(0.452, 0.905, 0.072, 0.085), (1.0, 0.50, 0.10))
    p.flat(f.polygon((0.388, 0.93), (0.516, 0.93), (0.465, 1.06)), (1.0, 0.50, 0.10))
    p.flat(f.ellipse(0.452, 0.895, 0.042, 0.055), (1.0, 0.88, 0.40), soft=0.006)
    strength = 0.25 + 0.55 * p.lamps
    if p.lamps > 0:
        p.glow(f.at(0.16, 0.68), 0.50 * f.height, 0.24 * p.lamps, (1.0, 0.55, 0.22))
    p.glow(flame, (0.24 + 0.22 * p.lamps) * f.height, strength, (1.0, 0.66, 0.26))


def _trees(p: Painter, f: Frame, _: RGB) -> None:
    def fir(u: float, v: float, height: float, green: Array) -> None:
        wide = 0.26 * height
        p.solid(f.box(u - 0.035 * height, v, u + 0.035 * height, v + 0.18 * height), WOOD)
        for k, (low, top, part) in enumerate(
            ((0.12, 0.56, 1.0), (0.36, 0.78, 0.78), (0.60, 1.0, 0.54))
        ):
            tone = green * np.float32(0.88 + 0.10 * k)
            b, t, w = v + low * height, v + top * height, wide * part
            p.solid(f.polygon((u - w, b), (u + w, b), (u, t)), tone)
            m = b + (t - b) * 0.45
            _snow_cap(p, f.polygon((u - w * 0.55, m), (u + w * 0.55, m), (u, t)))

    green = _rgb((0.16 + p.uniform(-0.03, 0.05), 0.44, 0.22 + p.uniform(-0.04, 0.04)))
    far = _mix(green, (0.40, 0.52, 0.56), 0.45)
    # A far row across the picture, then three large ones, the tallest in the middle.
    spacing = 0.34
    shift = p.uniform(0, spacing)
    for k in range(-3, 4):
        fir(k * spacing + shift - spacing / 2, 0.08, p.uniform(0.44, 0.58), far)
    for u, height in ((-0.42, p.uniform(0.66, 0.80)), (0.44, p.uniform(0.62, 0.78)), (0.0, 1.0)):
        fir(u + p.uniform(-0.04, 0.04), p.uniform(-0.06, -0.01), height, green)


def _mountains(p: Painter, f: Frame, _: RGB) -> None:
    rock = _rgb((0.50, 0.50, 0.58)) if p.weather != "snow" else _rgb((0.74, 0.78, 0.86))
    sun = p.sun_side * f.mirror

    def peak(u: float, height: float, half: float, fade: float) -> None:
        tone = p.distance_haze(rock * p.ambient, fade)
        lit, dark = tone * np.float32(1.12), tone * np.float32(0.74)
        snow_lit = p.distance_haze(_rgb(SNOW_COVER) * p.lit, fade * 0.6)
        snow_dark = p.distance_haze(_rgb(SNOW_COVER) * p.shade, fade * 0.6)
        tip, foot = (u, height), u + sun * 0.10 * half
        snow = 0.62 if p.weather != "snow" else 0.38
        for side in (-1, 1):
            bright = side == sun
            p.flat(f.polygon(tip, (u + side * half, -0.1), (foot, -0.1)), lit if bright else dark)
            edge = (u + side * half * (1 - snow) * height / (height + 0.1), height * snow)
            inner = (u + (foot - u) * (1 - snow), height * (snow - 0.07))
            p.flat(f.polygon(tip, edge, inner), snow_lit if bright else snow_dark)

    peak(-0.62 + p.uniform(-0.08, 0.08), p.uniform(0.58, 0.72), 0.55, 0.22)
    peak(0.64 + p.uniform(-0.08, 0.08), p.uniform(0.54, 0.70), 0.55, 0.22)
    peak(0.0, 1.0, 0.66, 0.06)
    peak(p.uniform(0.28, 0.42), p.uniform(0.46, 0.58), 0.46, 0.0)


def _cat(p: Painter, f: Frame, _: RGB) -> None:
    fur, deep, cream = (0.90, 0.52, 0.20), (0.72, 0.37, 0.13), (0.98, 0.88, 0.74)
    wall = (0.58, 0.46, 0.40)
    base = f.at(0, 0)
    low, high = base[1], base[1] + 0.13
    p.solid(
        _polygon([(-0.1, low), (1.1, low), (1.1, 1.1), (-0.1, 1.1)]), np.array(wall) * 0.82, 0.3
    )
    coping = SNOW_COVER if p.weather == "snow" else np.array(wall) * 1.25
    p.solid(
        _polygon(
            [(-0.1, low - 0.02), (1.1, low - 0.02), (1.1, high - 0.075), (-0.1, high - 0.075)]
        ),
        coping,
        0.3,
    )
    p.solid(f.line((0.20, 0.07), (0.44, 0.13), 0.11), deep)
    p.solid(f.line((0.44, 0.13), (0.47, 0.36), 0.11, 0.09), deep)
    p.solid(f.ellipse(0, 0.25, 0.275, 0.27), fur)
    p.solid(f.ellipse(0, 0.42, 0.205, 0.26), fur)
    p.solid(f.ellipse(0, 0.36, 0.105, 0.19), cream, 0.6)
    for u in (-0.10, 0.10):
        p.solid(f.ellipse(u, 0.035, 0.085, 0.055), cream, 0.6)
    for side in (-1, 1):
        ear = ((side * 0.235, 0.78), (side * 0.05, 0.87), (side * 0.205, 1.0))
        p.solid(f.polygon(*ear), fur)
        p.solid(f.polygon((side * 0.205, 0.82), (side * 0.11, 0.86), (side * 0.19, 0.94)), deep)
    p.solid(f.ellipse(0, 0.715, 0.255, 0.195), fur)
    p.solid(f.ellipse(0, 0.635, 0.115, 0.085), cream, 0.6)
    for u in (-0.115, 0.115):
        shine = (0.62, 0.86, 0.34)
        p.lamp(f.ellipse(u, 0.745, 0.052, 0.058), shine, (0.80, 1.0, 0.42))
        p.flat(f.ellipse(u, 0.745, 0.020, 0.050), (0.05, 0.05, 0.05))
    p.flat(f.polygon((-0.032, 0.680), (0.032, 0.680), (0.0, 0.645)), (0.45, 0.18, 0.16))


@dataclass(frozen=True)
class Staging:
    """How a subject is set into the picture: its painter, range of heights, and its ground."""

    paint: Callable[[Painter, Frame, RGB], None]
    low: float
    high: float
    ground: str  # "land", "sea" or "air"
    roam: float = 0.15  # how far from the middle it may stand
    base: tuple[float, float] = (0.04, 0.14)  # how far below the horizon its foot is


STAGINGS: dict[str, Staging] = {
    "lighthouse": Staging(_lighthouse, 0.64, 0.80, "sea", base=(0.04, 0.10)),
    "house": Staging(_house, 0.46, 0.60, "land", roam=0.13),
    "boat": Staging(_boat, 0.54, 0.72, "sea", base=(0.08, 0.16)),
    "castle": Staging(_castle, 0.58, 0.74, "land", roam=0.10, base=(0.02, 0.10)),
    "windmill": Staging(_windmill, 0.62, 0.80, "land", roam=0.12),
    "balloon": Staging(_balloon, 0.56, 0.72, "air"),
    "robot": Staging(_robot, 0.62, 0.78, "land", roam=0.10, base=(0.10, 0.18)),
    "trees": Staging(_trees, 0.60, 0.76, "land", roam=0.15, base=(0.06, 0.14)),
    "mountains": Staging(_mountains, 0.48, 0.60, "land", roam=0.15, base=(-0.02, 0.0)),
    "cat": Staging(_cat, 0.56, 0.72, "land", roam=0.15, base=(0.12, 0.18)),
}


def draw(scene: Scene, size: int = 128) -> Array:
    """Paints a scene: uint8 RGB of shape (size, size, 3). The same scene, the same picture."""
    p = Painter(scene, size)
    staging = STAGINGS[scene.subject]
    height = p.uniform(staging.low, staging.high)
    mirror = 1.0 if p.rng.random() < 0.5 else -1.0
    x = 0.5 + p.uniform(-staging.roam, staging.roam)
    foot = p.uniform(*staging.base)
    if staging.ground == "air":
        horizon = p.uniform(0.76, 0.86)
        base = 0.05 + height + p.uniform(0, max(0.86 - height, 0.01))
        base = min(base, 0.90)
    else:
        horizon = p.uniform(0.66, 0.78)
        horizon = max(horizon, height + 0.08 - foot)
        base = horizon + foot
    frame = Frame(x, base, height, mirror)

    p.paint_sky(horizon)
    p.paint_stars(horizon)
    sun = p.paint_sun(horizon, x)
    p.paint_clouds(horizon)
    paint = PAINT[scene.colour or "white"]  # subjects without a colour ignore it
    if scene.subject == "mountains":
        staging.paint(p, frame, paint)
        p.paint_hills(horizon + 0.05)
    elif staging.ground != "sea" or p.rng.random() < 0.4:
        p.paint_hills(horizon)
    if staging.ground == "sea":
        p.paint_sea(horizon, sun)
        p.paint_far_weather()
    else:
        if scene.subject != "mountains":
            p.paint_far_weather()
        p.paint_ground(horizon + (0.05 if scene.subject == "mountains" else 0))
    if scene.subject != "mountains":
        staging.paint(p, frame, paint)
    p.paint_near_weather(horizon)
    p.paint_glows()
    p.paint_falling()
    return (np.clip(p.image, 0, 1) * 255 + 0.5).astype(np.uint8)


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def contact_sheet(seed: int = 0, size: int = 128) -> Array:
    """Subjects down, time by weather across, colours in turn: uint8 (10*size, 16*size, 3)."""
    rng = np.random.default_rng(seed)
    rows = []
    for r, subject in enumerate(SUBJECTS):
        row = []
        for c, (time, weather) in enumerate((t, w) for t in TIMES for w in WEATHERS):
            coloured = subject in COLOURED_SUBJECTS
            colour = COLOURS[(r + c) % len(COLOURS)] if coloured else None
            row.append(draw(Scene(subject, colour, time, weather, int(rng.integers(2**31))), size))
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows, axis=0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Look at the scenes the demo model learns from.")
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="paint a contact sheet: subjects by time and weather")
    sheet.add_argument("out", type=Path, help="PNG file to write")
    sheet.add_argument("--seed", type=int, default=0, help="composition seed (default 0)")
    sheet.add_argument("--size", type=int, default=128, help="edge of one picture (default 128)")
    single = commands.add_parser("draw", help="draw one scene")
    single.add_argument("out", type=Path, help="picture file to write")
    single.add_argument("--subject", choices=SUBJECTS, required=True)
    single.add_argument("--colour", choices=COLOURS)
    single.add_argument("--time", choices=TIMES, default="noon")
    single.add_argument("--weather", choices=WEATHERS, default="clear")
    single.add_argument("--seed", type=int, default=0, help="composition seed (default 0)")
    single.add_argument("--size", type=int, default=512, help="edge of the picture (default 512)")
    captions = commands.add_parser("captions", help="print captions of the first training scenes")
    captions.add_argument("--count", type=int, default=40)
    captions.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.command == "sheet":
        Image.fromarray(contact_sheet(options.seed, options.size)).save(options.out)
    elif options.command == "draw":
        o = options
        scene = Scene(o.subject, o.colour, o.time, o.weather, o.seed)
        Image.fromarray(draw(scene, o.size)).save(o.out, quality=95)
    else:
        for index in range(options.count):
            print(caption_at(index, options.seed))


if __name__ == "__main__":
    main()
