"""How contestants take turns, each turn in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from scripts.bench.jobs import Job, now
from scripts.bench.outcomes import Outcome, PhaseResult
from scripts.reports import tell
from sdpy.benchmark import figures

ROOT = Path(__file__).parents[2]
"""The folder of the repository, from which modules of `scripts` are run."""

WORKER = ("-m", "scripts.bench.workers")
"""Arguments of Python that start a worker; the job's file follows."""

Array = npt.NDArray[np.float64]


class BenchError(Exception):
    """The benchmark cannot be run; the message is one line."""


Run = Callable[[Path | None], Outcome]
"""Runs a process, which writes its output, to be compared, to a path if there is one."""


def run_process(command: Sequence[str], environment: dict[str, str]) -> tuple[float, int | None]:
    """Run a process; returns its seconds and its peak resident bytes (None if not reported).

    Raises:
        BenchError: it failed.
    """
    with tempfile.TemporaryFile() as said:
        started = now()
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
        seconds = now() - started
        if process.returncode != 0:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or [
                "it printed nothing"
            ]
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
class Contest:
    """What all contestants are told, and how their processes are run.

    Attributes:
        options: the options of the command line.
        folder: folder of the weights.
        scratch: folder for jobs and results.
        formats: memory formats of diffusers' UNet and autoencoder.
    """

    options: argparse.Namespace
    folder: Path
    scratch: Path
    formats: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of all processes."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        changes = {"COLUMNS": "200", "PYTHONPATH": os.pathsep.join(paths)}
        if self.options.threads is not None:
            changes["OMP_NUM_THREADS"] = str(self.options.threads)
        # Installed packages are compiled, and `prepare` has compiled ours.
        inherited = {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
        return {**inherited, **changes}

    def job(self, task: str, **changes: Any) -> Job:
        """Make a job with the options of the command line."""
        options = self.options
        job = Job(
            task=task,
            size=options.size,
            folder=str(self.folder),
            sdpy_model=str(self.folder / "ot") if options.ot else None,
            width=options.width,
            height=options.height,
            steps=options.steps,
            guidance_scale=options.guidance_scale,
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
        """Have a worker do a job; returns its result and the peak memory of its process."""
        path = self.scratch / "job.json"
        replace(job, started=now()).write(path)
        command = [sys.executable, *WORKER, str(path)]
        _, peak = run_process(command, self.environment)
        return json.loads(Path(job.result).read_text(encoding="utf-8")), peak

    def find_formats(self) -> dict[str, str]:
        """The memory formats of diffusers' models: those that are faster, unless one is named."""
        if self.options.format != "auto":
            return dict.fromkeys(("unet", "vae"), self.options.format)
        tell("diffusers: contiguous or channels_last?")
        seconds = self.work(self.job("diffusers formats"))[0]["seconds"]
        return faster_formats(seconds)

    def command(self, *arguments: str) -> Outcome:
        """Run Python with some arguments, as a process that is measured as a whole."""
        seconds, peak = run_process([sys.executable, *arguments], self.environment)
        return Outcome([seconds], peak)


def faster_formats(seconds: dict[str, dict[str, float]]) -> dict[str, str]:
    """Choose the faster memory format of each model from the seconds that each took."""
    return {model: min(times, key=lambda name: times[name]) for model, times in seconds.items()}


def run_phase(
    phase: str,
    contestants: dict[str, Run],
    repeats: int,
    scratch: Path,
    *,
    base: str,
    flops: int | None = None,
) -> PhaseResult:
    """Let the contestants take turns; the outputs of the first turn are compared with the base's.

    Args:
        phase: its name.
        contestants: by their names, and how each is run.
        repeats: turns.
        scratch: folder for outputs.
        base: the contestant that the others are compared with.
        flops: the arithmetic of the phase; None where it is not counted.
    """
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contestants}
    outputs = {name: scratch / f"{phase}-{i}" for i, name in enumerate(contestants)}
    for turn in range(1, repeats + 1):
        for name, run in contestants.items():
            outcome = run(outputs[name] if turn == 1 else None)
            outcomes[name].append(outcome)
            peak = "" if outcome.peak is None else f", {figures.megabytes(outcome.peak)}"
            tell(f"{phase} {turn}/{repeats}, {name}: {figures.seconds(outcome.seconds)}{peak}")
    theirs = read_output(outputs[base])
    errors = {}
    for name, output in outputs.items():
        ours = read_output(output)
        if name != base and ours is not None and theirs is not None:
            errors[name] = relative_error(ours, theirs)
    return PhaseResult(outcomes, errors, flops, base)


def read_output(path: Path) -> Array | None:
    """What a contestant has written: an array, or an image of 0 to 255; None if there is none."""
    if os.path.exists(f"{path}.npy"):
        return np.load(f"{path}.npy").astype(np.float64)
    if os.path.exists(f"{path}.png"):
        with Image.open(f"{path}.png") as image:
            return np.asarray(image, dtype=np.float64)
    return None


def relative_error(ours: Array, theirs: Array) -> float:
    """``|ours - theirs| / |theirs|``, infinite where the shapes differ or a number is none."""
    if ours.shape != theirs.shape:
        return float("inf")
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    return float(error) if np.isfinite(error) else float("inf")
