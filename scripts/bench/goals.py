"""Goals of the benchmark, for 512x512 pixels and 30 steps.

Those of a CPU are for float32 and two cores, those of a GPU for float16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from scripts.bench.outcomes import (
    COMPILED,
    DIFFUSERS,
    DIFFUSERS_REDUCED,
    FIRST,
    LOW,
    PASSIVE,
    PLAIN,
    SDPY,
    SDPY_COMPILED,
    SECOND,
    PhaseResults,
)
from sdpy.benchmark import figures
from sdpy.benchmark.figures import Spread


@dataclass(frozen=True)
class Goal:
    """Something to be reached: a value that is at most ``limit``.

    Attributes:
        text: what the value is.
        limit: in the value's unit.
        value: computes it from the measurements; None where they were not made.
        show: writes the value for people.
    """

    text: str
    limit: float
    value: Callable[[PhaseResults], Spread | None]
    show: Callable[[Spread], str] = figures.times

    def verdict(self, phases: PhaseResults) -> dict[str, Any]:
        """The goal and whether it is met (None if it was not measured), for the JSON file."""
        value = self.value(phases)
        met = None if value is None else value.median <= self.limit
        return {
            "goal": self.text,
            "limit": self.limit,
            "value": None if value is None else asdict(value),
            "met": met,
            "line": self._line(value, met),
        }

    def _line(self, value: Spread | None, met: bool | None) -> str:
        verdict = {True: "met", False: "NOT MET", None: "not measured"}[met]
        limit = self.show(Spread.of([self.limit]))
        shown = "" if value is None else f"{self.show(value)}, "
        return f"{verdict:13} {self.text}: {shown}goal at most {limit}"


def ratio_of(
    quantity: str, phase: str, ours: str = SDPY, theirs: str = DIFFUSERS
) -> Callable[[PhaseResults], Spread | None]:
    """A goal's value: a ratio of two contestants in a phase."""

    def value(phases: PhaseResults) -> Spread | None:
        return phases[phase].ratio(quantity, ours, theirs) if phase in phases else None

    return value


def low_peak(phases: PhaseResults) -> Spread | None:
    """Peak bytes of a whole image with ``--memory low``."""
    outcomes = phases["generate"].outcomes.get(LOW, []) if "generate" in phases else []
    peaks = [one.peak for one in outcomes if one.peak is not None]
    return Spread.of(peaks) if peaks else None


def unet_error(phases: PhaseResults) -> Spread | None:
    """Relative error of the UNet's prediction."""
    error = phases["unet"].errors.get(SDPY) if "unet" in phases else None
    return None if error is None else Spread.of([error])


def seconds_of(phase: str, contestant: str) -> Callable[[PhaseResults], Spread | None]:
    """A goal's value: the seconds of a contestant in a phase."""

    def value(phases: PhaseResults) -> Spread | None:
        outcomes = phases[phase].outcomes.get(contestant, []) if phase in phases else []
        return Spread.of([one.seconds for one in outcomes]) if outcomes else None

    return value


def _seconds(value: Spread) -> str:
    return figures.seconds(value.median)


GOALS = (
    Goal("UNet step, of diffusers' time", 0.60, ratio_of("seconds", "unet")),
    Goal(
        "UNet step, of compiled diffusers' time", 1.0, ratio_of("seconds", "unet", SDPY, COMPILED)
    ),
    Goal("VAE decode, of diffusers' time", 0.40, ratio_of("seconds", "decode")),
    Goal("generate, of diffusers' time", 0.60, ratio_of("seconds", "generate")),
    Goal("one step without guidance, of diffusers' time", 0.45, ratio_of("seconds", "one-step")),
    Goal(
        "the same in bf16 with a tiny decoder, of diffusers' time",
        0.35,
        ratio_of("seconds", "one-step-cheapest"),
    ),
    Goal(
        "demo image beside matrix products, of the time with passive waiting by hand",
        1.1,
        ratio_of("seconds", "busy", SDPY, PASSIVE),
    ),
    Goal("start to first UNet step, of diffusers' time", 0.40, ratio_of("seconds", "load")),
    Goal("peak memory of generate, of diffusers'", 0.85, ratio_of("peak", "memory")),
    Goal(
        "peak memory of generate --memory low",
        2e9,
        low_peak,
        lambda value: figures.megabytes(value.median),
    ),
    Goal(
        "generate --memory low, of the default's time",
        1.3,
        ratio_of("seconds", "generate", LOW, SDPY),
    ),
    Goal("sdpy --help, of Typer's and Rich's time", 1.5, ratio_of("seconds", "help", SDPY, PLAIN)),
    Goal(
        "relative error of a UNet step",
        1e-4,
        unet_error,
        lambda value: f"{value.median:.1e}",
    ),
)

GPU_GOALS = (
    Goal(
        "image compiled, of compiled diffusers' time",
        0.80,
        ratio_of("seconds", "loaded", SDPY_COMPILED, DIFFUSERS_REDUCED),
    ),
    Goal("image, of diffusers' time", 0.70, ratio_of("seconds", "loaded")),
    Goal("batch of 8, of diffusers' time", 0.60, ratio_of("seconds", "batch")),
    Goal(f"compiling, {FIRST}", 15.0, seconds_of("compiling", f"{SDPY}, {FIRST}"), show=_seconds),
    Goal(f"compiling, {SECOND}", 5.0, seconds_of("compiling", f"{SDPY}, {SECOND}"), show=_seconds),
)


def goals_for(device: str) -> tuple[Goal, ...]:
    """The goals of a device."""
    return GOALS if device == "cpu" else GPU_GOALS
