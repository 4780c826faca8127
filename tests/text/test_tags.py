"""Tags of LoRAs in prompts, and what else looks like syntax."""

from __future__ import annotations

import pytest

from sdpy.errors import UsageError
from sdpy.text.doubts import doubts
from sdpy.text.tags import LoraTag, take_lora_tags


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a cat", "a cat", []),
        (" a cat ", " a cat ", []),
        ("a cat <lora:detail:0.8>", "a cat", [("detail", 0.8)]),
        ("<lora:a b-1.2>a cat<lyco:x:-1>, dark", "a cat, dark", [("a b-1.2", 1.0), ("x", -1.0)]),
        ("<lora:x:0.5:0.5>", "", [("x", 0.5)]),
        ("<lora:x:te=0.5:unet=0.5>", "", [("x", 0.5)]),
        ("a <hypernet:x:1> b", "a <hypernet:x:1> b", []),
        ("a < b: c > d", "a < b: c > d", []),
    ],
)
def test_tags_are_taken_out(prompt: str, text: str, tags: list[tuple[str, float]]) -> None:
    assert take_lora_tags(prompt) == (text, tuple(LoraTag(*tag) for tag in tags))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<lora:x:strong>", "give a name and a number"),
        ("<lora:x:nan>", "give a name and a number"),
        ("<lora:x:1:1:dyn=2>", "give a name and a number"),
        ("<lora:x:0.5:1>", "give one, as in <lora:x:0.5>"),
    ],
)
def test_tags_that_cannot_be_read(prompt: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        take_lora_tags(prompt)


@pytest.mark.parametrize(
    ("prompt", "piece"),
    [
        ("a [cat:dog] b", "[cat:dog]"),
        ("a [cat:dog:soon] b", "[cat:dog:soon]"),
        ("(a:1.2:0.5)", "(a:1.2:0.5)"),
        ("a <hypernet:x:1>", "<hypernet:x:1>"),
        ("a {cat|dog}", "{cat|dog}"),
        ("a __animal__", "__animal__"),
        ("a (cat)1.3", ")1.3"),
        ("a cat++, dark", "t++"),
        ("(a cat)-- dark", ")--"),
        ('("a", "b").blend(1, 2)', ").blend("),
        ("a embedding:easy", "embedding:easy"),
        ("a cat :1.2", ":1.2"),
    ],
)
def test_what_looks_like_syntax_is_told(prompt: str, piece: str) -> None:
    (told,) = doubts(prompt, "prompt")
    assert told.startswith(f"'{piece}' in the prompt is read as text: ")


@pytest.mark.parametrize(
    "prompt",
    [
        "a (cat:1.2), [dark] ((sky)) at 16:9, 3:1, e-mail, well-known -- or not",
        "a [cat:dog:0.5] [a|b] AND (dark:0.5) :1.2",
        r"a \[cat:dog\] :) :( 8-)",
        "a+b, 100% {x} _under_ f(x)",
    ],
)
def test_usual_text_is_not_doubted(prompt: str) -> None:
    assert [*doubts(prompt, "prompt")] == []


def test_in_a_negative_prompt() -> None:
    told = " ".join(doubts("a AND b <lora:x:1>", "negative prompt"))
    assert "'AND' in the negative prompt" in told and "LoRAs are taken from the prompt" in told
    assert [*doubts("a AND b", "prompt")] == []
