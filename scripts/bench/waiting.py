"""Measure what threads that wait cost, on an idle machine and beside other programs.

    python -m scripts.bench.waiting --write docs/speed-and-memory.md
    python -m scripts.bench.waiting --work unet decode --model runs/bench/sd15

``sdpy generate`` of an image of the demo model, as a whole process, or phases of a model of Stable
Diffusion 1.5's sizes, are timed with OpenMP's threads waiting in several ways: spinning as long as
they do by default, passively as `sdpy` asks for, and spinning a thousand times. This is done beside
nothing, beside Python programs that count, and beside another program that multiplies matrices with
as many threads as there are cores. All ways take turns in each round; the table has medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.bench.contest import ROOT, BenchError, Contest, run_process
from scripts.bench.run import arguments as bench_arguments
from scripts.bench.run import machine, positive
from scripts.reports import tell, write_between
from sdpy.benchmark import figures

WAYS: Mapping[str, Mapping[str, str]] = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "1,000 turns": {"GOMP_SPINCOUNT": "1000"},
}
"""How threads wait: environment variables. The first is what GNU's OpenMP does by default."""

COUNTING = "while True: pass"
MULTIPLYING = """
import torch
a = torch.ones(3000, 3000)
while True:
    a @ a
"""

BESIDE: Mapping[str, Sequence[str]] = {
    "nothing": (),
    "one program that counts": (COUNTING,),
    "two": (COUNTING,) * 2,
    "four": (COUNTING,) * 4,
    "matrix products": (MULTIPLYING,),
}
"""What runs at the same time: programs in Python."""

WORK = ("demo", "unet", "decode")
STEPS = 8


@contextmanager
def running(programs: Sequence[str]) -> Iterator[None]:
    """Let programs run during the block."""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    try:
        time.sleep(2 if processes else 0)  # so that they are at work
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds_of(work: str, model: Path, changes: Mapping[str, str], scratch: Path) -> float:
    """Do some work in a process that waits in some way; returns its seconds, or a step's."""
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), **changes}
    if work == "demo":
        prompt, output = "lighthouse at dark", str(scratch / "image.png")
        options = ["--model", "demo", "--steps", str(STEPS), "-o", output, "--quiet"]
        return run_process(
            [sys.executable, "-m", "sdpy", "generate", prompt, *options], environment
        )[0]
    contest = Contest(bench_arguments(["--evaluations", "1"]), model.absolute(), scratch)
    contest.changes = changes
    result, _ = contest.work(contest.job("sdpy phase", phase=work))
    return float(statistics.median(result["times"]))


def measure(
    works: Sequence[str], beside: Sequence[str], rounds: int, model: Path
) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Seconds by work and what runs beside it, and by the way in which threads wait."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="sdpy-bench-") as scratch:
        for work in works:
            for other in beside:
                times: dict[str, list[float]] = {way: [] for way in WAYS}
                with running(BESIDE[other]):
                    for _ in range(rounds):
                        for way, changes in WAYS.items():
                            times[way].append(seconds_of(work, model, changes, Path(scratch)))
                found[work, other] = times
                told = ", ".join(f"{way} {figures.seconds(min(t))}" for way, t in times.items())
                tell(f"{work} beside {other}: {told}")
    return found


def table(found: Mapping[tuple[str, str], Mapping[str, Sequence[float]]], rounds: int) -> str:
    """The Markdown table."""
    names = {
        "demo": f"demo image, {STEPS} steps, whole process",
        "unet": "UNet step, SD 1.5's size",
        "decode": "decoding, SD 1.5's size",
    }
    rows = [
        [names[work], other, *(figures.seconds(statistics.median(times[way])) for way in WAYS)]
        for (work, other), times in found.items()
    ]
    head = figures.table(["", "beside", *WAYS], rows)
    about = machine()
    return f"{head}\n\nMedians of {rounds} rounds. {about['processor']}, {about['cores']} cores."


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and print the table; 0 if all went well."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.waiting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--work", choices=WORK, nargs="+", default=["demo"], help="what to time (demo)")
    add("--beside", choices=BESIDE, nargs="+", default=list(BESIDE), help="(all)")
    add("--rounds", type=positive, default=3, help="(3)")
    add("--model", type=Path, default=Path("runs/bench/sd15"), help="for unet and decode")
    add("--write", type=Path, metavar="FILE", help="Markdown file to put the table into")
    options = parser.parse_args(words)
    try:
        found = measure(options.work, options.beside, options.rounds, options.model)
    except (BenchError, OSError) as error:
        print(f"scripts.bench.waiting: {error}", file=sys.stderr)
        return 1
    text = table(found, options.rounds)
    print(text)
    if options.write is not None:
        write_between(options.write, "waiting", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
