"""Measure what a session saves: the time of further images, batches, and memory over many images.

    python -m scripts.bench.batches first-and-further --model demo sd15-random --before ../old
    python -m scripts.bench.batches batches memory-over-images --write docs/speed-and-memory.md

Parts, each of which prints a Markdown table:

    first-and-further   time of the first image and of each further one: of ``sdpy generate
                        --num-samples N --batch-size 1``, whole processes, and of a session
    batches             time per image where several are computed together, beside one at a time
    memory-over-images  memory that the process holds after so many requests of one image each

``sd15-random`` has Stable Diffusion 1.5's sizes and random weights, which are written to
``runs/bench/sd15`` once (4.3 GB). ``--before`` names the source tree of an older version, whose
command is measured in turn with this one's. A process of one image gives the time of the first;
that of each further one is what a process of N images takes longer, divided by N - 1.

Everything is measured in turn (A B A B) in ``--rounds`` rounds, of which the tables give medians.
Sessions run in processes of their own. ``--write`` puts the tables into a Markdown file, between
the comments that name them as the parts are called.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from scripts.bench.contest import ROOT, BenchError, run_process
from scripts.bench.models import sizes
from scripts.bench.run import SIDES, machine, positive
from scripts.reports import tell, write_between
from sdpy.benchmark import figures, inputs
from sdpy.benchmark.memory import resident
from sdpy.benchmark.weights import write_random_model
from sdpy.errors import SdpyError
from sdpy.pipelines.events import Event, ImageDecoded, Progress
from sdpy.pipelines.generate import generate
from sdpy.pipelines.request import Request
from sdpy.runtime.devices import place
from sdpy.runtime.options import ModelOptions, open_session
from sdpy.zoo.variants import DEMO

Result = TypeVar("Result")


@dataclass(frozen=True)
class Model:
    """A model that can be measured.

    Attributes:
        title: what the tables call it.
        size: key of `scripts.bench.models.sizes`, for random weights; None for the demo model.
        side: of its images, in pixels.
        steps: of each image, unless the command line says otherwise.
        images: of which first and further ones are timed, likewise.
    """

    title: str
    size: str | None
    side: int
    steps: int
    images: int


MODELS = {
    "demo": Model("demo model", None, DEMO.sample_size, steps=30, images=10),
    "sd15-random": Model("SD 1.5's size", "sd15", SIDES["sd15"], steps=4, images=3),
    "tiny-random": Model("tiny model", "tiny", SIDES["tiny"], steps=2, images=2),
}
"""By their names on the command line."""

BEFORE, COMMAND, SESSION = "`sdpy generate`, before", "`sdpy generate`", "session"

MEMORY_STEPS = 2
"""Steps of the images over which memory is measured, since it does not depend on their number."""

READINGS = (1, 10, 50, 100, 200, 300, 500, 1000)
"""Numbers of images after which the table of memory has a row."""


@dataclass(frozen=True)
class Target:
    """What is measured: a model, at an image's size, on a device.

    Attributes:
        label: what the tables call it.
        model: as ``--model`` takes it.
        side: of the images, in pixels.
        steps: of each image.
        images: of which first and further ones are timed.
        device: as ``--device`` takes it; None for the GPU if there is one.
        dtype: as ``--dtype`` takes it.
        threads: of the CPU; None for as many as torch takes.
    """

    label: str
    model: str
    side: int
    steps: int
    images: int = 2
    device: str | None = None
    dtype: str = "fp32"
    threads: int | None = None

    @property
    def options(self) -> ModelOptions:
        """Those of a session."""
        return ModelOptions(
            model=self.model, device=self.device, dtype=self.dtype, threads=self.threads
        )

    def request(self, **changes: Any) -> Request:
        """A request for images; ``changes`` are fields of it."""
        given: dict[str, Any] = {
            "negative_prompt": inputs.NEGATIVE_PROMPT,
            "steps": self.steps,
            "seed": inputs.SEED,
            "width": self.side,
            "height": self.side,
        }
        return Request(**{"prompt": inputs.PROMPT, **given, **changes})

    def command(self, images: int, output: Path) -> list[str]:
        """The command that generates so many images; older versions take it as well."""
        device = [] if self.device is None else ["--device", self.device]
        return [
            *(sys.executable, "-m", "sdpy", "generate", inputs.PROMPT),
            *("--negative-prompt", inputs.NEGATIVE_PROMPT, "--model", self.model),
            *("--steps", str(self.steps), "--seed", str(inputs.SEED)),
            *("--width", str(self.side), "--height", str(self.side)),
            *(*device, "--dtype", self.dtype, "--num-samples", str(images)),
            *("--output", str(output), "--quiet"),
        ]


# --- the first image and further ones -------------------------------------------------------------


@dataclass(frozen=True)
class ImageSeconds:
    """Seconds of the first image, and of each further one."""

    first: float
    further: float


def measure_first_and_further(
    target: Target, rounds: int, before: Path | None
) -> dict[str, list[ImageSeconds]]:
    """Time the first image and further ones in each way; a list of as many as there are rounds."""
    ways: dict[str, Callable[[], ImageSeconds]] = {}
    if before is not None:
        ways[BEFORE] = lambda: command_seconds(target, before, [])
    ways[COMMAND] = lambda: command_seconds(target, ROOT, ["--batch-size", "1"])
    ways[SESSION] = lambda: in_new_process(session_seconds, target)
    found: dict[str, list[ImageSeconds]] = {way: [] for way in ways}
    for number in range(1, rounds + 1):
        for way, measure in ways.items():
            one = measure()
            found[way].append(one)
            first, further = figures.seconds(one.first), figures.seconds(one.further)
            tell(f"{target.label}, {way}, {number}/{rounds}: {first}, each further {further}")
    return found


def command_seconds(target: Target, tree: Path, options: Sequence[str]) -> ImageSeconds:
    """Time processes of one image and of several, of the version in a source tree.

    Raises:
        BenchError: a process failed.
    """
    environment = os.environ | {"PYTHONPATH": str(tree.absolute() / "src")}
    if target.threads is not None:
        environment["OMP_NUM_THREADS"] = str(target.threads)
    with tempfile.TemporaryDirectory(prefix="sdpy-bench-") as folder:
        one, several = (
            run_process(
                [*target.command(count, Path(folder) / "image.png"), *options], environment
            )[0]
            for count in (1, target.images)
        )
    return ImageSeconds(one, (several - one) / (target.images - 1))


def session_seconds(target: Target) -> ImageSeconds:
    """Time the images of one request; loading counts for the first, further ones are medians."""
    times = [time.perf_counter()]
    with open_session(target.options) as session:
        request = target.request(num_samples=target.images, batch_size=1)
        for event in generate(session, [request]):
            if isinstance(event, ImageDecoded):
                times.append(time.perf_counter())
    first, *further = (after - start for start, after in zip(times, times[1:], strict=False))
    return ImageSeconds(first, statistics.median(further))


def first_and_further_table(found: Mapping[str, Mapping[str, Sequence[ImageSeconds]]]) -> str:
    """A Markdown table of `measure_first_and_further`, by the targets' labels."""
    rows = [
        [
            label if i == 0 else "",
            way,
            figures.seconds(statistics.median(one.first for one in measured)),
            figures.seconds(statistics.median(one.further for one in measured)),
        ]
        for label, ways in found.items()
        for i, (way, measured) in enumerate(ways.items())
    ]
    return figures.table(["", "", "first image", "each further image"], rows)


