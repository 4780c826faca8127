"""The figure of `scripts.figures.compare_samplers`: lines of distances, tables of percentages.

Drawn with Pillow alone, larger than it is shown and made smaller in the end, which smoothes edges.
Positions and sizes are in pixels of an image that is `WIDTH` wide; it is saved `SCALE` times as
large, for screens that show several pixels for one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageDraw, ImageFont

WIDTH = 960
SCALE = 2
SMOOTHING = 2

Colour = tuple[int, int, int]
Point = tuple[float, float]

WHITE: Colour = (255, 255, 255)
INK: Colour = (36, 41, 47)
SOFT: Colour = (101, 109, 118)
GRID: Colour = (228, 231, 235)
REST: Colour = (178, 184, 191)
HIGHLIGHTS: tuple[Colour, ...] = ((9, 105, 218), (207, 84, 0), (26, 127, 55))
"""Colours of the samplers that the figure highlights, in their order."""

NONE: Colour = (250, 243, 240)
ALL: Colour = (17, 99, 105)
"""Colours of cells of 0 and 100 percent."""


@dataclass(frozen=True)
class Row:
    """What the figure shows of a sampler.

    Attributes:
        name: of the sampler.
        distances: by evaluations of the UNet, all above 0; none of a sampler with fresh noise.
        shares: percent by evaluations of the UNet, for each of the tables; NaN where not measured.
        colour: of its line and name.
        mark: added to its name.
    """

    name: str
    distances: Mapping[int, float]
    shares: tuple[Mapping[int, float], ...]
    colour: Colour = REST
    mark: str = ""


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels from the upper left."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class LogAxis:
    """Places of values from ``low`` to ``high`` between ``start`` and ``end``, by logarithm."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of ``value``."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


