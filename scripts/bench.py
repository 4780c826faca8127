"""Measure sdpy beside diffusers: time, memory and agreement, phase by phase.

    python scripts/bench.py --json runs/bench.json
    python scripts/bench.py --steps 4 --repeats 1 --evaluations 1
    python scripts/bench.py --size tiny --repeats 1

Both paint with the same random weights, of Stable Diffusion 1.5's sizes unless ``--size`` says
otherwise. They take turns (A B A B), each phase in a process of its own. Phases:

    help      ``sdpy --help``, beside a program with nothing but Typer and Rich
    load      start of the process to the UNet's first step, weights in the page cache
    text      two prompts through the text encoder
    unet      one step with guidance: a batch of 2, guidance and scheduler included
    decode    latents to a picture
    encode    a picture to latents
    memory    peak of a whole picture of 2 steps, diffusers in its default memory format
    generate  start of the process to the file; sdpy a second time with ``--memory low``

diffusers runs eagerly, in the memory format that is faster for its UNet and for its autoencoder,
which is found out first. ``--compile`` measures it with ``torch.compile`` and frozen weights too;
on a GPU sdpy is compiled as well then.

The table gives medians and ranges over all processes, and ratios to diffusers pair by pair.
GFLOP/s are effective ones: the arithmetic of the plain models over the time, also as a share of
the rate at which this machine multiplies matrices, measured after every phase. The memory of a
phase is the most that was resident since loading began; that of load, memory and generate is the
whole process's. Pages of mapped files count.

This process imports no torch: a child's peak, as the system tells it, is never less than what its
parent held when it started the child.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import bench_workers as workers
from bench_workers import DTYPES, FORMATS, Job
from sdpy.benchmark import figures
from sdpy.benchmark.figures import TITLES, Spread

SDPY, DIFFUSERS, COMPILED = "sdpy", "diffusers", "diffusers, compiled"
LOW, PLAIN = "sdpy --memory low", "typer and rich alone"

PHASES = {
    "help": "--help",
    "load": "load",
    **TITLES,
    "memory": "peak of generate",
    "generate": "generate",
}
"""The phases in their order, and what the table calls them."""

MEMORY_STEPS = 2
"""The peak of a whole picture does not depend on the number of its steps."""

SIDES = {"sd15": 512, "tiny": 64}

TYPER_ALONE = """
import typer
app = typer.Typer(rich_markup_mode="rich")
@app.command()
def paint(prompt: str) -> None:
    "Paint a picture."
app(prog_name="alone")
"""

HELP_IMPORTS = """
import sys
from sdpy.cli.app import run
run(["--help"])
sys.exit("torch" in sys.modules)
"""


class BenchError(Exception):
    """Something that keeps the benchmark from being run; one line."""


@dataclass(frozen=True)
class Outcome:
    """What one process of a phase gave.

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
        """The median."""
        return Spread.of(self.times).median


Run = Callable[[Path | None], Outcome]
"""Runs a process, which writes what is compared to a path if there is one."""


@dataclass(frozen=True)
class Phase:
    """All outcomes of a phase, by contestant, in turn, and the relative errors of their outputs."""

    outcomes: dict[str, list[Outcome]]
    errors: dict[str, float] = field(default_factory=dict)
    flops: int | None = None

    def ratio(self, quantity: str, ours: str, theirs: str) -> Spread | None:
        """Of two contestants' "seconds" or "peak", pair by pair; None if one was not measured."""
        pairs = [
            [getattr(one, quantity) for one in self.outcomes.get(name, ())]
            for name in (ours, theirs)
        ]
        if not all(pairs) or any(None in values for values in pairs):
            return None
        return figures.ratio(*pairs)


Phases = dict[str, Phase]


