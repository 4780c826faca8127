"""How fast this machine is with sdpy, and with which settings it is fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from sdpy.benchmark.arithmetic import matrix_product_rate
from sdpy.benchmark.figures import TITLES
from sdpy.benchmark.phases import PHASES, BenchmarkTarget
from sdpy.benchmark.timing import Measurement, measure
from sdpy.checkpoints import DTYPES_BY_NAME
from sdpy.errors import UsageError
from sdpy.runtime.devices import CPU, best_device, cpu_has_bfloat16, place
from sdpy.runtime.execution import Execution
from sdpy.runtime.threads import fitting_threads, is_number_given, usable_cores

SECONDS_A_PHASE = 10.0
"""Once the timed evaluations of a phase took so long, no more are begun; see `measure`."""


@dataclass(frozen=True)
class Setup:
    """What a user can choose without changing the image.

    Attributes:
        device: as ``--device`` takes it.
        threads: on the CPU.
        fast_kernels: as ``--fast-kernels`` takes it; only the CPU has them.
        dtype: as ``--dtype`` takes it. Another than fp32 changes the image a little.
    """

    device: str
    threads: int
    fast_kernels: bool = True
    dtype: str = "fp32"

    def __str__(self) -> str:
        """As in ``cpu, 2 threads``."""
        dtype = "" if self.dtype == "fp32" else f", {self.dtype}"
        if torch.device(self.device).type != "cpu":
            return f"{self.device}{dtype}"
        kernels = "" if self.fast_kernels else ", plain kernels"
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"{self.device}, {threads}{kernels}{dtype}"


@dataclass(frozen=True)
class MeasurementStarted:
    """A measurement begins that takes a while."""

    what: str


@dataclass(frozen=True)
class MatmulRate:
    """The rate at which a setup multiplies matrices, in FLOP/s."""

    setup: Setup
    rate: float


@dataclass(frozen=True)
class PhaseMeasurement:
    """The measurement of one of `sdpy.benchmark.phases.PHASES` with a setup, and its FLOP."""

    phase: str
    setup: Setup
    flops: int
    measurement: Measurement


Event = MeasurementStarted | MatmulRate | PhaseMeasurement


def usual_setup(target: BenchmarkTarget | None = None) -> Setup:
    """What a run uses where the user says nothing.

    Args:
        target: the model, of which a small one takes fewer threads; None for any large one.
    """
    device, threads = best_device(), torch.get_num_threads()
    if target is not None and device == CPU and not is_number_given():
        threads = fitting_threads(target.work, threads)
    return Setup(str(device), threads)


def setups(device: str | None = None, threads: Sequence[int] = ()) -> list[Setup]:
    """The settings that are worth comparing; the first are those that a run has by itself.

    Args:
        device: as ``--device`` takes it; None compares the best that there is with the CPU.
        threads: numbers of threads to compare on the CPU; none: as many as runs have by themselves,
            the cores that this process may use, half of them, and one.

    Raises:
        UsageError: no such device, or no thread.
    """
    if any(count < 1 for count in threads):
        raise UsageError(f"--threads {','.join(map(str, threads))}: use numbers from 1 on")
    usual, cores = usual_setup(), usable_cores()
    counts = threads if threads else (usual.threads, cores, max(cores // 2, 1), 1)
    if device is None:
        devices = [usual.device, str(CPU)]
    else:
        devices = [str(place(device=device)["unet"])]
    found: list[Setup] = []
    for name in devices:
        on_cpu = torch.device(name).type == "cpu"
        found += [Setup(name, count) for count in (counts if on_cpu else counts[:1])]
        if on_cpu:
            found.append(Setup(name, counts[0], fast_kernels=False))
            if cpu_has_bfloat16():
                found.append(Setup(name, counts[0], dtype="bf16"))
        else:
            found.append(Setup(name, counts[0], dtype="fp16"))
    return list(dict.fromkeys(found))


def survey(
    target: BenchmarkTarget, choices: Sequence[Setup], *, repeats: int = 3
) -> Iterator[Event]:
    """Measure every phase with the first of the setups, and a step of the UNet with the others.

    The generator does the work while it is asked for events.

    Args:
        target: what to measure; the setups say where.
        choices: at least one.
        repeats: timed evaluations of each phase, fewer where one takes long.

    Raises:
        UsageError: an unsuitable size.
        WeightsError: a file is broken or of the wrong kind.
    """
    target.session().headers.check()
    flops = target.count_flops()
    first = choices[0]
    yield MeasurementStarted(f"matrix product, {first}")
    with _threads(first.threads):
        rate = matrix_product_rate(device=first.device)
    yield MatmulRate(first, rate)
    for setup in choices:
        placed = replace(
            target,
            placement=place(device=setup.device),
            execution=Execution(dtype=DTYPES_BY_NAME[setup.dtype], fast_kernels=setup.fast_kernels),
        )
        for phase in PHASES if setup == first else ("unet",):
            yield MeasurementStarted(f"{TITLES[phase]}, {setup}")
            with _threads(setup.threads):
                measurement = measure(
                    PHASES[phase](placed, 1 + repeats), repeats, seconds=SECONDS_A_PHASE
                )
            yield PhaseMeasurement(phase, setup, flops[phase], measurement)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads during the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
