"""Summarises measurements, and formats numbers and tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TITLES = {
    "text": "text encoding",
    "unet": "UNet step",
    "decode": "VAE decode",
    "encode": "VAE encode",
}
"""The phases that are measured separately, and their titles."""


@dataclass(frozen=True)
class Spread:
    """Median and range of ``count`` measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value.

        Raises:
            ValueError: there is none.
        """
        if not values:
            raise ValueError("no measurement")
        ordered = sorted(values)
        middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]  # one, or two
        return cls(sum(middle) / len(middle), ordered[0], ordered[-1], len(ordered))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The ratio of ours to theirs, pair by pair.

    Two measurements made one after the other saw the machine in the same state, so that their
    ratio is steadier than either.

    Raises:
        ValueError: there is no pair, or one of the two has more measurements.
    """
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def seconds(value: float) -> str:
    """Format a time to three digits: ``850 us``, ``12.3 ms``, ``4.56 s``, ``312 s``."""
    if value >= 1:
        return f"{_three_digits(value)} s"
    if value >= 1e-3:
        return f"{_three_digits(value * 1e3)} ms"
    return f"{_three_digits(value * 1e6)} us"


def low_to_high(spread: Spread) -> str:
    """Format a range of times as ``4.31-4.80 s``; empty where there is only one time."""
    if spread.count == 1:
        return ""
    low, high = seconds(spread.low), seconds(spread.high)
    if low.split()[1] == high.split()[1]:
        low = low.split()[0]
    return f"{low}-{high}"


def duration(value: float) -> str:
    """Format a long time: ``45 s``, ``4 min 05 s``, ``1 h 10 min``."""
    whole = round(value)
    if whole < 60:
        return seconds(value) if value < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def megabytes(size: float) -> str:
    """Format a size as ``412 MB``, of a million bytes each."""
    return f"{size / 1e6:,.0f} MB"


def gigaflops(rate: float) -> str:
    """Format a rate in FLOP/s as ``132``, in GFLOP/s without the unit."""
    return _three_digits(rate / 1e9)


def percent(share: float) -> str:
    """Format a share as ``73 %``."""
    return f"{100 * share:.0f} %"


def times(spread: Spread) -> str:
    """Format a ratio as ``0.58 (0.57-0.60)``; a single one without its range."""
    if spread.count == 1:
        return f"{spread.median:.2f}"
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, of which all but the first are right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    lines = [_aligned(header, widths), f"|{'|'.join(rule)}|"]
    return "\n".join([*lines, *(_aligned(row, widths) for row in rows)])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
    return f"| {' | '.join(padded)} |"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
