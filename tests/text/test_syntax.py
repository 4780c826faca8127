"""The syntax of prompts."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sdpy.text.syntax import Span, parse

LESS = 1 / 1.1


def spans(text: str) -> list[tuple[str, float]]:
    """The only section of a prompt."""
    (section,) = parse(text)
    return [(span.text, span.weight) for span in section]


def escaped(text: str) -> str:
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", text)


# The first seven are the examples that the web UI's own documentation of its parser gives.
EXAMPLES = [
    ("normal text", [("normal text", 1)]),
    ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            *[("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55)],
            *[(", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)],
        ],
    ),
    ("", []),
    # weights
    ("((word))", [("word", 1.21)]),
    ("[word]", [("word", LESS)]),
    ("[[word]]", [("word", LESS**2)]),
    ("((((word))))", [("word", 1.4641)]),
    ("(word:1)", [("word", 1)]),
    ("(word:0)", [("word", 0)]),
    ("(word:-0.5)", [("word", -0.5)]),
    ("(word:+2)", [("word", 2)]),
    ("(word:.5)(x:2.)", [("word", 0.5), ("x", 2)]),
    ("(word: 1.3 )", [("word", 1.3)]),
    ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
    ("([word])", [("word", 1)]),
    ("(at 10:30:1.2)", [("at 10:30", 1.2)]),
    # what is no weight
    ("(word:)", [("word:", 1.1)]),
    ("(word:big)", [("word:big", 1.1)]),
    ("(word:1.2.3)", [("word:1.2.3", 1.1)]),
    ("(word:1e3)", [("word:1e3", 1.1)]),
    ("(word:1.3 x)", [("word:1.3 x", 1.1)]),
    ("word:1.3", [("word:1.3", 1)]),
    ("[word:1.3]", [("word:1.3", LESS)]),
    # brackets without a partner
    ("a) b", [("a) b", 1)]),
    ("a] b", [("a] b", 1)]),
    ("a:1.3) b", [("a:1.3) b", 1)]),
    ("[a:1.3) b", [("a:1.3) b", LESS)]),
    ("a (b [c", [("a ", 1), ("b ", 1.1), ("c", 1)]),
    ("((a) b", [("a", 1.21), (" b", 1.1)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", LESS)]),
    ("(a]", [("a]", 1.1)]),
    ("()", []),
    # escapes
    (r"\(a:1.3\)", [("(a:1.3)", 1)]),
    (r"(a \(b\):1.3)", [("a (b)", 1.3)]),
    (r"(a\)b)", [("a)b", 1.1)]),
    (r"a\\(b)", [("a\\", 1), ("b", 1.1)]),
    (r"C:\temp", [(r"C:\temp", 1)]),
    ("a\\", [("a\\", 1)]),
]


@pytest.mark.parametrize(("text", "expected"), EXAMPLES)
def test_examples(text: str, expected: list[tuple[str, float]]) -> None:
    found = spans(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [["a "], [" b"]]),
        ("a\nBREAK\nb", [["a\n"], ["\nb"]]),
        ("a,BREAK,b", [["a,"], [",b"]]),
        ("a BREAK b BREAK", [["a "], [" b "], []]),
        ("BREAK a", [[], [" a"]]),
        ("BREAKBREAK", [["BREAKBREAK"]]),
        ("a break b, BREAKS, OUTBREAK, BREAK_", [["a break b, BREAKS, OUTBREAK, BREAK_"]]),
    ],
)
def test_break_in_capitals_and_alone_makes_sections(text: str, expected: list[list[str]]) -> None:
    assert [[span.text for span in section] for section in parse(text)] == expected


def test_weights_reach_over_a_break() -> None:
    assert parse("(a BREAK b:1.5) c") == (
        (Span("a ", 1.5),),
        (Span(" b", 1.5), Span(" c", 1.0)),
    )


@given(st.text())
@example("(" * 2000)
@example("(a" * 2000 + ":9" * 500 + ")" * 2000)
@example(f"(a:{'9' * 400})(b:-{'9' * 400})")
def test_every_text_is_a_prompt(text: str) -> None:
    sections = parse(text)
    assert sections
    for section in sections:
        assert all(span.text for span in section)
        for one, following in zip(section, section[1:], strict=False):
            assert one.weight != following.weight


SYNTAX = st.lists(
    st.sampled_from(["(", ")", "[", "]", "\\", ":", "1.3", ":1.3)", " ", "a", "é", "BREAK"])
).map("".join)


@given(SYNTAX)
def test_no_character_is_lost_or_made_up_but_those_of_the_syntax(text: str) -> None:
    kept = "".join(span.text for section in parse(text) for span in section)
    letters = [c for c in re.sub(r"\bBREAK\b", "", text) if c in "aéBREAK"]
    assert [c for c in kept if c in "aéBREAK"] == letters


@given(st.text())
def test_text_without_syntax_is_one_span(text: str) -> None:
    assume(not re.search(r"[()\[\]]|\\\\|\bBREAK\b", text))
    assert parse(text) == ((Span(text),) if text else (),)


@given(st.text())
def test_escaped_text_comes_back(text: str) -> None:
    assume(not re.search(r"\bBREAK\b", text))
    assert spans(escaped(text)) == ([(text, 1)] if text else [])


WEIGHT = st.decimals(-10, 10, places=3).map(float)
WORD = st.text("abc ", min_size=1)


@given(WORD, st.lists(st.sampled_from(["()", "[]"]) | WEIGHT, max_size=8))
def test_weights_multiply(word: str, pairs: list[str | float]) -> None:
    text, expected = word, 1.0
    for pair in pairs:
        if isinstance(pair, float):
            text, expected = f"({text}:{pair})", expected * pair
        else:
            text, expected = pair[0] + text + pair[1], expected * (1.1 if pair == "()" else LESS)
    assert spans(text) == [(word, pytest.approx(expected, abs=1e-11))]


@given(st.lists(st.tuples(WORD, st.sampled_from([0.5, 1.0, 1.3])), min_size=1))
def test_pieces_beside_one_another_do_not_touch(pieces: list[tuple[str, float]]) -> None:
    found = spans("".join(f"({word}:{weight})" for word, weight in pieces))
    assert "".join(piece for piece, _ in found) == "".join(word for word, _ in pieces)
    by_letter = [(c, weight) for word, weight in pieces for c in word]
    assert [(c, weight) for piece, weight in found for c in piece] == by_letter


@pytest.mark.parametrize("text", ["(" * 10**5, "(a" * 50_000 + ")" * 50_000, ": " * 50_000])
def test_hostile_prompts_take_linear_time(text: str) -> None:
    start = time.thread_time()
    parse(text)
    assert time.thread_time() - start < 10


def test_colons_and_bars_can_be_escaped() -> None:
    assert parse(r"a\:b\|c") == ((Span("a:b|c"),),)
    assert parse(r"(a\:2)") == ((Span("a:2", 1.1),),)
