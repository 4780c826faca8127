"""Rows and columns of a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdpy.errors import UsageError
from sdpy.gallery.pictures import Picture, is_named

LIKELY = ("Seed", "Sampler", "CFG scale", "Steps", "Schedule type", "Denoising strength", "Model")
"""Facts that grids are made of, the likeliest columns first; then ``prompt``."""


@dataclass(frozen=True)
class Sheet:
    """Pictures in rows and columns.

    Attributes:
        rows, columns: their labels; empty where they have none.
        cells: for each row, a picture or None for each column.
        captions: whether each picture needs a label of its own.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Picture | None, ...], ...]
    captions: bool


def arrange(
    pictures: Sequence[Picture], rows: str | None, columns: str | None, width: int
) -> Sheet:
    """Put pictures into rows and columns.

    Without names, two facts that differ, or one, and that tell all pictures apart, are taken.

    Args:
        pictures: at least one.
        rows, columns: facts that name them; None to find out.
        width: columns where no fact names them.

    Raises:
        UsageError: no picture has such a fact.
    """
    for name in (rows, columns):
        if name is not None and not any(picture.value(name) for picture in pictures):
            known = sorted({label for picture in pictures for label in picture.facts})
            raise UsageError(f"no picture says its '{name}': use prompt, {', '.join(known)}")
    rows, columns = (_label(name, pictures) for name in (rows, columns))
    if rows is None and columns is None:
        rows, columns = _find_axes(pictures)
    if rows is None and columns is None:
        cells = [
            (*pictures[k : k + width], *[None] * (k + width - len(pictures)))
            for k in range(0, len(pictures), width)
        ]
        return Sheet((), (), tuple(cells), captions=True)
    return _grid(pictures, rows, columns)


def _label(name: str | None, pictures: Sequence[Picture]) -> str | None:
    """What the pictures themselves call a fact."""
    labels = {label for picture in pictures for label in picture.facts}
    return next((one for one in sorted(labels) if name and is_named(one, name)), name)


def _find_axes(pictures: Sequence[Picture]) -> tuple[str | None, str | None]:
    differing = [
        name
        for name in (*LIKELY, "prompt")
        if len({picture.value(name) for picture in pictures}) > 1
    ]
    if len(pictures) > 1 and 1 <= len(differing) <= 2:
        column, row = differing[0], differing[1] if len(differing) == 2 else None
        places = {(p.value(column), p.value(row) if row else "") for p in pictures}
        if len(places) == len(pictures):
            return row, column
    return None, None


def _grid(pictures: Sequence[Picture], rows: str | None, columns: str | None) -> Sheet:
    places: dict[tuple[str, str], list[Picture]] = {}
    for picture in pictures:
        place = tuple(picture.value(name) if name else "" for name in (rows, columns))
        places.setdefault((place[0], place[1]), []).append(picture)
    row_values = _ordered({row for row, _ in places})
    column_values = _ordered({column for _, column in places})
    cells = []
    labels = []
    for row in row_values:
        depth = max(len(places.get((row, column), [])) for column in column_values)
        for k in range(depth):
            found = [places.get((row, column), []) for column in column_values]
            cells.append(tuple(one[k] if k < len(one) else None for one in found))
            labels.append(f"{rows}: {row}" if rows else "")
    return Sheet(
        tuple(labels) if rows else (),
        tuple(f"{columns}: {value}" for value in column_values) if columns else (),
        tuple(cells),
        captions=False,
    )


def _ordered(values: set[str]) -> list[str]:
    """Numbers by their size, before texts."""

    def key(value: str) -> tuple[int, float, str]:
        try:
            return (0, float(value), value)
        except ValueError:
            return (1, 0.0, value)

    return sorted(values, key=key)