# --- batches --------------------------------------------------------------------------------------


def measure_batches(
    target: Target, batch_sizes: Sequence[int], rounds: int
) -> dict[int, list[float]]:
    """Seconds per image by the size of the batch, a list of as many as there are rounds.

    Each time the same number of images is generated, of one request, with the models loaded.

    Raises:
        BenchError: there is not enough memory for a batch.
    """
    images = math.lcm(*batch_sizes)
    found: dict[int, list[float]] = {size: [] for size in batch_sizes}
    with open_session(target.options) as session:

        def run(size: int, **changes: Any) -> None:
            request = target.request(batch_size=size, **changes)
            finish_batches(generate(session, [request]), size)

        for size in batch_sizes:  # loads the models and plans for this size
            run(size, num_samples=size, steps=1)
        for number in range(1, rounds + 1):
            for size in batch_sizes:
                started = time.perf_counter()
                run(size, num_samples=images)
                found[size].append((time.perf_counter() - started) / images)
                each = figures.seconds(found[size][-1])
                tell(f"{target.label}, batches of {size}, {number}/{rounds}: {each} an image")
    return found


def finish_batches(events: Iterable[Event], size: int) -> None:
    """Let images be generated, and make sure that so many of them are computed together.

    Raises:
        BenchError: they are not.
    """
    for event in events:
        if isinstance(event, Progress) and event.last - event.first + 1 != size:
            together = event.last - event.first + 1
            raise BenchError(f"not enough memory for {size} images at a time, only for {together}")


