"""What many measurements come to, and how figures are written for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TITLES = {
    "text": "text encoding",
    "unet": "UNet step",
    "decode": "VAE decode",
    "encode": "VAE encode",
}
"""The phases that are measured by themselves, and what people call them."""


@dataclass(frozen=True)
class Spread:
    """Of ``count`` measurements, the middle one, the least and the greatest."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up at least one value.

        Raises:
            ValueError: there is none.
        """
        if not values:
            raise ValueError("no measurement")
        ordered = sorted(values)
        middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]  # one, or two
        return cls(sum(middle) / len(middle), ordered[0], ordered[-1], len(ordered))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, pair by pair.

    Two that were measured one after the other saw the machine in the same state, so that their
    ratio is steadier than either.

    Raises:
        ValueError: there is no pair, or one of the two has more measurements.
    """
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def seconds(value: float) -> str:
    """A time, to three digits: ``850 us``, ``12.3 ms``, ``4.56 s``, ``312 s``."""
    if value >= 1:
        return f"{_three_digits(value)} s"
    if value >= 1e-3:
        return f"{_three_digits(value * 1e3)} ms"
    return f"{_three_digits(value * 1e6)} us"


def low_to_high(spread: Spread) -> str:
    """The range of times: ``4.31-4.80 s``; nothing where there is only one."""
    if spread.count == 1:
        return ""
    low, high = seconds(spread.low), seconds(spread.high)
    if low.split()[1] == high.split()[1]:
        low = low.split()[0]
    return f"{low}-{high}"


def duration(value: float) -> str:
    """A long time: ``45 s``, ``4 min 05 s``, ``1 h 10 min``."""
    whole = round(value)
    if whole < 60:
        return seconds(value) if value < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def megabytes(size: float) -> str:
    """``412 MB``; a million bytes each."""
    return f"{size / 1e6:,.0f} MB"


def gigaflops(rate: float) -> str:
    """FLOP/s as ``132`` GFLOP/s, without the unit."""
    return _three_digits(rate / 1e9)


def percent(share: float) -> str:
    """``73 %``."""
    return f"{100 * share:.0f} %"


def times(spread: Spread) -> str:
    """A ratio: ``0.58 (0.57-0.60)``; a single one without its range."""
    if spread.count == 1:
        return f"{spread.median:.2f}"
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; all but the first are flush right."""
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
