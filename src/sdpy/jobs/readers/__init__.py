"""Files of jobs, one format a module, and the registry of them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from sdpy.errors import UsageError
from sdpy.jobs.job import Comment, Entry, Fault
from sdpy.jobs.readers import comma_separated, json_lines, text, toml, yaml

FORMATS: dict[str, ModuleType] = {
    "jsonl": json_lines,
    "csv": comma_separated,
    "toml": toml,
    "yaml": yaml,
    "text": text,
}
"""Each has ``SUFFIXES`` and ``read(file, source, dialect)``, which yields entries and faults."""

STANDARD_INPUT = "-"


def read_jobs(
    path: str, *, format: str | None = None, dialect: str | None = None
) -> Iterator[Entry | Fault | Comment]:
    """The entries of a file, and the lines of it that are none.

    Args:
        path: of the file; ``-`` is standard input.
        format: of `FORMATS`; None for what the name ends in, plain text where that says nothing.
        dialect: of text lines, see `sdpy.jobs.dialects`; None for guessing line by line.

    Raises:
        UsageError: the file cannot be read, or as a whole is not of its format.
    """
    if path == STANDARD_INPUT:
        chosen = FORMATS[format or "text"]
        try:
            descriptor = os.dup(0)
        except OSError as error:
            raise UsageError(f"standard input: cannot be read ({error.strerror})") from error
        with os.fdopen(descriptor, "rb") as raw:
            yield from _read(raw, chosen, "standard input", dialect, format)
        return
    chosen = FORMATS[format or format_of(path)]
    try:
        with open(path, "rb") as raw:
            yield from _read(raw, chosen, path, dialect, format)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def format_of(path: str) -> str:
    """The format that a file's name says."""
    suffix = Path(path).suffix.lower()
    return next((name for name, one in FORMATS.items() if suffix in one.SUFFIXES), "text")


def _read(
    raw: io.BufferedReader,
    reader: ModuleType,
    source: str,
    dialect: str | None,
    format: str | None,
) -> Iterator[Entry | Fault | Comment]:
    # Windows' editors begin UTF-8 with a mark; UTF-16 is told by its own.
    first = raw.peek(4)[:4]
    wide = first.startswith((b"\xff\xfe", b"\xfe\xff"))
    file = io.TextIOWrapper(raw, "utf-16" if wide else "utf-8-sig", newline=None)
    if source == "standard input" and format is None and first.lstrip()[:1] == b"{":
        reader = json_lines
    try:
        yield from reader.read(file, source, dialect)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source}: is not UTF-8 text ({error.reason}); save it as UTF-8"
        ) from None
    finally:
        if not file.closed:
            file.detach()
