"""The syntax of prompts: what is weighted, and where a new chunk begins.

It is that of AUTOMATIC1111's Stable Diffusion web UI:

======================  ==============================
``(text)``              weight 1.1
``(text:1.3)``          weight 1.3
``[text]``              weight 1/1.1
``((text))``            weights multiply
``\\( \\) \\[ \\]``      the character itself; so for ``: | \\``
``BREAK``               starts a new chunk of tokens
======================  ==============================

A bracket that is never closed reaches to the end of the prompt, and one that closes nothing is
text. Round and square brackets are matched apart from one another, so ``(a [b) c]`` overlaps.

Unlike there, a ``BREAK`` inside of brackets breaks too, and a backslash before any other character
is text. What changes from step to step, and ``AND``, is known to `sdpy.text.editing`, which comes
first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

EMPHASIS = 1.1
"""What a pair of round brackets multiplies a weight by, and a pair of square ones divides it by."""


@dataclass(frozen=True)
class Span:
    """A piece of text and its weight."""

    text: str
    weight: float = 1.0


Section = tuple[Span, ...]
"""What stands between two BREAKs."""

_MARK = re.compile(
    r"\\(?P<escaped>[\\()\[\]:|])"
    r"|(?P<open>[(\[])"
    r"|(?::\s*(?P<weight>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*)?(?P<round>\))"
    r"|(?P<square>\])"
    r"|\b(?P<break>BREAK)\b"
)


def parse(text: str) -> tuple[Section, ...]:
    """Split a prompt at its BREAKs into sections, and these into spans of one weight each.

    Every text is a prompt. There is at least one section; neighbouring spans differ in weight.
    """
    marks = list(_MARK.finditer(text))
    factors = _factors(marks)
    # The product of the open brackets' factors, after each of them, for either kind of bracket.
    products = {"(": [1.0], "[": [1.0]}
    sections: list[list[Span]] = [[]]
    position = 0

    def add(piece: str) -> None:
        # Rounded, so that weights that cancel out make no weight at all.
        weight = round(products["("][-1] * products["["][-1], 12)
        section = sections[-1]
        if section and section[-1].weight == weight:
            piece = section.pop().text + piece
        if piece:
            section.append(Span(piece, weight))

    for mark in marks:
        add(text[position : mark.start()])
        position = mark.end()
        if mark["escaped"]:
            add(mark["escaped"])
        elif mark["break"]:
            sections.append([])
        elif mark["open"]:
            product = products[mark["open"]]
            product.append(product[-1] * factors[mark.start()])
        elif mark.start() in factors:
            products[_opening(mark)].pop()
        else:
            add(mark.group())
    add(text[position:])
    return tuple(map(tuple, sections))


def _factors(marks: list[re.Match[str]]) -> dict[int, float]:
    """The factor of every pair of brackets, by the places of both; of one never closed, by its own.

    A closing bracket that belongs to none is not in it.
    """
    factors: dict[int, float] = {}
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    for mark in marks:
        if mark["open"]:
            factors[mark.start()] = EMPHASIS if mark["open"] == "(" else 1 / EMPHASIS
            waiting[mark["open"]].append(mark.start())
        elif (mark["round"] or mark["square"]) and waiting[_opening(mark)]:
            start = waiting[_opening(mark)].pop()
            if mark["weight"]:
                factors[start] = float(mark["weight"])
            factors[mark.start()] = factors[start]
    return factors


def _opening(mark: re.Match[str]) -> str:
    """The bracket that a closing mark closes."""
    return "(" if mark["round"] else "["
