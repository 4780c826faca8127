"""CSV: options' names in the first row, a job in each other; commas, semicolons or tabs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any, TextIO

from sdpy.errors import UsageError
from sdpy.jobs.job import Entry, Fault, Place
from sdpy.jobs.options import find_option

SUFFIXES = (".csv", ".tsv")

_DELIMITERS = ",;\t"


def read(file: TextIO, source: str, dialect: str | None) -> Iterator[Entry | Fault]:
    """Yield what each row says; see `sdpy.jobs.readers.read_jobs`. An empty cell says nothing."""
    header = file.readline()
    if not header.strip():
        return
    delimiter = max(_DELIMITERS, key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    try:
        for name in names:
            if not name.startswith("_"):
                find_option(name)
        if len(set(names)) < len(names):
            raise UsageError("two columns have the same name")
    except UsageError as error:
        raise UsageError(
            f"{source}:1: {error}; the first row of a CSV file names the options"
        ) from None
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    begins = 2
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Fault(
                Place(source, begins), UsageError(f"is not CSV ({error}); the rest is not read")
            )
            return
        if row is None:
            return
        place, begins = Place(source, begins), 2 + rows.line_num
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(names):
            yield Fault(
                place,
                UsageError(
                    f"has {len(row)} cells for {len(names)} columns; put text with a "
                    f"{'tab' if delimiter == chr(9) else delimiter} into double quotes"
                ),
            )
            continue
        cells = zip(names, row, strict=False)
        yield Entry(place, {name: _value(cell) for name, cell in cells if cell.strip()})


def _value(cell: str) -> Any:
    """A cell's text, or the list that it is in JSON."""
    if cell.lstrip().startswith("[") and cell.rstrip().endswith("]"):
        try:
            return json.loads(cell)
        except ValueError:
            pass  # A prompt may well begin and end with brackets.
    return cell
