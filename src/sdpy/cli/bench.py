"""``sdpy bench``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpy.benchmark.figures import (
    TITLES,
    Spread,
    duration,
    gigaflops,
    low_to_high,
    megabytes,
    percent,
    seconds,
    table,
)
from sdpy.cli.options import Height, Width
from sdpy.cli.terminal import tell
from sdpy.errors import UsageError

if TYPE_CHECKING:  # at run time these would import torch
    from sdpy.benchmark.phases import BenchmarkTarget
    from sdpy.benchmark.survey import Event, MatmulRate, PhaseMeasurement, Setup


def bench(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="A variant, which is given random weights of its sizes in a temporary folder; "
            "demo, which has its own; or the path of a diffusers folder or a single file.",
        ),
    ] = "sd15",
    data: Annotated[Path, typer.Option(help="Folder of the vocabulary, for a single file.")] = (
        Path("data")
    ),
    width: Width = None,
    height: Height = None,
    steps: Annotated[
        int, typer.Option("--n-steps", "--steps", min=1, help="Steps of the image to foretell.")
    ] = 30,
    threads: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            show_default="as many as usual, all cores, half of them, 1",
            help="Numbers of threads to compare.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            show_default="the GPU if there is one, and the CPU",
            help="Device to measure: cuda, cuda:1, mps, cpu.",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Times to do each phase, fewer where that takes long.")
    ] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything, for programs.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Do not tell what is being measured.")
    ] = False,
) -> None:
    """Measure how fast sdpy is on this machine, and with which settings.

    Every phase of generating an image is timed: the first time, in which the models also prepare
    themselves, then the median and range of more, effective GFLOP/s (the arithmetic of the plain
    models over the time) and their share of the rate of this machine's own matrix product, and the
    most memory that is held meanwhile. The machine should be quiet. Nothing is downloaded and
    nothing is left on the disk.
    """
    from sdpy.benchmark.survey import setups, survey, usual_setup
    from sdpy.runtime.allocator import keep_freed_memory
    from sdpy.runtime.threads import limit_threads

    keep_freed_memory()  # this and the next as the commands that generate images do
    limit_threads()
    choices = setups(device, _numbers(threads))
    with _target(model, data, width, height, quiet) as target:
        usual = usual_setup(target)
        if threads is None and choices[0].device == usual.device:
            choices = list(dict.fromkeys([usual, *choices]))
        matmul, measured = _follow(survey(target, choices, repeats=repeats), quiet)
    if as_json:
        print(json.dumps(_as_json(target, matmul, measured), indent=2))
    else:
        print("\n".join(_lines(target, usual, steps, matmul, measured)))


def _numbers(text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--threads {text}: give numbers, separated by commas") from error


@contextmanager
def _target(
    name: str, data: Path, width: int | None, height: int | None, quiet: bool
) -> Iterator[BenchmarkTarget]:
    """The model to measure; one of random weights is gone at the end of the block."""
    import tempfile

    from sdpy.benchmark.phases import BenchmarkTarget
    from sdpy.benchmark.weights import model_files, write_random_model
    from sdpy.zoo.find import find_source
    from sdpy.zoo.source import ModelSource
    from sdpy.zoo.variants import VARIANTS

    def of_size(found: ModelSource) -> BenchmarkTarget:
        side = found.variant.sample_size
        target = BenchmarkTarget(
            found, side if width is None else width, side if height is None else height
        )
        _ = target.latent_shape  # which refuses sizes that do not suit
        return target

    if name not in VARIANTS or VARIANTS[name].bundled is not None:
        yield of_size(find_source(name, data))
        return
    with tempfile.TemporaryDirectory(prefix="sdpy-bench-") as folder:
        variant = VARIANTS[name]
        target = of_size(ModelSource(variant, model_files(Path(folder), variant)))
        _tell(f"writing random weights to {folder}", quiet)
        write_random_model(Path(folder), variant)
        yield target


def _follow(events: Iterator[Event], quiet: bool) -> tuple[MatmulRate, list[PhaseMeasurement]]:
    from sdpy.benchmark.survey import MatmulRate, MeasurementStarted, PhaseMeasurement

    matmul: MatmulRate | None = None
    measured: list[PhaseMeasurement] = []
    for event in events:
        if isinstance(event, MeasurementStarted):
            _tell(event.what, quiet)
        elif isinstance(event, MatmulRate):
            matmul = event
        elif isinstance(event, PhaseMeasurement):
            measured.append(event)
    assert matmul is not None, "a survey begins with a matrix product"
    return matmul, measured


def _tell(text: str, quiet: bool) -> None:
    if not quiet:
        tell(text)


def _lines(
    target: BenchmarkTarget,
    usual: Setup,
    steps: int,
    matmul: MatmulRate,
    measured: Sequence[PhaseMeasurement],
) -> Iterator[str]:
    setup = matmul.setup
    phases = {one.phase: one for one in measured if one.setup == setup}
    load = sum(one.measurement.load for one in phases.values() if one.phase != "encode")
    name = target.source.variant.name
    yield f"{name}, {target.width}x{target.height} pixels, float32; {setup}"
    yield f"This machine's matrix product: {gigaflops(matmul.rate)} GFLOP/s\n"
    header = ["phase", "first time", "then", "range", "GFLOP/s", "of the product", "peak memory"]
    rows = [_row(one, matmul.rate) for one in phases.values()]
    yield table(header, [["load", seconds(load), *[""] * 5], *rows])

    step_times = {one.setup: _spread(one) for one in measured if one.phase == "unet"}
    if len(step_times) > 1:
        settings = [[str(one), seconds(t.median), low_to_high(t)] for one, t in step_times.items()]
        yield "\n" + table(["settings", TITLES["unet"], "range"], settings)
    yield "\n" + _advice(usual, step_times)
    yield from _shorter_dtypes(step_times)
    begun = sum(phases[phase].measurement.first for phase in ("text", "unet", "decode"))
    whole = load + begun + (steps - 1) * step_times[setup].median
    yield f"An image of {steps} steps takes about {duration(whole)} with {setup}."


def _row(one: PhaseMeasurement, product_rate: float) -> list[str]:
    spread = _spread(one)
    rate = one.flops / spread.median
    peak = one.measurement.peak.bytes
    return [
        TITLES[one.phase],
        seconds(one.measurement.first),
        seconds(spread.median),
        low_to_high(spread),
        gigaflops(rate),
        percent(rate / product_rate),
        "" if peak is None else megabytes(peak),
    ]


def _spread(one: PhaseMeasurement) -> Spread:
    return Spread.of(one.measurement.times)


def _advice(usual: Setup, step_times: Mapping[Setup, Spread]) -> str:
    """Which settings are fastest, and how to ask for them if they are not the usual ones."""
    exact = [setup for setup in step_times if setup.dtype == "fp32"]
    fastest = min(exact, key=lambda setup: step_times[setup].median)
    if fastest == usual:
        return f"Fastest here: {fastest}, which is what runs use by themselves."
    flags = [] if fastest.device == usual.device else [f"--device {fastest.device}"]
    flags += [] if fastest.threads == usual.threads else [f"--threads {fastest.threads}"]
    flags += ["--plain-kernels"] if usual.fast_kernels and not fastest.fast_kernels else []
    gain = ""
    if usual in step_times:
        ratio = step_times[usual].median / step_times[fastest].median
        gain = f", {ratio:.3g} times as fast as {usual}"
    return f"Fastest here: {fastest}{gain}; ask for it with {' and '.join(flags)}."


def _shorter_dtypes(step_times: Mapping[Setup, Spread]) -> Iterator[str]:
    """What shorter dtypes would bring, beside float32 with the same settings."""
    for setup, spread in step_times.items():
        beside = step_times.get(replace(setup, dtype="fp32"))
        if setup.dtype != "fp32" and beside is not None:
            gain = beside.median / spread.median
            yield (
                f"With --dtype {setup.dtype}, a step on {setup.device} is {gain:.3g} times as "
                "fast, in half of the memory; the image is a little different."
            )


def _as_json(
    target: BenchmarkTarget, matmul: MatmulRate, measured: Sequence[PhaseMeasurement]
) -> dict[str, Any]:
    return {
        "model": target.source.variant.name,
        "width": target.width,
        "height": target.height,
        "matrix_product": {**vars(matmul.setup), "flops_per_second": matmul.rate},
        "phases": [
            {
                "phase": one.phase,
                **vars(one.setup),
                "flops": one.flops,
                "load_seconds": one.measurement.load,
                "first_seconds": one.measurement.first,
                "seconds": list(one.measurement.times),
                "flops_per_second": one.flops / _spread(one).median,
                "share_of_matrix_product": one.flops / _spread(one).median / matmul.rate,
                "peak_bytes": one.measurement.peak.bytes,
                "peak_method": one.measurement.peak.method,
            }
            for one in measured
        ],
    }
