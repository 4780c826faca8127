"""What the processes of a phase measured, and how contestants compare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sdpy.benchmark import figures
from sdpy.benchmark.figures import Spread

SDPY, DIFFUSERS, COMPILED = "sdpy", "diffusers", "diffusers, compiled"

LOW, PLAIN = "sdpy --memory low", "typer and rich alone"

SDPY_GRAPHS, SDPY_COMPILED = "sdpy --cuda-graphs", "sdpy --compile"

DIFFUSERS_REDUCED = "diffusers, reduce-overhead"

FIRST, SECOND = "first process", "second process"

PASSIVE, SPINNING = "sdpy, waiting passively by hand", "sdpy, spinning"


@dataclass(frozen=True)
class Outcome:
    """What one process of a phase measured.

    Attributes:
        times: seconds, one or several.
        peak: bytes of resident memory, None where the system does not tell.
        load: seconds to load the phase's model.
        first: seconds of the evaluation that warmed up, compiling included.
        rate: FLOP/s of the machine's matrix product, measured by the same process.
    """

    times: list[float]
    peak: int | None
    load: float | None = None
    first: float | None = None
    rate: float | None = None

    @property
    def seconds(self) -> float:
        """The median of the times."""
        return Spread.of(self.times).median


@dataclass(frozen=True)
class PhaseResult:
    """All outcomes of a phase.

    Attributes:
        outcomes: by contestant, in turn.
        errors: relative errors of their outputs.
        flops: the arithmetic of the phase, where it was counted.
        base: the contestant that the others are compared with.
    """

    outcomes: dict[str, list[Outcome]]
    errors: dict[str, float] = field(default_factory=dict)
    flops: int | None = None
    base: str = DIFFUSERS

    def ratio(self, quantity: str, ours: str, theirs: str) -> Spread | None:
        """The ratio of two contestants' "seconds" or "peak"; None if one was not measured."""
        pairs = [
            [getattr(one, quantity) for one in self.outcomes.get(name, ())]
            for name in (ours, theirs)
        ]
        if not all(pairs) or any(None in values for values in pairs):
            return None
        return figures.ratio(*pairs)


PhaseResults = dict[str, PhaseResult]


def product_rate(phases: Iterable[PhaseResult]) -> Spread | None:
    """Summarise the matrix product's rate over all processes that measured it."""
    outcomes = [one for phase in phases for many in phase.outcomes.values() for one in many]
    rates = [one.rate for one in outcomes if one.rate is not None]
    return Spread.of(rates) if rates else None
