"""Times a phase: loading, the first evaluation, and further ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdpy.benchmark.memory import Peak, measure_peak

if TYPE_CHECKING:  # at run time this would import torch
    from torch import Tensor

Evaluate = Callable[[], "Tensor"]
"""Does the work once and returns the result on the CPU, so that it has been finished."""

Phase = AbstractContextManager[Evaluate]
"""Loads what an evaluation needs when it is entered, and releases it when it is left."""


@dataclass(frozen=True)
class Measurement:
    """The cost of a phase.

    Attributes:
        load: seconds to enter it.
        first: seconds of the first evaluation, which also reads mapped weights, makes plans and
            fills caches.
        times: seconds of each later evaluation.
        peak: the most memory held from before loading until after the last evaluation.
        output: result of the first evaluation.
    """

    load: float
    first: float
    times: tuple[float, ...]
    peak: Peak
    output: Tensor


def measure(phase: Phase, evaluations: int, seconds: float = math.inf) -> Measurement:
    """Enter a phase and evaluate it once to warm up, then ``evaluations`` times.

    Args:
        phase: what to measure.
        evaluations: at least 1.
        seconds: no further evaluation is begun once the timed ones took this long; if the first
            one already took longer, it is the only one and is the timed one.
    """
    times: list[float] = []
    with measure_peak() as peak:
        started = time.perf_counter()
        with phase as evaluate:
            load = time.perf_counter() - started
            output, first = _timed(evaluate)
            if first > seconds:
                times.append(first)
            while not times or (len(times) < evaluations and sum(times) < seconds):
                times.append(_timed(evaluate)[1])
    return Measurement(load, first, tuple(times), peak, output)


def _timed(evaluate: Evaluate) -> tuple[Tensor, float]:
    started = time.perf_counter()
    output = evaluate()
    return output, time.perf_counter() - started
