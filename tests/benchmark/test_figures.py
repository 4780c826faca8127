from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpy.benchmark import figures
from sdpy.benchmark.figures import Spread

FINITE = st.floats(min_value=1e-9, max_value=1e9)


@given(st.lists(FINITE, min_size=1, max_size=9))
def test_a_spread_is_what_the_standard_library_says(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.median == pytest.approx(statistics.median(values))
    assert (spread.low, spread.high, spread.count) == (min(values), max(values), len(values))


def test_nothing_has_no_spread() -> None:
    with pytest.raises(ValueError, match="no measurement"):
        Spread.of([])


def test_ratios_are_taken_pair_by_pair() -> None:
    """The machine slowed down by half in between, which changes no ratio."""
    assert figures.ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == Spread(0.5, 0.5, 0.5, 3)
    assert figures.ratio([1.0, 3.0], [2.0, 2.0]) == Spread(1.0, 0.5, 1.5, 2)


def test_ratios_of_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError):
        figures.ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0000123, "12.3 us"),
        (0.00456, "4.56 ms"),
        (0.0999, "99.9 ms"),
        (1.0, "1.00 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (99.97, "100 s"),
        (312.4, "312 s"),
    ],
)
def test_seconds_have_three_digits(value: float, text: str) -> None:
    assert figures.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.321, "4.32 s"),
        (45.4, "45 s"),
        (59.6, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.7, "1 h 00 min"),
        (4230, "1 h 10 min"),
    ],
)
def test_durations(value: float, text: str) -> None:
    assert figures.duration(value) == text


def test_ranges_say_their_unit_once_if_it_is_one() -> None:
    assert figures.low_to_high(Spread(2.0, 1.5, 2.5, 3)) == "1.50-2.50 s"
    assert figures.low_to_high(Spread(1.0, 0.9, 1.1, 3)) == "900 ms-1.10 s"
    assert figures.low_to_high(Spread(1.0, 1.0, 1.0, 1)) == ""


def test_ratios_of_one_pair_have_no_range() -> None:
    assert figures.times(Spread(0.58, 0.57, 0.6, 3)) == "0.58 (0.57-0.60)"
    assert figures.times(Spread(0.58, 0.58, 0.58, 1)) == "0.58"


def test_other_figures() -> None:
    assert figures.megabytes(4_512_345_678) == "4,512 MB"
    assert figures.gigaflops(135.4e9) == "135"
    assert figures.percent(0.734) == "73 %"


def test_a_table_is_aligned_markdown() -> None:
    assert figures.table(["phase", "s"], [["UNet step", "9.10"], ["a", "12.5"]]).splitlines() == [
        "| phase     |    s |",
        "|-----------|-----:|",
        "| UNet step | 9.10 |",
        "| a         | 12.5 |",
    ]
