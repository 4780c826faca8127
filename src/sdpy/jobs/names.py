"""Names of files with fields in them: ``out/{line:05d}_{seed}_{slug}.png``.

A field stands in braces, with a format as Python has it after a colon; braces that are meant are
doubled. A1111's ``[seed]`` and ``[datetime<%Y>]`` and stable-diffusion.cpp's ``%03d`` are
understood. Imports neither torch nor Pillow.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from string import Formatter
from typing import Any

from sdpy.errors import UsageError
from sdpy.jobs.fields import A1111_FIELDS, COUNTER, FIELDS, path_part, shown

LONGEST_COMPONENT = 240
"""Bytes; file systems take 255, and a temporary name or a number may be added."""

_TEXT_LIMITS = (120, 60, 30, 12)
_BRACKETS = re.compile(r"\[(?P<name>[a-z_]+)(?P<formats>(?:<[^<>]*>)*)\]")
_PERCENT = re.compile(r"%0?\d*d")
# They stand for fields; no value has a control character.
_COUNTER_MARK, _ANY_MARK = "\1", "\2"
_ANY = re.compile("\2[^\0]*\0")
_SAMPLES: dict[type, Any] = {int: 1, float: 1.5, str: "a", datetime: datetime(2000, 1, 1)}


@dataclass(frozen=True)
class NameField:
    """A field of a name, and the format of its value."""

    name: str
    spec: str = ""


@dataclass(frozen=True)
class CountedNames:
    """Names in one folder that have a number in them.

    Attributes:
        folder: where they are.
        pattern: regular expression for a name, whose first group is the number; other fields may
            be anything.
    """

    folder: Path
    pattern: str

    def highest(self) -> int:
        """The highest number of a name that there is; 0 for none."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return 0
        matches = map(re.compile(self.pattern, re.DOTALL).fullmatch, names)
        return max((int(match[1]) for match in matches if match), default=0)


@dataclass(frozen=True)
class NameTemplate:
    """The name of a file, of which fields of each image are a part. Make one with `parse`.

    Attributes:
        text: as it was given.
        parts: text as it is, and fields, in turn.
    """

    text: str
    parts: tuple[str | NameField, ...]

    @classmethod
    def parse(cls, text: str | os.PathLike[str], more: Iterable[str] = ()) -> NameTemplate:
        """Read a name.

        Args:
            text: the name, with fields or without.
            more: names of further fields, such as all that a job has.

        Raises:
            UsageError: an unknown field, a brace without its other half, or a format that does not
                suit the field.
        """
        given = os.fspath(text)
        known = dict.fromkeys(more, object) | FIELDS
        parts: list[str | NameField] = []
        try:
            pieces = list(Formatter().parse(given))
        except ValueError as error:
            raise UsageError(
                f"the name {given}: {error}; double a brace that is meant: {{{{ or }}}}"
            ) from None
        for literal, name, spec, conversion in pieces:
            parts += _literal_parts(literal, given)
            if name is None:
                continue
            if name not in known or conversion is not None:
                what = name if conversion is None else f"{name}!{conversion}"
                raise UsageError(
                    f"the name {given}: unknown field {{{what}}}: {_hint(name, known)}; double "
                    "the braces if they are meant"
                )
            parts.append(NameField(name, spec or ""))
        for part in parts:
            if isinstance(part, NameField):
                _check_format(part, known[part.name], given)
        return cls(given, tuple(_joined(parts)))

    @property
    def fields(self) -> frozenset[str]:
        """The names of its fields."""
        return frozenset(part.name for part in self.parts if isinstance(part, NameField))

    @property
    def is_plain(self) -> bool:
        """Whether it has no fields: whether it is the name of one file."""
        return not self.fields

    @property
    def has_counter(self) -> bool:
        """Whether the next free number is a part of it."""
        return COUNTER in self.fields

    def render(self, values: Mapping[str, Any], number: int | None = None) -> Path:
        """The path for an image.

        Text in ``values`` adds no folders and leaves none: separators in it become ``_``. Where a
        component of the path would be too long, its text is cut.

        Args:
            values: of its fields; None is written "none".
            number: for the counter, if there is one.

        Raises:
            UsageError: a value is missing, or is not of the kind that the format is for.
        """
        for limit in _TEXT_LIMITS:
            path = Path("".join(self._texts(values, number, limit)))
            if all(len(os.fsencode(part)) <= LONGEST_COMPONENT for part in path.parts):
                break
        return path

    def counted(self, values: Mapping[str, Any]) -> CountedNames:
        """The names among which the counter's number has to be free.

        Raises:
            UsageError: see `render`.
        """
        texts = self._texts(values, 0, _TEXT_LIMITS[0])
        names = [part.name if isinstance(part, NameField) else None for part in self.parts]
        marked = (
            _COUNTER_MARK if name == COUNTER else text if name is None else f"{_ANY_MARK}{text}\0"
            for name, text in zip(names, texts, strict=True)
        )
        folder = Path()
        for component in Path("".join(marked)).parts:
            if _COUNTER_MARK in component:
                first, *others = _ANY.sub(_ANY_MARK, component).split(_COUNTER_MARK)
                pieces = [re.escape(piece).replace(re.escape(_ANY_MARK), ".*?") for piece in others]
                start = re.escape(_ANY.sub(_ANY_MARK, first)).replace(re.escape(_ANY_MARK), ".*?")
                return CountedNames(folder, f"{start}([0-9]+){'[0-9]+'.join(pieces)}")
            folder /= component.replace(_ANY_MARK, "").replace("\0", "")
        raise ValueError(f"{self.text} has no counter")

    def next_number(self, values: Mapping[str, Any]) -> int:
        """The counter's next free number: one more than the highest of a file that there is.

        Raises:
            UsageError: see `render`.
        """
        return self.counted(values).highest() + 1

    def _texts(self, values: Mapping[str, Any], number: int | None, limit: int) -> list[str]:
        texts = []
        for part in self.parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            if part.name == COUNTER:
                value: Any = number
            elif part.name in values:
                value = values[part.name]
            else:
                raise UsageError(
                    f"the name {self.text}: nothing here has a {{{part.name}}}; use "
                    f"{', '.join(sorted(values))}"
                )
            try:
                text = shown(part.name, value, part.spec)
            except (ValueError, TypeError):
                raise _bad_format(part, self.text) from None
            texts.append(path_part(text, limit))
        return texts


