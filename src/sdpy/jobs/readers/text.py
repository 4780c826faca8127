"""Plain text: a prompt a line, with options in the line as several programs have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from sdpy.errors import UsageError
from sdpy.jobs.dialects import DIALECTS, guess
from sdpy.jobs.job import Comment, Entry, Fault, Place

SUFFIXES = (".txt",)


def read(file: TextIO, source: str, dialect: str | None) -> Iterator[Entry | Fault | Comment]:
    """Yield what each line says; see `sdpy.jobs.readers.read_jobs`. Empty lines say nothing."""
    for number, line in enumerate(file, start=1):
        line = line.strip()
        if not line:
            continue
        place = Place(source, number)
        chosen = DIALECTS[guess(line) if dialect is None else dialect]
        if line.startswith("#") and (dialect is None or chosen.COMMENTS):
            yield Comment(place)
            continue
        try:
            yield Entry(place, chosen.read_line(line))
        except UsageError as error:
            yield Fault(place, error)