def batches_table(found: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    """A Markdown table of `measure_batches`, by the targets' labels.

    Ratios are to the smallest batch, taken round by round.
    """
    rows = [
        [
            label if i == 0 else "",
            str(size),
            figures.seconds(statistics.median(seconds)),
            figures.times(figures.ratio(seconds, by_size[min(by_size)])) if i else "",
        ]
        for label, by_size in found.items()
        for i, (size, seconds) in enumerate(sorted(by_size.items()))
    ]
    return figures.table(["", "images at a time", "time per image", "ratio"], rows)


# --- memory ---------------------------------------------------------------------------------------


def measure_memory(target: Target, images: int) -> list[int]:
    """Resident bytes of the process after each image, each of a request and a prompt of its own.

    Raises:
        BenchError: the system does not tell.
    """
    found = []
    with open_session(target.options) as session:
        for i in range(images):
            request = target.request(
                prompt=f"{inputs.PROMPT}, {i}", seed=i, steps=min(target.steps, MEMORY_STEPS)
            )
            finish_batches(generate(session, [request]), 1)
            now = resident()
            if now is None:
                raise BenchError("this system does not tell how much memory a process holds")
            found.append(now)
            if i + 1 in READINGS or i + 1 == images:
                tell(f"{target.label}, {i + 1} images: {figures.megabytes(now)}")
    return found


def memory_table(found: Mapping[str, Sequence[int]]) -> str:
    """A Markdown table of `measure_memory`, with a column for each target."""
    images = max(map(len, found.values()))
    numbers = sorted({n for n in READINGS if n < images} | {images})
    rows = [
        [f"after {n}", *(figures.megabytes(sizes[n - 1]) for sizes in found.values())]
        for n in numbers
    ]
    rows.append(["most", *(figures.megabytes(max(sizes)) for sizes in found.values())])
    return figures.table(["images", *found], rows)


# --- command line ---------------------------------------------------------------------------------

PARTS = ("first-and-further", "batches", "memory-over-images")


def in_new_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """The result of some work that is done in a process of its own, which is new."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def measure(part: str, targets: Sequence[Target], options: argparse.Namespace) -> str:
    """Measure a part; returns its table and a note."""
    rounds = options.rounds
    if part == "first-and-further":
        table = first_and_further_table(
            {one.label: measure_first_and_further(one, rounds, options.before) for one in targets}
        )
        note = (
            f"Medians of {rounds} rounds. The time of a command's first "
            "image is that of the whole process; that of a session's begins with loading the "
            "models."
        )
    elif part == "batches":
        table = batches_table(
            {
                one.label: in_new_process(measure_batches, one, options.batch_sizes, rounds)
                for one in targets
            }
        )
        note = f"Medians of {rounds} rounds, with the models loaded."
    else:
        table = memory_table(
            {
                one.label: in_new_process(measure_memory, one, options.memory_images)
                for one in targets
            }
        )
        note = (
            "Resident memory of the process, pages of mapped files included; every image is a "
            f"request of its own with another prompt, in at most {MEMORY_STEPS} steps."
        )
    return f"{table}\n\n{note} {where(options)}"


def where(options: argparse.Namespace) -> str:
    """On what everything was measured."""
    device = place(device=options.device)["unet"]
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {options.dtype}."
    threads = torch.get_num_threads() if options.threads is None else options.threads
    plural = "s" if threads != 1 else ""
    return f"{machine()['processor']}, {threads} thread{plural}, {options.dtype}."


def make_target(name: str, options: argparse.Namespace) -> Target:
    """A model as the options say to measure it; random weights are written if there are none."""
    model = MODELS[name]
    source = "demo"
    if model.size is not None:
        folder = (options.weights or Path("runs/bench")) / model.size
        folder.mkdir(parents=True, exist_ok=True)
        tell(f"weights: {folder}")
        write_random_model(folder, sizes()[model.size])
        source = str(folder.absolute())
    steps = model.steps if options.steps is None else options.steps
    return Target(
        label=f"{model.title}, {model.side}x{model.side}, {steps} steps",
        model=source,
        side=model.side,
        steps=steps,
        images=model.images if options.images is None else options.images,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
    )


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.batches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("parts", choices=PARTS, nargs="+")
    add("--model", choices=MODELS, nargs="+", default=["demo"], help="models to measure (demo)")
    add("--steps", type=positive, help="of each image (demo 30, sd15-random 4)")
    add("--images", type=positive, help="of first-and-further (demo 10, sd15-random 3)")
    add("--batch-sizes", type=positive, nargs="+", default=[1, 2, 4, 8], help="(1 2 4 8)")
    add("--rounds", type=positive, default=5, help="of first-and-further and batches (5)")
    add("--memory-images", type=positive, default=300, help="of memory-over-images (300)")
    add("--before", type=Path, metavar="TREE", help="source tree of an older version")
    add("--weights", type=Path, metavar="FOLDER", help="of random weights (runs/bench)")
    add("--device", help="where the models run (the GPU if there is one)")
    add("--dtype", default="fp32", help="as for sdpy (fp32)")
    add("--threads", type=positive, help="of the CPU (as many as torch takes)")
    add("--write", type=Path, metavar="FILE", help="Markdown file to put the tables into")
    options = parser.parse_args(words)
    if options.images == 1:
        parser.error("--images 1: there has to be a further image")
    if options.before is not None and not (options.before / "src" / "sdpy").is_dir():
        parser.error(f"--before {options.before}: there is no src/sdpy in it")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Measure the parts named on the command line; 0 if all went well."""
    options = arguments(words)
    try:
        targets = [make_target(name, options) for name in options.model]
        for part in options.parts:
            text = measure(part, targets, options)
            print(f"\n{text}", flush=True)
            if options.write is not None:
                write_between(options.write, part, text)
    except (BenchError, SdpyError, OSError) as error:
        print(f"scripts.bench.batches: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
