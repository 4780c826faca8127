from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest

from scripts.figures import sampler_chart as sc

GROUPS = {
    "without": [
        sc.Row(
            "near",
            {5: 0.2, 10: 0.02, 20: 0.002},
            ({5: 0.0, 20: 100.0}, {5: 100.0}),
            sc.HIGHLIGHTS[0],
        ),
        sc.Row("far", {5: 0.8, 10: 0.4, 20: 0.08}, ({5: 50.0, 20: 75.0}, {5: 200.0}), mark="*"),
    ],
    "with": [sc.Row("noisy", {}, ({5: 25.0, 20: math.nan}, {5: 50.0}))],
}
TITLES = [("one", "of"), ("other", "of")]


@pytest.fixture(scope="module")
def chart() -> sc.Chart:
    return sc.draw(GROUPS, TITLES, ["a note", "another"])


def pixel(chart: sc.Chart, x: float, y: float) -> sc.Colour:
    """The colour at a place of the image as it is shown."""
    return chart.image.getpixel((round(x * sc.SCALE), round(y * sc.SCALE)))


def test_the_image_is_as_wide_as_it_says(chart: sc.Chart) -> None:
    assert chart.image.width == sc.WIDTH * sc.SCALE
    assert chart.image.getpixel((0, 0)) == sc.WHITE


def test_lines_have_their_points_where_they_say(chart: sc.Chart) -> None:
    assert set(chart.points) == {(name, n) for name in ("near", "far") for n in (5, 10, 20)}
    for (name, _), at in chart.points.items():
        assert pixel(chart, *at) == (sc.HIGHLIGHTS[0] if name == "near" else sc.REST)


def test_points_are_placed_by_their_logarithms(chart: sc.Chart) -> None:
    points = chart.points
    xs = [points["near", n][0] for n in (5, 10, 20)]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])  # doubled twice
    assert 0 < xs[0] < xs[2] < sc.WIDTH
    # As far down for each factor of ten, and down is nearer.
    ys = [points["near", n][1] for n in (5, 10, 20)]
    decade = ys[1] - ys[0]
    assert decade > 20
    assert ys[2] - ys[1] == pytest.approx(decade)
    assert points["far", 10][1] - points["far", 5][1] == pytest.approx(decade * math.log10(2))
    assert points["near", 5][1] - points["far", 5][1] == pytest.approx(decade * math.log10(4))


def test_grid_lines_are_where_points_of_their_values_would_be(chart: sc.Chart) -> None:
    x, far = chart.points["far", 10]
    decade = chart.points["near", 10][1] - chart.points["near", 5][1]
    beside = x + 9  # no line, point or vertical grid line is there
    for value in (0.5, 0.2, 0.05, 0.01, 0.005):
        y = far + decade * math.log10(0.4 / value)
        assert pixel(chart, beside, y) == sc.GRID, value
        assert pixel(chart, beside, y + 6) == sc.WHITE, value


def test_cells_have_the_colours_of_their_percentages(chart: sc.Chart) -> None:
    colours = {}
    for key, cell in chart.cells.items():
        # Beside the number, which is in the middle.
        colours[key] = pixel(chart, cell.left + 3, (cell.top + cell.bottom) / 2)
    assert colours[0, "near", 5] == sc.NONE
    assert colours[0, "near", 20] == colours[1, "near", 5] == sc.ALL
    assert colours[0, "noisy", 20] == sc.WHITE
    assert colours[1, "noisy", 5] == colours[0, "far", 5]  # both are 50
    assert colours[1, "far", 5] == colours[0, "far", 5]  # twice too much is as bad
    darkness = [-sum(colours[0, name, n]) for name, n in (("noisy", 5), ("far", 5), ("far", 20))]
    assert -sum(sc.NONE) < darkness[0] < darkness[1] < darkness[2] < -sum(sc.ALL)


def test_cells_stand_in_rows_and_columns_and_do_not_touch(chart: sc.Chart) -> None:
    names, columns = ("near", "far", "noisy"), ((0, 5), (0, 20), (1, 5))
    assert set(chart.cells) == {(i, name, n) for name in names for i, n in columns}
    for name in names:
        row = [chart.cells[i, name, n] for i, n in columns]
        assert len({(cell.top, cell.bottom) for cell in row}) == 1
        assert all(left.right < right.left for left, right in pairwise(row))
        assert row[-1].right < sc.WIDTH
    for i, n in columns:
        for above, below in pairwise(chart.cells[i, name, n] for name in names):
            assert above.left == below.left
            assert above.bottom < below.top


def test_numbers_are_written_into_cells(chart: sc.Chart) -> None:
    for key, cell in chart.cells.items():
        box = [round(side * sc.SCALE) for side in (cell.left, cell.top, cell.right, cell.bottom)]
        inside = chart.image.crop((box[0] + 2, box[1] + 2, box[2] - 2, box[3] - 2))
        empty = len(inside.getcolors(1 << 16)) == 1
        assert empty == (key == (0, "noisy", 20))


def test_ticks_are_round_numbers_within() -> None:
    assert sc.ticks(0.004, 0.3) == pytest.approx([0.005, 0.01, 0.02, 0.05, 0.1, 0.2])
    assert sc.ticks(1, 10) == pytest.approx([1, 2, 5, 10])


@pytest.mark.parametrize(
    "heights",
    [[50.0], [10, 50, 90], [50, 50, 50], [0, 1, 2, 3], [99, 100, 98], [60, 20, 61, 22, 62, 21]],
)
def test_labels_keep_apart_and_in_order(heights: list[float]) -> None:
    placed = sc.spread(heights, 10, 0, 100)
    for (a, at), (b, other) in combinations(zip(heights, placed, strict=True), 2):
        assert abs(at - other) >= 10 - 1e-9
        if a != b:
            assert (at < other) == (a < b)
    assert min(placed) >= 0 and max(placed) <= 100


def test_labels_move_no_more_than_they_must() -> None:
    assert sc.spread([10, 50, 90], 10, 0, 100) == [10, 50, 90]
    assert sc.spread([50, 50], 10, 0, 100) == [45, 55]
    assert sc.spread([50, 52, 80], 10, 0, 100) == [46, 56, 80]
    assert sc.spread([100, 100, 10], 10, 0, 100) == [90, 100, 10]
