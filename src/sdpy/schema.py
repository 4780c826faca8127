"""Checks what a JSON file says against a literal table, once, where the file is read.

A table has a row for each key. What comes out of `validate` needs no further care: values are of
the types and in the ranges that the table gives, keys that say nothing are gone, and so is whatever
has no effect on an image.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpy.errors import WeightsError

_SHOWN = 60


@dataclass(frozen=True)
class Key:
    """What a key may say.

    Attributes:
        expected: in words, for the error.
        fits: whether a value is of that kind.
        only: values that change nothing, which alone are understood; None where all are.
        is_used: whether somebody reads the value.
        is_told: whether a value that is not one of ``only`` is told instead of refused.
    """

    expected: str
    fits: Callable[[Any], bool]
    only: tuple[Any, ...] | None = None
    is_used: bool = True
    is_told: bool = False


Table = Mapping[str, Key]


@dataclass(frozen=True)
class Validated:
    """What a file says.

    Attributes:
        values: of the keys that are used, where they are there and not null.
        notices: what a user should know, a line each.
    """

    values: Mapping[str, Any]
    notices: tuple[str, ...] = ()


def validate(found: Any, table: Table, where: str | os.PathLike[str]) -> Validated:
    """Check what a file says.

    A key that is null has its default, as if it were not there. A key that the table does not know
    is told, unless it is null or begins with an underscore, as notes of a program to itself do.

    Args:
        found: what the file holds.
        table: what its keys may say.
        where: the file, for errors and notices.

    Raises:
        WeightsError: it is no object, or a key does not say what it may; names file and key.
    """
    if not isinstance(found, dict):
        raise WeightsError(f"{where} holds {shown(found)} instead of a JSON object")
    values: dict[str, Any] = {}
    notices: list[str] = []
    for name, value in found.items():
        if value is None or name.startswith("_"):
            continue
        key = table.get(name)
        if key is None:
            notices.append(f"{where}: '{plain(name)}' is unknown and has no effect")
        elif not key.fits(value):
            raise WeightsError(
                f"{where}: '{name}' is {shown(value)}, but has to be {key.expected}; take the "
                "file that belongs to the weights"
            )
        elif key.only is not None and not any(_same(value, one) for one in key.only):
            known = " or ".join(shown(one) for one in key.only or (None,))
            text = f"{where}: '{name}' is {shown(value)}, but sdpy knows only {known}"
            if not key.is_told:
                raise WeightsError(f"{text}; the image would be another")
            notices.append(f"{text} and does as if it were that")
        elif key.is_used:
            values[name] = value
    return Validated(values, tuple(notices))


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def shown(value: Any) -> str:
    """A value from a JSON file, fit for an error."""
    if isinstance(value, dict):
        return "a JSON object"
    if isinstance(value, list) and len(value) > 16:
        return f"a list of {len(value)}"
    if isinstance(value, list):
        return plain("[" + ", ".join(shown(one) for one in value) + "]")
    if isinstance(value, str):
        return f"'{plain(value)}'"
    return plain(json.dumps(value))


def plain(text: str) -> str:
    """Text from a file on one short line, without control characters."""
    cut = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut
    )


# ------------------------------------------------------------------------------- rows of tables


def whole(lowest: int = 1, highest: int = 2**20) -> Key:
    """A whole number."""
    return Key(
        f"a whole number from {lowest} to {highest}",
        lambda value: type(value) is int and lowest <= value <= highest,
    )


def number(lowest: float, highest: float) -> Key:
    """A number."""
    return Key(
        f"a number from {lowest:g} to {highest:g}",
        lambda value: (
            type(value) in (int, float) and math.isfinite(value) and lowest <= value <= highest
        ),
    )


def flag() -> Key:
    """True or false."""
    return Key("true or false", lambda value: type(value) is bool)


def one_of(*words: str) -> Key:
    """One of some words."""
    return Key(f"one of {', '.join(words)}", lambda value: value in words)


def listed(entry: Key, *, longest: int = 64, or_one: bool = False) -> Key:
    """A list of at most ``longest`` such values; ``or_one``: or a single one."""
    return Key(
        f"{entry.expected}, or a list of them" if or_one else f"a list, each {entry.expected}",
        lambda value: (
            (or_one and entry.fits(value))
            or (
                isinstance(value, list)
                and 0 < len(value) <= longest
                and all(entry.fits(one) for one in value)
            )
        ),
    )


def either(*keys: Key) -> Key:
    """A value that fits one of these."""
    return Key(
        " or ".join(key.expected for key in keys),
        lambda value: any(key.fits(value) for key in keys),
    )


def only(*values: Any) -> Key:
    """A value with which nothing has to be done; what needs more is refused."""
    return Key("", lambda value: True, values, is_used=False)


def told(*values: Any) -> Key:
    """A value with which nothing has to be done; that another is not followed, is told."""
    return Key("", lambda value: True, values, is_used=False, is_told=True)


def anything() -> Key:
    """Whatever it says has no effect on an image."""
    return Key("", lambda value: True, is_used=False)


def without_effect(*names: str) -> dict[str, Key]:
    """Rows of keys that have no effect on an image."""
    return dict.fromkeys(names, anything())
