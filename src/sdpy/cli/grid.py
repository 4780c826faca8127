"""``sdpy grid FOLDER``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpy.cli.display import ProgressDisplay, open_display
from sdpy.errors import ImageError, UsageError

if TYPE_CHECKING:  # at run time this would import Pillow
    from sdpy.gallery.images import GalleryImage


def grid(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of images.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write.",
            show_default="FOLDER.grid.png, with --html FOLDER/index.html",
        ),
    ] = None,
    as_page: Annotated[
        bool,
        typer.Option(
            "--html",
            help="Make a page for the browser: filter, sort, full size, the command of each.",
        ),
    ] = False,
    rows: Annotated[
        str | None,
        typer.Option(show_default="found out", help="What names the rows: prompt, steps, ..."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            show_default="found out",
            help="What names the columns: seed, sampler, cfg-scale, ...; or how many there are.",
        ),
    ] = None,
    size: Annotated[
        int, typer.Option(min=16, max=2048, help="Longer side of each image in the sheet.")
    ] = 256,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Make a contact sheet of the images in a folder, or a page for the browser.

    Where the images differ in up to three things, such as seed, sampler and guidance scale, these
    name the sheet's columns and rows. Otherwise each image has its name under it.
    """
    from sdpy.gallery.images import find_images

    paths, _ = find_images(folder)
    default = folder / "index.html" if as_page else folder.resolve().with_suffix(".grid.png")
    target = default if output is None else output
    paths = [path for path in paths if path.resolve() != target.resolve()]
    if as_page and (rows or columns):
        raise UsageError("--rows and --columns are for sheets: leave out --html, or these")
    with open_display(quiet) as display:
        images = list(_read(paths, display))
        if as_page:
            _write_page(folder, images, target, display)
        else:
            _write_sheet(folder, images, target, rows, columns, size)
    if not quiet:
        print(target)


def _read(paths: list[Path], display: ProgressDisplay) -> Iterator[GalleryImage]:
    """The images that can be read; a line for each other."""
    from sdpy.gallery.images import read_images

    bar = display.bar(len(paths), "reading metadata")
    for k, one in enumerate(read_images(paths), 1):
        bar.update(k)
        if isinstance(one, ImageError):
            display.line(str(one))
        else:
            yield one


def _write_sheet(
    folder: Path,
    images: list[GalleryImage],
    target: Path,
    rows: str | None,
    columns: str | None,
    size: int,
) -> None:
    from sdpy.gallery.axes import arrange
    from sdpy.images.files import save_image
    from sdpy.images.paths import check_outputs
    from sdpy.images.sheets import contact_sheet

    check_outputs([target])
    width = max(1, round(len(images) ** 0.5 * 1.2))
    if columns is not None and columns.isdigit():
        width, columns = max(1, int(columns)), None
    if not images:
        raise UsageError(f"{folder} has no images that can be read")
    sheet = arrange(images, rows, columns, width)
    cells = [
        [
            None if image is None else (image.path, image.path.name if sheet.captions else "")
            for image in row
        ]
        for row in sheet.cells
    ]
    save_image(contact_sheet(cells, rows=sheet.rows, columns=sheet.columns, side=size), target)


def _write_page(
    folder: Path, images: list[GalleryImage], target: Path, display: ProgressDisplay
) -> None:
    from sdpy.files import atomic_write
    from sdpy.gallery.page import THUMBNAIL, entry, page_text
    from sdpy.images.sheets import thumbnail

    def entries() -> Iterator[dict[str, Any]]:
        bar = display.bar(len(images), "thumbnails")
        for k, image in enumerate(images, 1):
            bar.update(k)
            try:
                small, whole = thumbnail(image.path, THUMBNAIL)
            except ImageError as error:
                display.line(str(error))
                continue
            yield entry(image, target, small, whole)

    with atomic_write(target) as file:
        for piece in page_text(folder.resolve().name, entries()):
            file.write(piece.encode("utf-8"))