def _literal_parts(literal: str, given: str) -> list[str | NameField]:
    """Text between braces, in which other programs' fields may stand."""
    parts: list[str | NameField] = []
    for k, piece in enumerate(_split(_BRACKETS, literal)):
        if not k % 2:
            parts += [
                NameField(COUNTER, text.removeprefix("%")) if j % 2 else text
                for j, text in enumerate(_split(_PERCENT, piece))
            ]
            continue
        match = _BRACKETS.fullmatch(piece)
        assert match is not None
        if match["name"] not in A1111_FIELDS:  # many files have brackets in their names
            parts.append(piece)
            continue
        ours = A1111_FIELDS[match["name"]]
        formats = match["formats"][1:-1].split("><") if match["formats"] else []
        if ours is None or (formats and match["name"] != "datetime") or len(formats) > 1:
            raise UsageError(
                f"the name {given}: {piece} of A1111's web UI has no counterpart; use "
                f"{', '.join(sorted(FIELDS))} in braces"
            )
        parts.append(NameField(ours, *formats))
    return parts


def _split(expression: re.Pattern[str], text: str) -> list[str]:
    """Text without a match and matches, in turn."""
    pieces, end = [], 0
    for match in expression.finditer(text):
        pieces += [text[end : match.start()], match[0]]
        end = match.end()
    return [*pieces, text[end:]]


def _joined(parts: Iterable[str | NameField]) -> list[str | NameField]:
    joined: list[str | NameField] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part:
            joined.append(part)
    return joined


def _hint(unknown: str, known: Iterable[str]) -> str:
    """Which field might have been meant, or where they are listed."""
    near = difflib.get_close_matches(unknown.lower(), known, n=2)
    if not near:
        return "use a field such as {seed}, {prompt} or {n}, of docs/command-line.md"
    return f"did you mean {' or '.join(f'{{{name}}}' for name in near)}?"


def _check_format(part: NameField, kind: type, given: str) -> None:
    sample = _SAMPLES.get(kind)
    if sample is None:  # of a job's own field nothing is known yet
        return
    try:
        shown(part.name, sample, part.spec)
    except (ValueError, TypeError):
        raise _bad_format(part, given) from None


def _bad_format(part: NameField, given: str) -> UsageError:
    return UsageError(
        f"the name {given}: the format '{part.spec}' does not suit {{{part.name}}}; use for "
        "example 05d for numbers, .2f for fractions, .20 for text, %Y-%m-%d for dates"
    )
