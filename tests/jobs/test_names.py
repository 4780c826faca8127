"""Names of files with fields in them."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest

from sdpy.errors import UsageError
from sdpy.jobs.fields import A1111_FIELDS, FIELDS, moment_fields, prompt_fields
from sdpy.jobs.names import NameTemplate

VALUES = {
    **prompt_fields("a (red:1.3) lighthouse at dark, in the fog of an autumn morning"),
    **moment_fields(datetime(2026, 3, 4, 5, 6, 7)),
    "line": 12,
    "seed": 7,
    "steps": 30,
    "guidance": 7.5,
    "sampler": "DPM++ 2M",
    "sigmas": None,
    "lora": [Path("loras/ink.safetensors")],
    "image": Path("photos/cat.jpg"),
}


def name(text: str, number: int | None = None, **values: object) -> str:
    template = NameTemplate.parse(text, more=("lora", "image"))
    return template.render({**VALUES, **values}, number).as_posix()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sd_final.png", "sd_final.png"),
        (
            "out/{line:05d}_{seed}_{slug}.png",
            "out/00012_7_a-red-lighthouse-at-dark-in-the-fog-of-an-autumn-morning.png",
        ),
        ("{words}.png", "a red lighthouse at dark in the fog.png"),
        ("{slug:.5}-{guidance}-{guidance:.2f}.png", "a-red-7.5-7.50.png"),
        ("{sigmas}.png", "none.png"),
        ("{date}/{time}.png", "2026-03-04/050607.png"),
        ("{datetime:%Y}.png", "2026.png"),
        ("{n:04d}.png", "0003.png"),
        ("pic-%04d.png", "pic-0003.png"),
        ("{{seed}}.png", "{seed}.png"),
        ("100%.png", "100%.png"),
        ("[steps]/[seed] [cfg] [sampler].png", "30/7 7.5 DPM++ 2M.png"),
        ("[date]-[datetime]-[datetime<%H>].png", "2026-03-04-20260304050607-05.png"),
        ("photo[1] [draft].png", "photo[1] [draft].png"),
        ("{image}.png", "cat.png"),
    ],
)
def test_fields_become_text(text: str, path: str) -> None:
    assert name(text, number=3) == path


@pytest.mark.parametrize(
    ("prompt", "slug"),
    [
        ("Cat's café (über:1.2), [dusk]", "cats-café-über-dusk"),
        ("🏰", "untitled"),
        ("snake_case --and-- dashes", "snake-case-and-dashes"),
    ],
)
def test_a_slug_is_made_of_words(prompt: str, slug: str) -> None:
    assert prompt_fields(prompt)["slug"] == slug


@pytest.mark.parametrize(
    "prompt",
    ["../../etc/passwd", "a/b\\c", "..", "/", "", ".hidden", "a\nb\0c", "x" * 5000, "é" * 900],
)
def test_a_prompt_makes_neither_folders_nor_names_that_are_too_long(prompt: str) -> None:
    path = Path(name("out/{prompt}_{prompt}_{prompt}.png", **prompt_fields(prompt)))
    assert path.parent == Path("out")
    assert path.suffix == ".png"
    assert len(os.fsencode(path.name)) <= 250
    assert not path.name.startswith(".")
    assert path.name.isprintable()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{sed}.png", "unknown field {sed}: did you mean {seed}"),
        ("{}.png", "unknown field {}: use a field such as"),
        ("{seed!r}.png", "unknown field {seed!r}"),
        ("{seed.real}.png", "unknown field {seed.real}"),
        ("{seed.png", "double a brace"),
        ("seed}.png", "double a brace"),
        ("{slug:05d}.png", "'05d' does not suit {slug}"),
        ("{seed:%Y}.png", "'%Y' does not suit {seed}"),
        ("[styles].png", "[styles] of A1111's web UI has no counterpart"),
        ("[seed<3>].png", "[seed<3>]"),
    ],
)
def test_a_name_that_cannot_be_is_refused_at_once(text: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        NameTemplate.parse(text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_field_without_a_value_is_told() -> None:
    with pytest.raises(UsageError, match="nothing here has a {line}; use seed"):
        NameTemplate.parse("{line}.png").render({"seed": 1})


def test_a_format_that_does_not_suit_a_jobs_own_field_is_told() -> None:
    template = NameTemplate.parse("{shot:03d}.png", more=["shot"])
    assert template.render({"shot": 4}) == Path("004.png")
    with pytest.raises(UsageError, match="does not suit {shot}"):
        template.render({"shot": "four"})


def test_what_a_name_consists_of() -> None:
    template = NameTemplate.parse("[seed]_{n}_{slug}.png")
    assert template.fields == {"seed", "n", "slug"}
    assert template.has_counter and not template.is_plain
    assert NameTemplate.parse("a{{b}}.png").is_plain


@pytest.mark.parametrize(
    ("text", "there", "number"),
    [
        ("{n}.png", [], 1),
        ("{n:04d}.png", ["0001.png", "0007.png", "x.png", "0009.jpg"], 8),
        ("{seed}-{n:02d}-{n}.png", ["7-03-3.png", "8-05-5.png", "7-120-120.png"], 121),
        ("{n}/{seed}.png", ["4/7.png", "5/other.png"], 6),
        ("deep/{n}.png", ["deep/2.png", "3.png"], 3),
        ("missing/{n}.png", ["3.png"], 1),
        ("({n}).png", ["(1).png", "2.png"], 2),
        ("{n:03d}-{seed}.png", ["001-7.png", "004-999.png", "x-1.png"], 5),
        ("{seed}/{n}.png", ["7/3.png", "8/9.png"], 4),
        ("{slug}{n}.png", ["castle12.png"], 13),
    ],
)
def test_the_next_number_is_after_those_that_there_are(
    text: str, there: list[str], number: int, tmp_path: Path
) -> None:
    for file in there:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    template = NameTemplate.parse(tmp_path / text)
    assert template.next_number(VALUES) == number
    assert not template.render(VALUES, number).exists()


def test_a1111s_fields_are_ours() -> None:
    assert {ours for ours in A1111_FIELDS.values() if ours is not None} <= set(FIELDS)
