"""Options, each declared in one place.

A dataclass of options declares each of its fields by `option`: default, flags of the command line,
help text, range, and the name that image metadata has for it. The command line makes its flags of
these, the Python API takes the same names as keywords, and metadata is written from them. This
module knows neither Typer nor torch.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpy.errors import UsageError
from sdpy.foreign import foreign_hint

_KEY = "option"

LARGEST = 2**31 - 1
"""The largest whole number of an option that has no maximum of its own."""


@dataclass(frozen=True)
class Option:
    """What is said of a field beside its type and default.

    Attributes:
        flags: on the command line, the first one first.
        help: a sentence or two for people.
        panel: heading in ``--help`` under which it stands.
        metavar: what ``--help`` calls the value; None for the type's name.
        shown_default: what ``--help`` says of the default; None for the default itself.
        minimum, maximum: range of a number, both included; None for no limit.
        cli_type: type on the command line where it is another than the field's.
        parse: makes the field's value of what the command line, or a caller who passes text, gives.
        unparse: makes of the field's value what the command line would be given for it, as JSON
            has it; None where the value itself will do.
        label: name in A1111's text of an image's metadata; None where it is not written there.
        always: whether metadata has it even where it is the default.
        show: makes metadata's text of the value.
    """

    flags: tuple[str, ...]
    help: str
    panel: str | None = None
    metavar: str | None = None
    shown_default: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    cli_type: Any = None
    parse: Callable[[Any], Any] | None = None
    unparse: Callable[[Any], Any] | None = None
    label: str | None = None
    always: bool = False
    show: Callable[[Any], str] = str

    @property
    def name(self) -> str:
        """Its first flag without the dashes in front."""
        return self.flags[0].split("/")[0].lstrip("-")


def option(default: Any, *flags: str, help: str, **more: Any) -> Any:
    """Declare a field of a dataclass as an option; ``more`` are attributes of `Option`."""
    return dataclasses.field(default=default, metadata={_KEY: Option(flags, help, **more)})


def options_of(group: Any) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    """The fields of a dataclass, or of an instance of one, that are options."""
    for field in dataclasses.fields(group):
        if _KEY in field.metadata:
            yield field, field.metadata[_KEY]


def check_ranges(group: Any) -> None:
    """Refuse numbers that are not finite, or outside the range that their option declares.

    Raises:
        UsageError: names the option, its value and its range.
    """
    for field, one in options_of(group):
        value = getattr(group, field.name)
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_range(one, number)


def _check_range(one: Option, number: float) -> None:
    low, high = one.minimum, one.maximum
    if high is None and isinstance(number, int) and number > LARGEST:
        high = LARGEST
    if (
        not math.isfinite(number)
        or (low is not None and number < low)
        or (high is not None and number > high)
    ):
        raise UsageError(f"{one.flags[0]} {number}: use {range_text(low, high)}")


def parse(group: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dataclass's fields, from what the command line or a caller gives.

    Raises:
        UsageError: an option that there is not, or text that makes no value.
    """
    fields = {field.name: field for field in dataclasses.fields(group)}
    unknown = [name for name in values if name not in fields]
    if unknown:
        ours = foreign_hint(unknown[0])
        if ours is not None:
            ours = ours[2:].replace("-", "_") if ours.startswith("--") else ours
            raise UsageError(f"unknown option '{unknown[0]}': use {ours}")
        known = ", ".join(sorted(fields))
        raise UsageError(f"unknown option '{unknown[0]}': use one of {known}")
    parsed = {}
    for name, value in values.items():
        one = fields[name].metadata.get(_KEY)
        if one is None or one.parse is None or value is None:
            parsed[name] = _at_home(value)
        else:
            parsed[name] = one.parse(value)
    return parsed


def _at_home(value: Any) -> Any:
    """Paths with the home folder for ``~``, which shells leave alone after an equals sign."""
    if isinstance(value, Path):
        return path_of(value)
    if isinstance(value, Mapping):
        return {name: _at_home(one) for name, one in value.items()}
    return value


def path_of(text: str | os.PathLike[str]) -> Path:
    """A path as people write it: ``~`` is the home folder."""
    return Path(os.path.expanduser(text))


def facts_of(group: Any) -> dict[str, str]:
    """What metadata says of the options, by their labels, in the order of their declaration."""
    facts = {}
    for field, one in options_of(group):
        value = getattr(group, field.name)
        if one.label is not None and value is not None and (one.always or value != field.default):
            facts[one.label] = one.show(value)
    return facts


def given(group: Any) -> dict[str, Any]:
    """All options of a group by their names, with what the command line is given for the values."""
    values = {}
    for field, one in options_of(group):
        value = getattr(group, field.name)
        if one.flags:
            values[one.name] = value if one.unparse is None or value is None else one.unparse(value)
    return values


def taken(group: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a group that some options, by their names, give; the inverse of `given`.

    Others are left out. A name may be that of any flag, with dashes or underscores.

    Raises:
        UsageError: a value that makes none of the option.
    """
    found: dict[str, Any] = {}
    for field, one in options_of(group):
        names = {flag.split("/")[0].lstrip("-").replace("_", "-") for flag in one.flags}
        for name, value in values.items():
            if name.replace("_", "-") in names:
                found[field.name] = value
    return parse(group, found)


def number_text(value: float) -> str:
    """A number with as many digits as it takes to read it back."""
    return repr(float(value)).removesuffix(".0")


def either(words: Iterable[str]) -> str:
    """Words as a choice: "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def range_text(low: float | None, high: float | None) -> str:
    """A range in words: "0 to 1", "1 or more"; None is no limit."""
    if low is None and high is None:
        return "a finite number"
    if low is None:
        return f"{_number(high)} or less"
    if high is None:
        return f"{_number(low)} or more"
    return f"{_number(low)} to {_number(high)}"


def _number(number: float | None) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)
