"""Prompts that change from step to step, and prompts that are joined.

The syntax is that of AUTOMATIC1111's Stable Diffusion web UI:

====================  =========================================================
``[from:to:when]``    ``from`` up to step ``when``, then ``to``
``[to:when]``         nothing up to step ``when``, then ``to``
``[from::when]``      ``from`` up to step ``when``, then nothing
``[a|b|c]``           ``a`` in the first step, ``b`` in the second, and so on, around
``one AND two:1.2``   both prompts, with their weights; see `split_parts`
====================  =========================================================

``when`` is a number of steps, or with a decimal point a share of them. ``from``, ``to`` and the
alternatives are prompts themselves, which may hold weights and further editing. A backslash before
a character makes it text. Brackets that are none of these are left as they are, for
`sdpy.text.syntax`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

Schedule = tuple[tuple[int, str], ...]
"""Texts, each with the last step that it is for, counted from 1."""


@dataclass(frozen=True)
class Part:
    """One of the prompts that ``AND`` joins.

    Attributes:
        text: of the prompt.
        weight: of its guidance.
    """

    text: str
    weight: float = 1.0


_AND = re.compile(r"\bAND\b")
_PART = re.compile(
    r"(?P<text>.*?)(?:\s*:\s*(?P<weight>[-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)))?\s*", re.DOTALL
)


def split_parts(text: str) -> tuple[Part, ...]:
    """The prompts that ``AND`` joins, at least one.

    Each may end in a colon and its weight, 1 unless given. A prompt without ``AND`` is taken as it
    is, whatever it ends in.

    Source: "Compositional Visual Generation with Composable Diffusion Models" (Liu et al., 2022).
    """
    pieces = _AND.split(text)
    if len(pieces) == 1:
        return (Part(text),)
    parts = []
    for piece in pieces:
        match = _PART.fullmatch(piece)
        assert match is not None, "any text is a part"
        weight = match["weight"]
        parts.append(Part(match["text"], 1.0 if weight is None else float(weight)))
    return tuple(parts)


def schedule_text(text: str, steps: int) -> Schedule:
    """What a prompt is in each of ``steps`` steps; neighbouring texts differ.

    At least one text; the last one's step is ``steps``, or 1 where there is no step at all.
    """
    nodes = _parse(text)
    ends = {max(steps, 1)}
    for node in _changing(nodes):
        ends.update(node.ends(steps))
    schedule: list[tuple[int, str]] = []
    for end in sorted(ends):
        here = _text_at(nodes, end, steps)
        if schedule and schedule[-1][1] == here:
            schedule.pop()
        schedule.append((end, here))
    return tuple(schedule)


class _Inner(Protocol):
    """A piece of a prompt that may not be the same in all steps."""

    def ends(self, steps: int) -> Iterator[int]:
        """Steps, from 1 to ``steps``, after which it may be another."""

    def at(self, step: int, steps: int) -> tuple[_Node, ...]:
        """What it is in step ``step`` of ``steps``."""

    @property
    def children(self) -> tuple[_Node, ...]:
        """All that it may be."""


_Node = str | _Inner


@dataclass(frozen=True, eq=False, repr=False)
class _Whole:
    """Brackets that only weigh, and what is in them."""

    children: tuple[_Node, ...]

    def ends(self, steps: int) -> Iterator[int]:
        yield from ()

    def at(self, step: int, steps: int) -> tuple[_Node, ...]:
        return self.children


@dataclass(frozen=True, eq=False, repr=False)
class _Edited:
    """``before`` up to a step, then ``after``."""

    before: tuple[_Node, ...]
    after: tuple[_Node, ...]
    when: str

    @property
    def children(self) -> tuple[_Node, ...]:
        return (*self.before, *self.after)

    def ends(self, steps: int) -> Iterator[int]:
        last = self._last(steps)
        if last >= 1:
            yield last

    def at(self, step: int, steps: int) -> tuple[_Node, ...]:
        return self.before if step <= self._last(steps) else self.after

    def _last(self, steps: int) -> int:
        """The last step of what comes before."""
        number = float(self.when)
        return int(max(0.0, min(float(steps), number * steps if "." in self.when else number)))


@dataclass(frozen=True, eq=False, repr=False)
class _Alternating:
    """Another in each step, around."""

    options: tuple[tuple[_Node, ...], ...]

    @property
    def children(self) -> tuple[_Node, ...]:
        return tuple(node for option in self.options for node in option)

    def ends(self, steps: int) -> Iterator[int]:
        yield from range(1, steps + 1)

    def at(self, step: int, steps: int) -> tuple[_Node, ...]:
        return self.options[(step - 1) % len(self.options)]


_TOKEN = re.compile(r"(?:\\.|[^\\\[\]():|])+|.", re.DOTALL)
_NUMBER = re.compile(
    r"\s*([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?)\s*", re.ASCII
)


@dataclass
class _Open:
    """A bracket that is not closed yet, with what stands in it between its separators."""

    bracket: str
    pieces: list[list[_Node]] = field(default_factory=lambda: [[]])
    separators: str = ""

    def literally(self) -> Iterator[_Node]:
        """As it is typed, as far as it goes."""
        yield self.bracket
        for separator, piece in zip(("", *self.separators), self.pieces, strict=True):
            yield separator
            yield from piece


def unread_brackets(text: str) -> tuple[str, ...]:
    """Brackets with separators in them that are neither editing nor a weight, and so are text."""
    refused: list[str] = []
    _parse(text, refused)
    return tuple(refused)


def _parse(text: str, refused: list[str] | None = None) -> list[_Node]:
    """What a prompt is made of.

    Brackets that mean nothing although they are closed are added to ``refused``.

    A bracket that has no meaning is text, and so are those around it: editing takes whole prompts.
    Without recursion, because brackets may be nested however deep.
    """
    done: list[_Node] = []
    waiting: list[_Open] = []

    def give_up(stray: str) -> None:
        for one in waiting:
            done.extend(one.literally())
        waiting.clear()
        done.append(stray)

    for token in _TOKEN.findall(text):
        if token in "([":
            waiting.append(_Open(token))
        elif token in ":|" and waiting:
            waiting[-1].separators += token
            waiting[-1].pieces.append([])
        elif token not in (")", "]"):
            (waiting[-1].pieces[-1] if waiting else done).append(token)
        elif waiting and waiting[-1].bracket + token in ("()", "[]"):
            node = _closed(waiting[-1], token)
            if node is None:
                if refused is not None:
                    pieces = [*waiting[-1].literally(), token]
                    refused.append("".join(x if isinstance(x, str) else "..." for x in pieces))
                give_up(token)
            else:
                waiting.pop()
                (waiting[-1].pieces[-1] if waiting else done).append(node)
        else:
            give_up(token)
    give_up("")
    return done


def _closed(one: _Open, closing: str) -> _Inner | None:
    """What a closed bracket means; None where it means nothing."""
    pieces = [tuple(piece) for piece in one.pieces]
    is_square, separators = one.bracket == "[", one.separators
    if not separators or (not is_square and separators == ":"):
        return _Whole((*one.literally(), closing))
    if is_square and set(separators) == {"|"}:
        return _Alternating(tuple(pieces))
    if is_square and separators in (":", "::"):
        *texts, last = pieces
        number = _NUMBER.fullmatch("".join(node for node in last if isinstance(node, str)))
        if number is not None and all(isinstance(node, str) for node in last):
            return _Edited(texts[0] if len(texts) == 2 else (), texts[-1], number[1])
    return None


def _changing(nodes: list[_Node]) -> Iterator[_Inner]:
    """All that is not the same in all steps, however deep."""
    left: list[_Node] = list(nodes)
    while left:
        node = left.pop()
        if not isinstance(node, str):
            yield node
            left.extend(node.children)


def _text_at(nodes: list[_Node], step: int, steps: int) -> str:
    pieces = []
    left: list[_Node] = list(reversed(nodes))
    while left:
        node = left.pop()
        if isinstance(node, str):
            pieces.append(node)
        else:
            left.extend(reversed(node.at(step, steps)))
    return "".join(pieces)
