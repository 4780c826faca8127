"""What the benchmark prints, and what it writes to its JSON file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import compress
from pathlib import Path
from typing import Any

from scripts.bench.outcomes import COMPILED, PhaseResult, PhaseResults
from scripts.bench.phases import PHASES
from scripts.reports import write_between
from sdpy.benchmark import figures
from sdpy.benchmark.figures import Spread


def summary(phases: PhaseResults, rate: float) -> dict[str, Any]:
    """Everything that was measured and its summary, for the JSON file."""
    return {name: _phase_summary(phase, rate) for name, phase in phases.items()}


def _phase_summary(phase: PhaseResult, rate: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, outcomes in phase.outcomes.items():
        seconds = Spread.of([time for one in outcomes for time in one.times])
        peaks = [one.peak for one in outcomes if one.peak is not None]
        ratio, peak_ratio = (
            phase.ratio(quantity, name, phase.base) if name != phase.base else None
            for quantity in ("seconds", "peak")
        )
        speed = None if phase.flops is None else phase.flops / seconds.median
        found[name] = {
            "processes": [asdict(one) for one in outcomes],
            "seconds": asdict(seconds),
            "peak_bytes": asdict(Spread.of(peaks)) if peaks else None,
            "seconds_ratio": None if ratio is None else asdict(ratio),
            "peak_ratio": None if peak_ratio is None else asdict(peak_ratio),
            "flops_per_second": speed,
            "share_of_matrix_product": None if speed is None else speed / rate,
            "relative_error": phase.errors.get(name),
        }
        if name == COMPILED:
            extra = [one.first - one.seconds for one in outcomes if one.first is not None]
            found[name]["compile_seconds"] = asdict(Spread.of(extra))
    return {"flops": phase.flops, "ratio_to": phase.base, "contestants": found}


def phase_table(found: dict[str, Any], *, with_empty_columns: bool = True) -> str:
    """A Markdown table of the phases of a `summary`, with a row for each contestant."""
    header = ["phase", "", "median", "range", "ratio", "GFLOP/s", "of the product"]
    header += ["peak memory", "ratio", "relative error"]
    rows = []
    for phase, result in found.items():
        for i, (name, one) in enumerate(result["contestants"].items()):
            rows.append([PHASES[phase].title if i == 0 else "", name, *_cells(one)])
    told = [with_empty_columns or any(column) for column in zip(*rows, strict=True)]
    header, *rows = (list(compress(row, told)) for row in (header, *rows))
    return figures.table(header, rows)


def write_tables(path: Path, results: dict[str, Any]) -> None:
    """Write the tables of which phases were measured into a Markdown file, each where its name is.

    Raises:
        ValueError: the file has no place for one of them.
    """
    found, options, ran_on = results["phases"], results["options"], results["machine"]
    tables = {phase: PHASES[phase].table_in(options["dtype"]) for phase in found}
    about = f"{options['size']}, {options['width']}x{options['height']}, {options['dtype']}; "
    about += f"{ran_on['processor']}, {results['threads']} threads, torch {ran_on['torch']}, "
    about += f"diffusers {ran_on['diffusers']}"
    for name in filter(None, dict.fromkeys(tables.values())):
        rows = {phase: result for phase, result in found.items() if tables[phase] == name}
        made = phase_table(rows, with_empty_columns=False)
        write_between(path, name, f"{made}\n\n{about}.")


def _cells(one: dict[str, Any]) -> list[str]:
    def cell(value: Any, show: Callable[[Any], str]) -> str:
        return "" if value is None else show(value)

    def ratio(spread: dict[str, Any]) -> str:
        return figures.times(Spread(**spread))

    return [
        figures.seconds(one["seconds"]["median"]),
        figures.low_to_high(Spread(**one["seconds"])),
        cell(one["seconds_ratio"], ratio),
        cell(one["flops_per_second"], figures.gigaflops),
        cell(one["share_of_matrix_product"], figures.percent),
        cell(one["peak_bytes"], lambda spread: figures.megabytes(spread["median"])),
        cell(one["peak_ratio"], ratio),
        cell(one["relative_error"], lambda error: f"{error:.1e}"),
    ]


def report(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that are printed."""
    ran_on, options = results["machine"], results["options"]
    product = Spread(**results["matrix_product"])
    memory = ran_on["memory"]
    yield (
        f"{ran_on['processor']}, {ran_on['cores']} cores"
        + ("" if memory is None else f", {memory / 1e9:.0f} GB")
        + f"; {results['threads']} threads, {options['device']}, {options['dtype']}; torch "
        f"{ran_on['torch']}, diffusers {ran_on['diffusers']}"
    )
    yield (
        f"{options['size']}, {options['width']}x{options['height']} pixels, {options['steps']} "
        f"steps; matrix product {figures.gigaflops(product.median)} GFLOP/s "
        f"({figures.gigaflops(product.low)}-{figures.gigaflops(product.high)})"
    )
    if results["formats"]:
        formats = ", ".join(f"{model} {name}" for model, name in results["formats"].items())
        yield f"diffusers' memory formats: {formats}"
    yield "\n" + phase_table(results["phases"])
    yield ""
    for phase, result in results["phases"].items():
        extra = result["contestants"].get(COMPILED)
        if extra is not None:
            seconds = figures.duration(extra["compile_seconds"]["median"])
            yield f"{PHASES[phase].title}: compiling took {seconds}"
    if results["help_imports_torch"] is not None:
        yield f"sdpy --help imports {'' if results['help_imports_torch'] else 'no '}torch"
    yield from (verdict["line"] for verdict in results["goals"])
    if options["size"] != "sd15":
        yield "(the goals are for sd15; at other sizes they do not apply)"
