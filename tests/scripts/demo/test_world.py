"""The world of the demo model at 256x256: its scenes, how they look, and their captions."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from scripts.demo import world
from scripts.demo.scenes.scene import COLOURS, TIMES, WEATHERS
from scripts.demo.world import Scene, Thing, captions, edits
from scripts.demo.world.scene import (
    COLOURED_SUBJECTS,
    PAIRED,
    PLACES,
    SIZES,
    STYLES,
    SUBJECTS,
    combinations,
    random_scene,
)

HOUSE = Scene((Thing("house", "red"),), "middle", "noon", "clear", "painted", 1)
CAT_AND_HOUSE = Scene(
    (Thing("cat", size="small"), Thing("house", "red", "large")),
    *("middle", "dusk", "rain", "ink"),
    seed=2,
)


def scenes(count: int, held_out: bool | None = False) -> list[Scene]:
    return [world.scene_at(i, 7, held_out) for i in range(count)]


def difference(one: Scene, other: Scene, size: int = 48) -> float:
    drawn = (world.draw(scene, size).astype(int) for scene in (one, other))
    return float(np.abs(next(drawn) - next(drawn)).mean())


# -- which scenes there are ----------------------------------------------------------------------


def test_every_value_occurs_and_the_usual_ones_most() -> None:
    drawn = scenes(1500)
    for name, values in world.ATTRIBUTES.items():
        known = {"none", *PAIRED} if name == "second" else set(values)
        assert {scene.attributes[name] for scene in drawn} == known
    pairs = sum(len(scene.things) == 2 for scene in drawn)
    assert 0.25 < pairs / len(drawn) < 0.45
    painted = sum(scene.style == "painted" for scene in drawn)
    assert 0.4 < painted / len(drawn) < 0.6


def test_withheld_combinations_never_occur_in_training() -> None:
    assert not any(world.is_held_out(scene) for scene in scenes(300))
    assert all(world.is_held_out(scene) for scene in scenes(100, held_out=True))
    share = sum(map(world.is_held_out, combinations())) / sum(1 for _ in combinations())
    assert 0.07 < share < 0.13


def test_what_stands_where_does_not_decide_what_is_withheld() -> None:
    for scene in scenes(200, held_out=None):
        if len(scene.things) == 2:
            swapped = replace(scene, things=scene.things[::-1])
            assert world.is_held_out(swapped) == world.is_held_out(scene)


def test_attributes_are_those_of_the_scene() -> None:
    assert CAT_AND_HOUSE.attributes == {
        "subject": "cat",
        "colour": "none",
        "second": "house",
        "second colour": "red",
        "place": "middle",
        "size": "small",
        "time": "dusk",
        "weather": "rain",
        "style": "ink",
    }


def test_a_mirrored_image_shows_the_other_sides() -> None:
    assert world.mirrored(CAT_AND_HOUSE.attributes) == {
        **CAT_AND_HOUSE.attributes,
        "subject": "house",
        "colour": "red",
        "second": "cat",
        "second colour": "none",
        "size": "large",
    }
    left = replace(HOUSE, place="left", things=(Thing("house", "red", "small"),))
    assert world.mirrored(left.attributes) == {**left.attributes, "place": "right"}
    for scene in scenes(200, held_out=None):
        assert world.mirrored(world.mirrored(scene.attributes)) == scene.attributes
        if len(scene.things) == 2:  # and these are what the scene with its sides exchanged shows
            swapped = replace(scene, things=scene.things[::-1])
            assert world.mirrored(scene.attributes) == swapped.attributes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Thing("unicorn"), "unknown subject 'unicorn'"),
        (lambda: Thing("cat", "red"), "a cat has colour"),
        (lambda: Thing("house"), "a house has colour"),
        (lambda: replace(HOUSE, style="cubist"), "unknown style 'cubist'"),
        (lambda: replace(HOUSE, things=()), "one or two subjects"),
        (lambda: replace(HOUSE, things=(Thing("cat"), Thing("cat"))), "do not stand side by side"),
        (lambda: replace(HOUSE, things=(Thing("cat"), Thing("trees"))), "do not stand"),
        (lambda: replace(CAT_AND_HOUSE, place="left"), "two subjects fill the image"),
    ],
    ids=itertools.count(),
)
def test_impossible_scenes_are_refused(wrong, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


# -- how they look -------------------------------------------------------------------------------


def test_a_scene_is_drawn_the_same_at_any_time_and_size() -> None:
    assert np.array_equal(world.draw(CAT_AND_HOUSE, 64), world.draw(CAT_AND_HOUSE, 64))
    large = world.draw(HOUSE, 128).reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    small = world.draw(HOUSE, 32).astype(float)
    assert np.abs(large - small).mean() < 6


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_subject_can_be_drawn_in_every_style(subject: str, style: str) -> None:
    colour = COLOURS[0] if subject in COLOURED_SUBJECTS else None
    scene = Scene((Thing(subject, colour),), "middle", "noon", "clear", style, 3)
    image = world.draw(scene, 48)
    assert image.shape == (48, 48, 3) and image.dtype == np.uint8
    assert image.std() > 15
    other = "cat" if subject != "cat" else "dog"
    assert difference(scene, replace(scene, things=(Thing(other),))) > 3


def test_everything_that_a_caption_may_name_is_to_be_seen() -> None:
    changes = [
        *(replace(HOUSE, things=(Thing("house", c),)) for c in COLOURS if c != "red"),
        *(replace(HOUSE, things=(Thing("house", "red", s),)) for s in SIZES if s != "medium"),
        *(replace(HOUSE, place=place) for place in PLACES if place != "middle"),
        *(replace(HOUSE, time=time) for time in TIMES if time != "noon"),
        *(replace(HOUSE, weather=weather) for weather in WEATHERS if weather != "clear"),
        *(replace(HOUSE, style=style) for style in STYLES if style != "painted"),
    ]
    assert min(difference(HOUSE, change) for change in changes) > 1.5


def test_places_sizes_and_pairs_are_where_they_belong() -> None:
    def redness(scene: Scene) -> np.ndarray:
        pixels = world.draw(scene, 64).astype(int)
        return (pixels[..., 0] - pixels[..., 1:].max(axis=-1) > 60).sum(axis=0)

    def middle(scene: Scene) -> float:
        columns = redness(scene)
        return float((columns * np.arange(64)).sum() / columns.sum() / 64)

    left, right = (replace(HOUSE, place=place) for place in ("left", "right"))
    assert middle(left) < 0.4 < middle(HOUSE) < 0.6 < middle(right)
    small, large = (
        replace(HOUSE, things=(Thing("house", "red", size),)) for size in ("small", "large")
    )
    assert 2 * redness(small).sum() < redness(HOUSE).sum() < 0.8 * redness(large).sum()
    pair = replace(HOUSE, things=(Thing("house", "red"), Thing("snowman")))
    assert middle(pair) < 0.4
    assert middle(replace(pair, things=pair.things[::-1])) > 0.6


# -- captions ------------------------------------------------------------------------------------


def words_of(table: dict[str, tuple[tuple[float, str], ...]], value: str) -> list[str]:
    return [words for _, words in table[value]]


def test_complete_captions_name_everything_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    for scene in (random_scene(rng, None) for _ in range(300)):
        text = captions.caption(scene, rng, complete=True).lower()
        for thing in scene.things:
            assert any(noun in text for _, noun, _ in captions.WORLD_NOUNS[thing.subject])
            assert thing.colour is None or re.search(rf"\b{thing.colour}\b", text)
            if thing.size != "medium":
                sizes = words_of(captions.SIZE_WORDS, thing.size)
                assert any(re.search(rf"\b{word}\b", text) for word in sizes)
        if len(scene.things) == 2 or scene.place != "middle":
            assert "left" in text or "right" in text
        if scene.style != "painted":
            assert scene.style in text


def test_sides_of_a_pair_are_not_mixed_up() -> None:
    rng = np.random.default_rng(1)
    pair = replace(CAT_AND_HOUSE, things=(Thing("cat"), Thing("dog")))
    seen = set()
    for _ in range(200):
        text = captions.caption(pair, rng, complete=True).lower()
        cat, dog = text.index("cat"), text.index("dog")
        if "to the left of" in text:
            assert cat < dog
            seen.add("left of")
        elif "to the right of" in text:
            assert dog < cat
            seen.add("right of")
        else:
            left, right = text.index("on the left"), text.index("on the right")
            before = text.startswith("on the left")
            nearest = min if before else max
            assert (nearest(cat, dog) == cat) == (left < right) if before else True
            seen.add("both")
    assert seen == {"left of", "right of", "both"}


def test_captions_are_many_and_of_a_small_vocabulary() -> None:
    texts = {world.caption_at(i, version=version) for i in range(100) for version in range(4)}
    assert len(texts) > 350
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    assert len(words) < 200
    assert world.caption_at(5) == world.caption_at(5) != world.caption_at(5, version=1)


def test_withheld_prompts_are_of_withheld_scenes() -> None:
    prompts = world.withheld_prompts(40)
    assert all(world.is_held_out(scene) for scene, _ in prompts)
    assert prompts[:10] == world.withheld_prompts(10)


# -- edits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "attribute", "subjects"), world.EDITS, ids=itertools.count())
def test_edits_change_one_attribute(task: str, attribute: str, subjects: list[str]) -> None:
    for before, after in world.edit_scenes(attribute, 30, subjects):
        changed = {n for n, v in before.attributes.items() if v != after.attributes[n]}
        assert attribute in changed
        # A cat has no colour, so one has to come or go with it.
        assert changed <= {attribute, *(("colour",) if attribute == "subject" else ())}
        assert set(after.things[0].subject.split()) <= set(PAIRED) or attribute != "subject"


def test_the_box_holds_the_subject() -> None:
    for scene in (HOUSE, replace(HOUSE, place="left", seed=5), replace(HOUSE, seed=6)):
        other = replace(scene, things=(Thing("house", "blue"),))
        left, top, right, bottom = edits.subject_box(scene, 64)
        changed = np.abs(world.draw(scene, 64).astype(int) - world.draw(other, 64)).max(-1) > 20
        rows, columns = np.nonzero(changed)
        assert left <= columns.min() and columns.max() < right
        assert top <= rows.min() and rows.max() < bottom