# --- goals ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """What is to be reached: a value that is at most ``limit``.

    Attributes:
        text: what the value is.
        limit: in the value's unit.
        value: of the measurements; None where they were not made.
        show: writes a value for people.
    """

    text: str
    limit: float
    value: Callable[[Phases], Spread | None]
    show: Callable[[Spread], str] = figures.times

    def verdict(self, phases: Phases) -> dict[str, Any]:
        """Whether it is met, None if that was not measured."""
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
) -> Callable[[Phases], Spread | None]:
    """The value of a goal: a ratio in a phase."""

    def value(phases: Phases) -> Spread | None:
        return phases[phase].ratio(quantity, ours, theirs) if phase in phases else None

    return value


def low_peak(phases: Phases) -> Spread | None:
    """Bytes of a whole picture with ``--memory low``."""
    outcomes = phases["generate"].outcomes.get(LOW, []) if "generate" in phases else []
    peaks = [one.peak for one in outcomes if one.peak is not None]
    return Spread.of(peaks) if peaks else None


def unet_error(phases: Phases) -> Spread | None:
    """Relative error of the UNet's prediction."""
    error = phases["unet"].errors.get(SDPY) if "unet" in phases else None
    return None if error is None else Spread.of([error])


GOALS = (
    Goal("UNet step, of diffusers' time", 0.60, ratio_of("seconds", "unet")),
    Goal(
        "UNet step, of compiled diffusers' time", 1.0, ratio_of("seconds", "unet", SDPY, COMPILED)
    ),
    Goal("VAE decode, of diffusers' time", 0.40, ratio_of("seconds", "decode")),
    Goal("generate, of diffusers' time", 0.60, ratio_of("seconds", "generate")),
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
"""For 512x512 pixels, 30 steps, float32, and two cores."""


# --- processes ------------------------------------------------------------------------------------


def run_process(command: Sequence[str], environment: dict[str, str]) -> tuple[float, int | None]:
    """Seconds that a process took, and its peak resident memory in bytes if the system tells it.

    Raises:
        BenchError: it failed.
    """
    with tempfile.TemporaryFile() as said:
        started = workers.now()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
        try:
            if hasattr(os, "wait4"):
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            else:
                process.wait()
                peak = None
        except BaseException:
            process.kill()
            raise
        seconds = workers.now() - started
        if process.returncode != 0:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise BenchError(f"{' '.join(command)} failed ({process.returncode}): {lines[-1]}")
    return seconds, peak


def read_through(folder: Path) -> None:
    """Bring the files of a folder into the page cache."""
    buffer = bytearray(2**22)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


@dataclass
class Bench:
    """The contestants of each phase.

    Attributes:
        options: of the command line.
        folder: the weights.
        scratch: for jobs and results.
        formats: memory formats of diffusers' UNet and autoencoder.
    """

    options: argparse.Namespace
    folder: Path
    scratch: Path
    formats: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Of all processes."""
        changes = {"COLUMNS": "200"}
        if self.options.threads is not None:
            changes["OMP_NUM_THREADS"] = str(self.options.threads)
        return os.environ | changes

    def job(self, task: str, **changes: Any) -> Job:
        """A job with the options of the command line."""
        options = self.options
        job = Job(
            task=task,
            size=options.size,
            folder=str(self.folder),
            sdpy_model=str(self.folder / "ot") if options.ot else None,
            width=options.width,
            height=options.height,
            steps=options.steps,
            evaluations=options.evaluations,
            dtype=options.dtype,
            device=options.device,
            fast_kernels=not options.plain_kernels,
            compiled=options.compile and options.device != "cpu",
            formats=self.formats,
            result=str(self.scratch / "result.json"),
        )
        return replace(job, **changes)

    def work(self, job: Job) -> tuple[dict[str, Any], int | None]:
        """Have a worker do a job: its result, and the peak memory of its process."""
        path = self.scratch / "job.json"
        replace(job, started=workers.now()).write(path)
        command = [sys.executable, workers.__file__, str(path)]
        _, peak = run_process(command, self.environment)
        return json.loads(Path(job.result).read_text(encoding="utf-8")), peak

    def contestants(self, phase: str) -> dict[str, Run]:
        """Who takes part in a phase."""
        if phase == "help":
            return {
                SDPY: self._help("-m", "sdpy"),
                PLAIN: self._help("-c", TYPER_ALONE),
            }
        if phase == "load":
            return {SDPY: self._loading("sdpy"), DIFFUSERS: self._loading("diffusers")}
        if phase in ("memory", "generate"):
            return self._painters(phase)
        found = {SDPY: self._phase("sdpy", phase), DIFFUSERS: self._phase("diffusers", phase)}
        if self.options.compile and phase != "text":
            found[COMPILED] = self._phase("compiled", phase)
        return found

    def _painters(self, phase: str) -> dict[str, Run]:
        if phase == "memory":
            steps = min(MEMORY_STEPS, self.options.steps)
            return {SDPY: self._sdpy(steps), DIFFUSERS: self._diffusers(steps, {})}
        steps = self.options.steps
        return {
            SDPY: self._sdpy(steps),
            DIFFUSERS: self._diffusers(steps, self.formats),
            # Weights that come and go are not compiled.
            LOW: self._sdpy(steps, options=["--memory", "low"], compiled=False),
        }

    def _command(self, *arguments: str) -> Run:
        def run(output: Path | None) -> Outcome:
            seconds, peak = run_process([sys.executable, *arguments], self.environment)
            return Outcome([seconds], peak)

        return run

    def _help(self, *arguments: str) -> Run:
        run = self._command(*arguments, "--help")
        # Smaller than this process, so that its peak cannot be told.
        return lambda output: replace(run(output), peak=None)

    def _loading(self, program: str) -> Run:
        def run(output: Path | None) -> Outcome:
            read_through(self.folder)
            # Converting to another memory format would take it longer.
            result, peak = self.work(self.job(f"{program} load", formats={}))
            return Outcome(result["times"], peak)

        return run

    def _phase(self, program: str, phase: str) -> Run:
        def run(output: Path | None) -> Outcome:
            path = None if output is None else f"{output}.npy"
            result, _ = self.work(self.job(f"{program} phase", phase=phase, output=path))
            names = ("times", "peak", "load", "first", "rate")
            return Outcome(**{name: result[name] for name in names})

        return run

    def _sdpy(self, steps: int, **changes: Any) -> Run:
        def run(output: Path | None) -> Outcome:
            path = self.scratch / "unseen.png" if output is None else Path(f"{output}.png")
            job = self.job("", steps=steps, **changes)
            read_through(self.folder)
            return self._command("-m", "sdpy", *workers.sdpy_arguments(job, str(path)))(output)

        return run

    def _diffusers(self, steps: int, formats: dict[str, str]) -> Run:
        def run(output: Path | None) -> Outcome:
            path = self.scratch / "unseen.png" if output is None else Path(f"{output}.png")
            job_file = self.scratch / "generate.json"
            job = self.job("diffusers generate", steps=steps, formats=formats, output=str(path))
            job.write(job_file)
            read_through(self.folder)
            return self._command(workers.__file__, str(job_file))(output)

        return run


# --- the run --------------------------------------------------------------------------------------


def run_phase(
    phase: str, contestants: dict[str, Run], repeats: int, scratch: Path, flops: int | None
) -> Phase:
    """Let the contestants take turns; the outputs of the first turn are compared."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contestants}
    outputs = {name: scratch / f"{phase}-{i}" for i, name in enumerate(contestants)}
    for turn in range(1, repeats + 1):
        for name, run in contestants.items():
            outcome = run(outputs[name] if turn == 1 else None)
            outcomes[name].append(outcome)
            peak = "" if outcome.peak is None else f", {figures.megabytes(outcome.peak)}"
            tell(f"{phase} {turn}/{repeats}, {name}: {figures.seconds(outcome.seconds)}{peak}")
    theirs = read_output(outputs[DIFFUSERS]) if DIFFUSERS in outputs else None
    errors = {}
    for name, output in outputs.items():
        ours = read_output(output)
        if name != DIFFUSERS and ours is not None and theirs is not None:
            errors[name] = relative_error(ours, theirs)
    return Phase(outcomes, errors, flops)


def read_output(path: Path) -> np.ndarray | None:
    """What a contestant has written: an array, or a picture of 0 to 255; None if nothing."""
    if os.path.exists(f"{path}.npy"):
        return np.load(f"{path}.npy").astype(np.float64)
    if os.path.exists(f"{path}.png"):
        with Image.open(f"{path}.png") as image:
            return np.asarray(image, dtype=np.float64)
    return None


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """``|ours - theirs| / |theirs|``, infinite where the shapes differ or a number is none."""
    if ours.shape != theirs.shape:
        return float("inf")
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    return float(error) if np.isfinite(error) else float("inf")


def faster_formats(seconds: dict[str, dict[str, float]]) -> dict[str, str]:
    """The better memory format of each model."""
    return {model: min(times, key=lambda name: times[name]) for model, times in seconds.items()}


def product_rate(phases: Iterable[Phase]) -> Spread | None:
    """The matrix product's rate over all processes that measured it."""
    outcomes = [one for phase in phases for many in phase.outcomes.values() for one in many]
    rates = [one.rate for one in outcomes if one.rate is not None]
    return Spread.of(rates) if rates else None


def machine() -> dict[str, Any]:
    """What everything ran on."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = re.search(r"model name\s*: (.*)", text)
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # no Linux
        model, pages = None, None
    return {
        "processor": platform.processor() if model is None else model[1],
        "cores": os.cpu_count(),
        "memory": pages,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


# --- the report -----------------------------------------------------------------------------------


def summary(phases: Phases, rate: float) -> dict[str, Any]:
    """Everything that was measured, and what it comes to, for the JSON file."""
    return {name: _phase_summary(phase, rate) for name, phase in phases.items()}


def _phase_summary(phase: Phase, rate: float) -> dict[str, Any]:
    base = PLAIN if PLAIN in phase.outcomes else DIFFUSERS
    found: dict[str, Any] = {}
    for name, outcomes in phase.outcomes.items():
        seconds = Spread.of([time for one in outcomes for time in one.times])
        peaks = [one.peak for one in outcomes if one.peak is not None]
        ratio, peak_ratio = (
            phase.ratio(quantity, name, base) if name != base else None
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
    return {"flops": phase.flops, "ratio_to": base, "contestants": found}


def phase_table(found: dict[str, Any]) -> str:
    """The phases of a `summary`, a row for each contestant."""
    header = ["phase", "", "median", "range", "ratio", "GFLOP/s", "of the product"]
    header += ["peak memory", "ratio", "relative error"]
    rows = []
    for phase, result in found.items():
        for i, (name, one) in enumerate(result["contestants"].items()):
            rows.append([PHASES[phase] if i == 0 else "", name, *_cells(one)])
    return figures.table(header, rows)


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
    """What is printed, line by line."""
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
            yield f"{PHASES[phase]}: compiling took {seconds}"
    if results["help_imports_torch"] is not None:
        yield f"sdpy --help imports {'' if results['help_imports_torch'] else 'no '}torch"
    yield from (verdict["line"] for verdict in results["goals"])
    if options["size"] != "sd15":
        yield "(the goals are for sd15; at other sizes they say nothing)"


def tell(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


# --- the command line -----------------------------------------------------------------------------


def repeats_of(text: str) -> dict[str, int]:
    """Of ``3`` or ``3,load=5,generate=1``: processes of each contestant, by phase."""
    found: dict[str, int] = {}
    for item in text.split(","):
        name, equals, number = item.rpartition("=")
        if not number.isdigit() or int(number) < 1 or (equals and name not in PHASES):
            raise argparse.ArgumentTypeError(
                f"'{item}' is neither a number from 1 on nor PHASE=NUMBER with a phase of "
                f"{', '.join(PHASES)}"
            )
        found |= {name: int(number)} if equals else dict.fromkeys(PHASES, int(number))
    return {**dict.fromkeys(PHASES, 3), **found}


def phases_of(text: str) -> list[str]:
    """Of ``unet,decode``."""
    names = text.split(",")
    unknown = [name for name in names if name not in PHASES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no phase '{unknown[0]}': use {', '.join(PHASES)}")
    return [name for name in PHASES if name in names]


def positive(text: str) -> int:
    """A number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 on")
    return int(text)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=list(SIDES), default="sd15", help="sizes of the models (sd15)")
    add("--width", type=positive, help="in pixels (512, tiny 64)")
    add("--height", type=positive, help="in pixels (512, tiny 64)")
    add("--steps", type=positive, default=30, help="of generate (30)")
    add("--threads", type=positive, help="of all processes (as many as torch takes)")
    add("--dtype", choices=DTYPES, default="float32", help="of all models (float32)")
    add("--device", default="cpu", help="of all models (cpu)")
    add("--phases", type=phases_of, default=list(PHASES), help=f"{','.join(PHASES)} (all)")
    add(
        "--repeats",
        type=repeats_of,
        default=repeats_of("3"),
        metavar="N[,PHASE=N,...]",
        help="processes of each contestant, in turn (3)",
    )
    add("--evaluations", type=positive, default=3, help="timed ones in each process (3)")
    add("--format", choices=("auto", *FORMATS), default="auto", help="diffusers' memory format")
    add(
        "--compile",
        action="store_true",
        help="measure diffusers with torch.compile, too, and sdpy if on a GPU",
    )
    add("--plain-kernels", action="store_true", help="measure sdpy without its fast kernels")
    add("--ot", action="store_true", help="let sdpy read .ot files instead of .safetensors")
    add("--weights", type=Path, metavar="FOLDER", help="of the weights (runs/bench/SIZE)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    options = parser.parse_args(words)
    options.width = SIDES[options.size] if options.width is None else options.width
    options.height = SIDES[options.size] if options.height is None else options.height
    if options.weights is None:
        options.weights = Path("runs/bench") / options.size
    return options


def check(options: argparse.Namespace) -> None:
    """Find what would only be noticed after minutes.

    Raises:
        BenchError: an option cannot work here.
    """
    if options.compile:
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            raise BenchError(
                f"--compile needs a C++ compiler, and there is no {compiler}; install it, name "
                "another in the variable CXX, or leave --compile out"
            )
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise BenchError(f"--json {options.json}: there is no such folder")


def run(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure everything that the options ask for."""
    bench = Bench(options, options.weights.absolute(), scratch)
    options.weights.mkdir(parents=True, exist_ok=True)
    tell(f"weights: {options.weights}")
    prepared, _ = bench.work(bench.job("prepare"))
    flops = prepared["flops"]
    flops["generate"] = flops["text"] + options.steps * flops["unet"] + flops["decode"]
    needed = {"unet", "decode", "encode", "generate"} & set(options.phases)
    if options.format != "auto":
        bench.formats = dict.fromkeys(("unet", "vae"), options.format)
    elif needed:
        tell("diffusers: contiguous or channels_last?")
        seconds = bench.work(bench.job("diffusers formats"))[0]["seconds"]
        bench.formats = faster_formats(seconds)

    phases: Phases = {}
    for name in options.phases:
        contestants, repeats = bench.contestants(name), options.repeats[name]
        phases[name] = run_phase(name, contestants, repeats, scratch, flops.get(name))
    product = product_rate(phases.values())
    if product is None:
        product = Spread.of([bench.work(bench.job("matrix product"))[0]["rate"]])
    imports_torch = None
    if "help" in phases:
        command = [sys.executable, "-c", HELP_IMPORTS]
        found = subprocess.run(command, env=bench.environment, capture_output=True, check=False)
        imports_torch = found.returncode != 0
    return {
        "machine": machine(),
        "options": {name: _plain(value) for name, value in vars(options).items()},
        "threads": prepared["threads"],
        "formats": bench.formats,
        "matrix_product": asdict(product),
        "phases": summary(phases, product.median),
        "help_imports_torch": imports_torch,
        "goals": [goal.verdict(phases) for goal in GOALS],
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark and print the table; 0 if all went well."""
    options = arguments(words)
    try:
        check(options)
        with tempfile.TemporaryDirectory(prefix="sdpy-bench-") as scratch:
            results = run(options, Path(scratch))
    except (BenchError, OSError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print("\n".join(report(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
