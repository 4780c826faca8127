"""Rows and columns of a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdpy.errors import UsageError
from sdpy.gallery.images import GalleryImage, is_named

LIKELY = ("Seed", "Sampler", "CFG scale", "Steps", "Schedule type", "Denoising strength", "Model")
"""Facts that grids are made of, the likeliest columns first; then ``prompt``."""


MOST_AXES = 3
"""Facts that may differ where nobody names the axes."""


@dataclass(frozen=True)
class Sheet:
    """Images in rows and columns.

    Attributes:
        rows, columns: their labels; empty where they have none.
        cells: for each row, an image or None for each column.
        captions: whether each image needs a label of its own.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[GalleryImage | None, ...], ...]
    captions: bool


def arrange(
    images: Sequence[GalleryImage], rows: str | None, columns: str | None, width: int
) -> Sheet:
    """Put images into rows and columns.

    Without names, up to three facts that differ are taken if they tell all images apart and fill
    more than half of the sheet: the first names the columns, the others together the rows. Where
    names do not tell the images apart, and what else differs does, it names the rows as well.

    Args:
        images: at least one.
        rows, columns: facts that name them; None to find out.
        width: columns where no fact names them.

    Raises:
        UsageError: no image has such a fact.
    """
    for name in (rows, columns):
        if name is not None and not any(image.value(name) for image in images):
            known = sorted({label for image in images for label in image.facts})
            raise UsageError(f"no image says its '{name}': use prompt, {', '.join(known)}")
    rows, columns = (_label(name, images) for name in (rows, columns))
    differing = [
        name
        for name in (*LIKELY, "prompt")
        if name not in (rows, columns) and len({image.value(name) for image in images}) > 1
    ]
    if rows is None and columns is None:
        if not 1 <= len(differing) <= MOST_AXES or not _fill(images, differing):
            return _captioned(images, width)
        return _grid(images, tuple(differing[1:]), differing[0])
    named: tuple[str, ...] = () if rows is None else (rows,)
    beside = () if columns is None else (columns,)
    if _fill(images, [*beside, *named, *differing]) and not _fill(images, [*beside, *named]):
        named += tuple(differing)
    return _grid(images, named, columns)


def _captioned(images: Sequence[GalleryImage], width: int) -> Sheet:
    """Images one after the other, each with a label of its own."""
    cells = [
        (*images[k : k + width], *[None] * (k + width - len(images)))
        for k in range(0, len(images), width)
    ]
    return Sheet((), (), tuple(cells), captions=True)


def _fill(images: Sequence[GalleryImage], names: Sequence[str]) -> bool:
    """Whether facts of these names tell all images apart, and fill more than half of a sheet.

    The first names its columns.
    """
    places = {(one.value(names[0]), tuple(map(one.value, names[1:]))) for one in images}
    columns, rows = ({place[i] for place in places} for i in (0, 1))
    return len(places) == len(images) and 2 * len(places) > len(columns) * len(rows)


def _label(name: str | None, images: Sequence[GalleryImage]) -> str | None:
    """What the images themselves call a fact."""
    labels = {label for image in images for label in image.facts}
    return next((one for one in sorted(labels) if name and is_named(one, name)), name)


def _grid(images: Sequence[GalleryImage], rows: tuple[str, ...], columns: str | None) -> Sheet:
    places: dict[tuple[tuple[str, ...], str], list[GalleryImage]] = {}
    for image in images:
        place = (tuple(map(image.value, rows)), image.value(columns) if columns else "")
        places.setdefault(place, []).append(image)
    column_values = sorted({column for _, column in places}, key=_order)
    cells = []
    labels = []
    for row in sorted({row for row, _ in places}, key=lambda values: [*map(_order, values)]):
        found = [places.get((row, column), []) for column in column_values]
        for k in range(max(map(len, found))):
            cells.append(tuple(one[k] if k < len(one) else None for one in found))
            labels.append(", ".join(f"{name}: {v}" for name, v in zip(rows, row, strict=True)))
    return Sheet(
        tuple(labels) if rows else (),
        tuple(f"{columns}: {value}" for value in column_values) if columns else (),
        tuple(cells),
        captions=False,
    )


def _order(value: str) -> tuple[int, float, str]:
    """A key by which numbers are ordered by their size, before texts."""
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, 0.0, value)
