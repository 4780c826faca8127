"""TOML: a table ``[[jobs]]`` for each job; what stands before the first holds for all of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TextIO

from sdpy.errors import UsageError
from sdpy.jobs.job import Entry, Fault, Place
from sdpy.jobs.readers.json_lines import entry_of

SUFFIXES = (".toml",)

_HEADER = re.compile(r"^\s*\[\[\s*(?:jobs|job)\s*\]\]", re.MULTILINE)


def read(file: TextIO, source: str, dialect: str | None) -> Iterator[Entry | Fault]:
    """Yield what each table says; see `sdpy.jobs.readers.read_jobs`.

    Raises:
        UsageError: the file is not TOML, or has no jobs.
    """
    if sys.version_info < (3, 11):
        raise UsageError(f"{source}: TOML takes Python 3.11; write the jobs as JSON Lines")
    import tomllib

    text = file.read()
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: is not TOML: {error}; correct it") from None
    jobs = [*found.pop("jobs", []), *found.pop("job", [])]
    lines = [1 + text.count("\n", 0, match.end()) for match in _HEADER.finditer(text)]
    if not jobs:
        raise UsageError(f"{source}: has no jobs; begin each with a line [[jobs]]")
    for k, job in enumerate(jobs):
        place = Place(source, lines[k] if len(lines) == len(jobs) else k + 1)
        yield entry_of({**found, **job} if isinstance(job, dict) else job, place)
