"""JSON Lines: an object with options, or a prompt, a line. A JSON file with a list is read, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

from sdpy.errors import UsageError
from sdpy.jobs.job import Entry, Fault, Place

SUFFIXES = (".jsonl", ".ndjson", ".json")


def read(file: TextIO, source: str, dialect: str | None) -> Iterator[Entry | Fault]:
    """Yield what each line says; see `sdpy.jobs.readers.read_jobs`."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):
            yield from _read_list(line + file.read(), source)
            return
        yield _read_line(line, Place(source, number))


def _read_line(line: str, place: Place) -> Entry | Fault:
    try:
        return entry_of(json.loads(line), place)
    except (ValueError, RecursionError) as error:
        return Fault(place, UsageError(f"is not JSON ({error}); write an object a line"))


def _read_list(text: str, source: str) -> Iterator[Entry | Fault]:
    """The elements of a list, with the lines on which they begin."""
    decoder = json.JSONDecoder()
    position, end = text.index("[") + 1, len(text)
    while True:
        while position < end and text[position] in " \t\n\r,":
            position += 1
        place = Place(source, 1 + text.count("\n", 0, position))
        if position >= end or text[position] == "]":
            rest = text[position + 1 :].strip()
            if position >= end or rest:
                yield Fault(place, UsageError("is not a JSON list to its end; check its brackets"))
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield Fault(place, UsageError(f"is not JSON ({error}); what follows is not read"))
            return
        yield entry_of(value, place)


def entry_of(value: Any, place: Place) -> Entry | Fault:
    """An object's options, or a prompt."""
    if isinstance(value, str):
        return Entry(place, {"prompt": value})
    if isinstance(value, dict):
        named = {str(name): one for name, one in value.items() if one is not None}
        return Entry(place, named)
    return Fault(
        place, UsageError("is neither an object with options nor a prompt; write one of them")
    )
