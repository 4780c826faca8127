"""What in a prompt looks like syntax, and is read as text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sdpy.text.editing import split_parts, unread_brackets
from sdpy.text.tags import other_tags

_FOREIGN: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\{[^{}]*\|[^{}]*\}"), "braces choose nothing in a single prompt"),
    (re.compile(r"__[\w/*-]+__"), "a wildcard is not filled in in a single prompt"),
    (
        re.compile(r"\)\s*(?:\.(?:blend|and|swap)\(|[+-]{1,9}(?=[\s,.)]|$)|[0-9]*\.[0-9]+)"),
        "weights are written (word:1.3)",
    ),
    (re.compile(r"\w(?:\+\+|--)[+-]*(?=[\s,.)]|$)"), "weights are written (word:1.3)"),
    (re.compile(r"\bembedding:\S+"), "an embedding is called by its name alone, see --embedding"),
)
"""Syntax of other programs: what it looks like, and what to say of it."""

_WEIGHT_AT_END = re.compile(r"\s:\s*[-+]?[0-9]*\.?[0-9]+\s*$")


def doubts(text: str, what: str) -> Iterator[str]:
    """A line for each piece of a prompt that may be meant as syntax, but is read as text.

    Args:
        text: the prompt as typed.
        what: "prompt" or "negative prompt"; in the latter, ``AND`` and tags of LoRAs are text.
    """
    is_negative = what != "prompt"

    def told(piece: str, why: str) -> str:
        shown = piece if len(piece) <= 40 else f"{piece[:37]}..."
        return f"'{shown}' in the {what} is read as text: {why}"

    for piece in unread_brackets(text):
        yield told(piece, "prompt editing is [from:to:when] or [a|b], with a number for when")
    for tag in other_tags(text):
        yield told(tag, "only <lora:name:weight> is known")
    if is_negative and re.search(r"<(?:lora|lyco):[^<>]+>", text, re.IGNORECASE):
        yield told("<lora:...>", "LoRAs are taken from the prompt")
    if is_negative and re.search(r"\bAND\b", text):
        yield told("AND", "only prompts are joined, not negative ones")
    for pattern, why in _FOREIGN:
        match = pattern.search(text)
        if match is not None:
            yield told(match[0].strip(), why)
    end = _WEIGHT_AT_END.search(text)
    if end is not None and (is_negative or len(split_parts(text)) == 1):
        yield told(
            end[0].strip(), "weights are written (word:1.3), or follow prompts joined by AND"
        )