class Canvas:
    """Something to draw on, in pixels of the image as it is shown."""

    def __init__(self, height: float) -> None:
        self.factor = SCALE * SMOOTHING
        size = (WIDTH * self.factor, round(height * self.factor))
        self.image = Image.new("RGB", size, WHITE)

    @cached_property
    def _draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def line(self, points: Sequence[Point], colour: Colour, width: float = 1) -> None:
        """Draw straight lines from point to point."""
        scaled = [(x * self.factor, y * self.factor) for x, y in points]
        self._draw.line(scaled, colour, round(width * self.factor), joint="curve")

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Draw a disc."""
        corners = [(x - radius), (y - radius), (x + radius), (y + radius)]
        self._draw.ellipse([corner * self.factor for corner in corners], colour)

    def fill(self, box: Box, colour: Colour) -> None:
        """Draw a filled rectangle."""
        corners = (box.left, box.top, box.right, box.bottom)
        left, top, right, bottom = (round(corner * self.factor) for corner in corners)
        self._draw.rectangle((left, top, right - 1, bottom - 1), colour)

    def text(
        self, x: float, y: float, text: str, size: float, colour: Colour = INK, anchor: str = "ls"
    ) -> None:
        """Draw a line of text; with Pillow's anchor ``ls`` its base line starts at (x, y)."""
        font = ImageFont.load_default(size * self.factor)
        self._draw.text((x * self.factor, y * self.factor), text, colour, font, anchor)

    def finished(self) -> Image.Image:
        """The image, ``SCALE`` times as large as it is shown."""
        width, height = self.image.size
        return self.image.resize((width // SMOOTHING, height // SMOOTHING), Image.Resampling.BOX)


@dataclass(frozen=True)
class Chart:
    """The image, and where in it, in pixels as it is shown, each value is.

    Attributes:
        image: ``SCALE`` times as large.
        points: of the lines, by sampler and evaluations.
        cells: of the tables, by the table's number, sampler and evaluations.
    """

    image: Image.Image
    points: Mapping[tuple[str, int], Point]
    cells: Mapping[tuple[int, str, int], Box]


MARGIN = 16
HEADING = 62  # height of a panel's title
NAMES = 100  # width of the samplers' names
ROW = 21  # height of a row of the tables
CELL = 33  # width of a cell
GAP = 18  # between tables


def draw(
    groups: Mapping[str, Sequence[Row]],
    titles: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> Chart:
    """Draw the image.

    Args:
        groups: rows under their headings, in the order of the tables.
        titles: of the tables, and a line below each.
        notes: lines below the panels.
    """
    rows = [row for group in groups.values() for row in group]
    bottom = HEADING + ROW * (1 + len(rows) + len(groups))
    canvas = Canvas(bottom + 30 + 17 * len(notes))
    lefts: list[float] = []
    right: float = WIDTH - MARGIN
    for columns in reversed(rows[0].shares):
        lefts.insert(0, right - CELL * len(columns))
        right = lefts[0] - GAP
    names = lefts[0] - NAMES
    plot = Box(MARGIN + 38, HEADING + 8, names - 135, bottom - 34)
    points = _draw_lines(canvas, plot, [row for row in rows if row.distances])
    tops = _draw_names(canvas, names, groups)
    cells: dict[tuple[int, str, int], Box] = {}
    for i, (left, title) in enumerate(zip(lefts, titles, strict=True)):
        shares = {row.name: row.shares[i] for row in rows}
        placed = _draw_table(canvas, left, title, shares, tops)
        cells |= {(i, name, n): cell for (name, n), cell in placed.items()}
    for i, note in enumerate(notes):
        canvas.text(MARGIN, bottom + 34 + 17 * i, note, 12, SOFT)
    return Chart(canvas.finished(), points, cells)


def _draw_lines(canvas: Canvas, plot: Box, rows: Sequence[Row]) -> dict[tuple[str, int], Point]:
    """Draw the panel of distances; returns where its points are."""
    canvas.text(MARGIN, 24, "Distance to the solution", 17)
    canvas.text(
        MARGIN, 44, "of samplers that add no noise, % of the latents; lower is nearer", 12.5, SOFT
    )
    evaluations = sorted({n for row in rows for n in row.distances})
    distances = [d for row in rows for d in row.distances.values()]
    x = LogAxis(evaluations[0], evaluations[-1], plot.left, plot.right)
    y = LogAxis(min(distances) * 0.9, max(distances) * 1.1, plot.bottom, plot.top)

    for value in ticks(y.low, y.high):
        canvas.line([(plot.left, y(value)), (plot.right, y(value))], GRID)
        canvas.text(plot.left - 6, y(value), f"{100 * value:g}", 12, SOFT, "rm")
    for n in evaluations:
        canvas.line([(x(n), plot.top), (x(n), plot.bottom)], GRID)
        canvas.text(x(n), plot.bottom + 15, str(n), 12, SOFT, "ms")
    middle = (plot.left + plot.right) / 2
    canvas.text(middle, plot.bottom + 32, "evaluations of the UNet", 12.5, SOFT, "ms")

    places = {
        (row.name, n): (x(n), y(distance)) for row in rows for n, distance in row.distances.items()
    }
    ends = [places[row.name, max(row.distances)] for row in rows]
    heights = spread([height for _, height in ends], 15, plot.top, plot.bottom)
    for row, end, height in zip(rows, ends, heights, strict=True):
        plain = row.colour == REST
        canvas.line([end, (plot.right + 16, height)], GRID if plain else row.colour)
        colour = SOFT if plain else row.colour
        canvas.text(plot.right + 19, height, row.name + row.mark, 12.5, colour, "lm")
    for row in sorted(rows, key=lambda row: row.colour != REST):
        line = [places[row.name, n] for n in sorted(row.distances)]
        plain = row.colour == REST
        canvas.line(line, row.colour, 1.25 if plain else 2.25)
        for at in line:
            canvas.dot(*at, 1.75 if plain else 3, row.colour)
    return places


def _draw_names(
    canvas: Canvas, left: float, groups: Mapping[str, Sequence[Row]]
) -> dict[str, float]:
    """Draw the groups' headings and the samplers' names; returns the top of each row."""
    tops = {}
    top: float = HEADING + ROW
    canvas.text(left, top - 6, "evaluations", 12, SOFT)
    for heading, rows in groups.items():
        canvas.text(left, top + ROW - 6, heading, 12.5, SOFT)
        top += ROW
        for row in rows:
            colour = INK if row.colour == REST else row.colour
            canvas.text(left, top + ROW / 2, row.name + row.mark, 12.5, colour, "lm")
            tops[row.name] = top
            top += ROW
    return tops


def _draw_table(
    canvas: Canvas,
    left: float,
    title: tuple[str, str],
    shares: Mapping[str, Mapping[int, float]],
    tops: Mapping[str, float],
) -> dict[tuple[str, int], Box]:
    """Draw a table of percentages by sampler and evaluations; returns where its cells are."""
    canvas.text(left, 24, title[0], 17)
    canvas.text(left, 44, title[1], 12.5, SOFT)
    cells = {}
    for name, percentages in shares.items():
        for i, (n, percent) in enumerate(percentages.items()):
            x = left + CELL * i
            canvas.text(x + CELL / 2, HEADING + ROW - 6, str(n), 12, SOFT, "ms")
            cells[name, n] = Box(x, tops[name], x + CELL - 1, tops[name] + ROW - 1)
            _draw_cell(canvas, cells[name, n], percent)
    return cells


def _draw_cell(canvas: Canvas, cell: Box, percent: float) -> None:
    if math.isnan(percent):
        return
    canvas.fill(cell, shade(percent))
    middle = ((cell.left + cell.right) / 2, (cell.top + cell.bottom) / 2)
    canvas.text(*middle, f"{percent:.0f}", 12, WHITE if 85 < percent < 118 else INK, "mm")


def shade(percent: float) -> Colour:
    """The colour of a cell: too much is as bad as too little, twice as half.

    Most are near 100 percent, and differ most there.
    """
    share = (min(percent, 10_000 / percent) / 100) ** 2 if percent > 0 else 0
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(NONE, ALL, strict=True))
    return red, green, blue


def ticks(low: float, high: float) -> list[float]:
    """The values 1, 2 and 5 times powers of ten from ``low`` to ``high``."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def spread(heights: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Heights at least ``gap`` apart, as near to the given ones as they can be.

    In the same order; within ``top`` and ``bottom`` if there is room.
    """

    def inside(start: float, count: int) -> float:
        return max(top, min(start, bottom - gap * (count - 1)))

    order = sorted(range(len(heights)), key=lambda i: heights[i])
    blocks: list[tuple[float, int]] = []  # the height of the first, and how many there are
    for i in order:
        start, count = inside(heights[i], 1), 1
        while blocks and start < blocks[-1][0] + gap * blocks[-1][1]:
            before, others = blocks.pop()
            # All of a block move together, to where the mean of their wishes is.
            start = (before * others + (start - gap * others) * count) / (others + count)
            count += others
            start = inside(start, count)
        blocks.append((start, count))
    placed = [start + gap * i for start, count in blocks for i in range(count)]
    result = [0.0] * len(heights)
    for i, height in zip(order, placed, strict=True):
        result[i] = height
    return result
