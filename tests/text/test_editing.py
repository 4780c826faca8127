"""Prompts that change from step to step, as in A1111's web UI."""

from __future__ import annotations

import pytest

from sdpy.text.editing import Part, schedule_text, split_parts


@pytest.mark.parametrize(
    ("prompt", "schedule"),
    [
        ("a cat", [(10, "a cat")]),
        ("", [(10, "")]),
        ("a [cat:dog:3]", [(3, "a cat"), (10, "a dog")]),
        ("a [cat:3]", [(3, "a "), (10, "a cat")]),
        ("a [cat::3]", [(3, "a cat"), (10, "a ")]),
        ("a [: cat:3]", [(3, "a "), (10, "a  cat")]),
        ("a [cat:dog: 3 ]", [(3, "a cat"), (10, "a dog")]),
        # With a decimal point a share of the steps, without one a number of steps.
        ("[a:b:0.25]", [(2, "a"), (10, "b")]),
        ("[a:b:.5]", [(5, "a"), (10, "b")]),
        ("[a:b:1]", [(1, "a"), (10, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:-1]", [(10, "b")]),
        ("[a:b:0.05]", [(10, "b")]),
        ("[a:b:10]", [(10, "a")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:1e999]", [(10, "a")]),
        ("[a:b:-1e999]", [(10, "b")]),
        # Nested, and with weights.
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("([a:b:3]:1.2)", [(3, "(a:1.2)"), (10, "(b:1.2)")]),
        ("[[a:b:2]:[c:d:8]:0.5]", [(2, "a"), (5, "b"), (8, "c"), (10, "d")]),
        # What is typed otherwise stays as it is.
        ("a [cat]", [(10, "a [cat]")]),
        ("(a:1.3)", [(10, "(a:1.3)")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("[a:b:c]", [(10, "[a:b:c]")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[a:b:(3)]", [(10, "[a:b:(3)]")]),
        ("[a|b:c]", [(10, "[a|b:c]")]),
        ("a | b", [(10, "a | b")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a]: b [c:d:3]", [(3, "a]: b c"), (10, "a]: b d")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a (b:c:3]", [(10, "[a (b:c:3]")]),
        # A backslash makes text of a character.
        (r"[a\:b:c:3]", [(3, r"a\:b"), (10, "c")]),
        (r"\[a:b:3\]", [(10, r"\[a:b:3\]")]),
        (r"[a\|b]", [(10, r"[a\|b]")]),
        ("[a:b:3]\\", [(3, "a\\"), (10, "b\\")]),
    ],
)
def test_what_a_prompt_is_in_ten_steps(prompt: str, schedule: list[tuple[int, str]]) -> None:
    assert schedule_text(prompt, 10) == tuple(schedule)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("[cow|horse] in a field", ["cow in a field", "horse in a field"] * 2),
        ("[a|b|c]", ["a", "b", "c", "a"]),
        ("[fe|]male", ["female", "male"] * 2),
        ("[fe|||]male", ["female", "male", "male", "male"]),
        ("[a|(b:1.1)]", ["a", "(b:1.1)"] * 2),
        ("[a|[b|c]]", ["a", "c"] * 2),
        ("[a|b] [c|d|e]", ["a c", "b d", "a e", "b c"]),
        ("[[a|b]:c:2]", ["a", "b", "c", "c"]),
    ],
)
def test_alternatives_take_turns(prompt: str, texts: list[str]) -> None:
    found: list[str] = []
    for last, text in schedule_text(prompt, 4):
        found += [text] * (last - len(found))
    assert found == texts


def test_the_example_of_the_documentation() -> None:
    prompt = (
        "a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
        "[: in background:0.25] [shoddy:masterful:0.5]"
    )
    assert schedule_text(prompt, 100) == (
        (25, "a mountain and an oak in foreground shoddy"),
        (50, "a lake and an oak in foreground in background shoddy"),
        (60, "a lake and an oak in foreground in background masterful"),
        (75, "a lake and an oak in background masterful"),
        (100, "a lake and a christmas tree in background masterful"),
    )


def test_without_a_step_there_is_the_text_of_the_first() -> None:
    assert schedule_text("[a:b:0.5] [c|d]", 0) == ((1, "b c"),)


def test_deep_brackets_take_neither_long_nor_the_stack() -> None:
    deep = 20_000
    assert schedule_text("[" * deep, 10) == ((10, "[" * deep),)
    weighted = "(" * deep + "x" + ")" * deep
    assert schedule_text(weighted, 10) == ((10, weighted),)
    assert schedule_text("[a:" * deep + "x" + ":4]" * deep, 10) == ((4, "a"), (10, "x"))
    assert schedule_text("[a|" * deep + "x" + "]" * deep, 2) == ((1, "a"), (2, "x"))


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a cat :1.2", [("a cat :1.2", 1.0)]),
        ("a cat AND a dog", [("a cat", 1.0), (" a dog", 1.0)]),
        ("a cat :1.2 AND a dog: .5", [("a cat", 1.2), (" a dog", 0.5)]),
        ("a cat AND fog :-1", [("a cat", 1.0), (" fog", -1.0)]),
        ("a (cat:1.3) AND b:2.", [("a (cat:1.3)", 1.0), (" b", 2.0)]),
        ("a AND b\nc :2 AND", [("a", 1.0), (" b\nc", 2.0), ("", 1.0)]),
        ("sand and LAND", [("sand and LAND", 1.0)]),
    ],
)
def test_and_joins_prompts_with_weights(prompt: str, parts: list[tuple[str, float]]) -> None:
    assert split_parts(prompt) == tuple(Part(*part) for part in parts)
