"""Measure sdpy beside diffusers: time, memory and agreement, phase by phase.

    python -m scripts.bench --json runs/bench.json
    python -m scripts.bench --steps 4 --repeats 1 --evaluations 1
    python -m scripts.bench --size tiny --repeats 1
    python -m scripts.bench --device cuda --dtype float16 --compile --phases loaded,batch,compiling
    python -m scripts.bench --size sdxl --phases unet,decode --repeats 1 --evaluations 1

Both use the same random weights, of Stable Diffusion 1.5's sizes unless ``--size`` says
otherwise. They take turns (A B A B), each phase in a process of its own. Phases:

    help      ``sdpy --help``, beside a program with nothing but Typer and Rich
    load      start of the process to the UNet's first step, weights in the page cache
    text      two prompts through all text encoders
    unet      one step, guidance and scheduler included: a batch of 2 (``--guidance-scale 1``: 1)
    decode    latents to an image
    encode    an image to latents
    memory    peak of a whole image of 2 steps, diffusers in its default memory format
    generate  start of the process to the file; sdpy a second time with ``--memory low``
    loaded    a whole image with the models loaded; sdpy also with ``--cuda-graphs``, and with
              ``--compile`` both compiled; ``batch``: 8 images in 10 steps; ``compiling``: what
              the first image takes longer, in a first and a second process
    one-step  as generate, but one step without guidance; ``one-step-cheapest``: in bfloat16, with a
              tiny decoder (TAESD)
    idle      an image of the demo model in 8 steps, start of the process to the file: sdpy beside
              itself with other ways for threads to wait; ``busy-counting``, ``busy``: while other
              programs work

diffusers runs eagerly, in the memory format that is faster for its UNet and for its autoencoder;
this is measured first, unless ``--format`` names one. ``--compile`` measures it with
``torch.compile`` and frozen weights as well; on a GPU sdpy is compiled, too.

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
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scripts.bench.beside import PROGRAMS, running
from scripts.bench.contest import BenchError, Contest, run_phase
from scripts.bench.goals import goals_for
from scripts.bench.jobs import DTYPES, FORMATS
from scripts.bench.outcomes import PhaseResults, product_rate
from scripts.bench.phases import PHASES
from scripts.bench.report import report, summary, write_tables
from scripts.reports import tell
from sdpy.benchmark.figures import Spread

SIDES = {"sd15": 512, "sdxl": 1024, "tiny": 64, "tiny-xl": 64}
"""Pixels a side of an image, by the models' sizes."""

HELP_IMPORTS = """
import sys
from sdpy.cli.app import run
run(["--help"])
sys.exit("torch" in sys.modules)
"""


def repeats_of(text: str) -> dict[str, int]:
    """Read ``3`` or ``3,load=5,generate=1``: numbers of processes per contestant, by phase."""
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
    """Read a list of phases such as ``unet,decode``; returns them in their usual order."""
    names = text.split(",")
    unknown = [name for name in names if name not in PHASES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no phase '{unknown[0]}': use {', '.join(PHASES)}")
    return [name for name in PHASES if name in names]


def positive(text: str) -> int:
    """Read a number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 on")
    return int(text)


def guidance_scale(text: str) -> float:
    """Read a guidance scale from 1 on; below, diffusers' pipeline does without guidance."""
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 1 <= scale < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 on")
    return scale


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--size", choices=list(SIDES), default="sd15", help="sizes of the models (sd15)")
    usual = ", ".join(f"{name} {side}" for name, side in SIDES.items())
    add("--width", type=positive, help=f"in pixels ({usual})")
    add("--height", type=positive, help=f"in pixels ({usual})")
    add("--steps", type=positive, default=30, help="of generate (30)")
    add("--guidance-scale", type=guidance_scale, default=7.5, help="1: a batch of one (7.5)")
    add("--threads", type=positive, help="of all processes (as many as torch takes)")
    add("--dtype", choices=DTYPES, default="float32", help="of all models (float32)")
    add("--device", default="cpu", help="of all models (cpu)")
    add(
        "--phases",
        type=phases_of,
        help=f"{','.join(PHASES)} (all; on a CPU without those for GPUs)",
    )
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
    add(
        "--beside",
        choices=PROGRAMS,
        default="nothing",
        help="let other programs work meanwhile: some that count, or matrix products (nothing)",
    )
    add("--weights", type=Path, metavar="FOLDER", help="of the weights (runs/bench/SIZE)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--write", type=Path, metavar="FILE", help="put tables of phases into a Markdown file")
    options = parser.parse_args(words)
    options.width = SIDES[options.size] if options.width is None else options.width
    if options.phases is None:
        on_gpu = options.device != "cpu"
        options.phases = [name for name, one in PHASES.items() if on_gpu or not one.for_gpus]
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
    if options.write is not None:
        page = options.write.read_text(encoding="utf-8")
        tables = (PHASES[name].table_in(options.dtype) for name in options.phases)
        for table in filter(None, tables):
            if f"<!-- begin: {table} -->" not in page:
                raise BenchError(
                    f"--write {options.write}: there is no place for the table {table}"
                )


def machine() -> dict[str, Any]:
    """Describe the machine and the libraries that everything runs on."""
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


def run(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure everything that the options ask for."""
    contest = Contest(options, options.weights.absolute(), scratch)
    options.weights.mkdir(parents=True, exist_ok=True)
    tell(f"weights: {options.weights}")
    prepared, _ = contest.work(contest.job("prepare"))
    flops = prepared["flops"]
    flops["generate"] = flops["text"] + options.steps * flops["unet"] + flops["decode"]
    if any(PHASES[name].needs_formats for name in options.phases):
        contest.formats = contest.find_formats()

    phases: PhaseResults = {}
    for name in options.phases:
        with running(PROGRAMS[options.beside]):
            phases[name] = run_phase(
                name,
                PHASES[name].contestants(contest),
                options.repeats[name],
                scratch,
                base=PHASES[name].base,
                flops=flops.get(name),
            )
    product = product_rate(phases.values())
    if product is None:
        product = Spread.of([contest.work(contest.job("matrix product"))[0]["rate"]])
    imports_torch = None
    if "help" in phases:
        command = [sys.executable, "-c", HELP_IMPORTS]
        found = subprocess.run(command, env=contest.environment, capture_output=True, check=False)
        imports_torch = found.returncode != 0
    return {
        "machine": machine(),
        "options": {name: _plain(value) for name, value in vars(options).items()},
        "threads": prepared["threads"],
        "formats": contest.formats,
        "matrix_product": asdict(product),
        "phases": summary(phases, product.median),
        "help_imports_torch": imports_torch,
        "goals": [goal.verdict(phases) for goal in goals_for(options.device)],
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
        print(f"scripts.bench: {error}", file=sys.stderr)
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print("\n".join(report(results)))
    if options.write is not None:
        write_tables(options.write, results)
    return 0
