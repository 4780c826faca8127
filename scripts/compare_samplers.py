"""Compare the samplers on the demo model: how near they come, and how well they paint, how fast.

    python scripts/compare_samplers.py --json runs/samplers.json --reader runs/demo/reader.pt
    python scripts/compare_samplers.py --from-json runs/samplers.json \\
        --picture media/samplers.png --readme README.md

The first command measures, the second draws the picture and the table of what was measured.
Samplers are compared by evaluations of the UNet, which is what one waits for. That is their number
of steps, but for those that evaluate it twice a step; these get half of the steps.

Distance. Without fresh noise, every sampler solves the same differential equation, each with errors
of its own that vanish with more steps. So from the same noise all come to the same picture, the
solution. It is found in 1000 steps, as many as the model was trained with, by the linear multistep
method, for its fourth order: where the solution is a formula, it comes nearer to it than DDIM and
Euler do in as many steps. DDIM walks them once as well, to see that it comes to the same.
The distance is the root mean square difference of the final latents from the solution's, over the
root mean square of these, and the median of some prompts. Latents and not pictures, because the
decoder's errors are not the samplers'.

Some samplers end at no noise, others (DDIM, PNDM, DEIS) at that of the first training timestep, as
they are defined. Each is compared with the solution where it ends.

Samplers that add fresh noise at each step paint another picture with each number of steps; nothing
is the matter with that, and there is no distance that could tell.

Adherence. Pictures of prompts whose combinations were withheld from training are read by the
classifier of `evaluate_demo.py`: the share in which all attributes are as asked. It is trained
first if its file does not exist. It reads soft pictures as well as sharp ones.

Detail. The root mean square of what a blur of 3x3 pixels takes away from a picture, over that of
the solution's picture for the same prompt, and the median of these prompts. Below 1 the picture is
softer, above 1 it may be noisy. It does not ask for the same composition, so that it can be taken
of samplers with fresh noise as well.

What was measured is kept sampler by sampler in the JSON file, so that a run can be continued; the
solutions lie beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import evaluate_demo as ev
import sampler_chart
from sdpy.errors import SdpyError, UsageError
from sdpy.files import atomic_write
from sdpy.pipelines import Components, Settings
from sdpy.pipelines.denoise import Walk, denoise
from sdpy.pipelines.paint import latent_shape, plan, tokenize
from sdpy.pipelines.vae import decode
from sdpy.runtime.devices import place, seeded_generator
from sdpy.samplers import SAMPLERS, find_sampler
from sdpy.schedulers import Scheduler
from sdpy.text.prompts import PromptEmbeddings, encode_prompt
from sdpy.zoo.files import find_files
from sdpy.zoo.variants import DEMO

SOLVER, CHECK = "lms", "ddim"
SOLUTION_STEPS = 1000

NEAR = 0.1
"""Relative distance from which on a picture counts as near the solution."""


# --- walking --------------------------------------------------------------------------------------


def open_components(files: Path | None, device: str | None) -> Components:
    """The bundled models or those in a folder; they stay loaded."""
    variant = DEMO if files is None else dataclasses.replace(DEMO, bundled=files)
    assert variant.bundled is not None
    keep = frozenset({"text_encoder", "unet", "vae"})
    found = find_files(variant, variant.bundled)
    return Components(variant, found, placement=place(device=device), keep=keep)


def walk(components: Components, task: ev.Task, sampler: str, steps: int) -> list[Tensor]:
    """The latents (1, C, h, w) after each evaluation of the UNet, as ``sdpy generate`` walks."""
    settings = Settings(task.prompt, seed=task.seed, scheduler=sampler, steps=steps)
    scheduler = plan(components, settings)
    generator = seeded_generator(task.seed)
    shape = latent_shape(components, ev.SIZE, ev.SIZE)
    start = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
    embeddings = encode(components, settings)
    scale = components.variant.guidance_scale
    with components.unet() as unet:
        steps_done = denoise(
            unet,
            scheduler,
            Walk(start),
            embeddings,
            guidance_scale=scale,
            generator=generator,
        )
        return [step.latents.cpu() for step in steps_done]


def encode(components: Components, settings: Settings) -> PromptEmbeddings:
    """What the UNet attends to."""
    prompt, negative = tokenize(components, settings)
    pad_id = components.variant.pad_id
    with components.text_encoder() as text_encoder:
        return encode_prompt(prompt, negative, components.tokenizer, text_encoder, pad_id=pad_id)


def planned(components: Components, sampler: str, steps: int) -> Scheduler:
    """The sampler with its timesteps set."""
    return plan(components, Settings("", scheduler=sampler, steps=steps))


def steps_within(components: Components, sampler: str, evaluations: int) -> int:
    """The most steps for which that many evaluations of the UNet are enough.

    Raises:
        UsageError: more than the sampler can do.
    """
    return max(
        steps
        for steps in range(1, evaluations + 1)
        if len(planned(components, sampler, steps).timesteps) <= evaluations
    )


def adds_noise(components: Components, sampler: str) -> bool:
    """Whether the sampler draws fresh noise on its way."""
    generator = seeded_generator(0)
    untouched = generator.get_state()
    scheduler = planned(components, sampler, 3)
    latents = torch.zeros(1, 1, 1, 1)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(torch.zeros_like(latents), timestep, latents, generator)
    return not torch.equal(generator.get_state(), untouched)


def begins_late(components: Components, sampler: str) -> bool:
    """Whether the sampler leaves out the first timesteps of a model that it has to leave out."""
    return components.variant.noise.rescale_betas_zero_snr and not (
        SAMPLERS[find_sampler(sampler)[0]].begins_with_pure_noise
    )


# --- distance -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solution:
    """The solution at the end of the walk, and at the first training timestep, just before it.

    Latents (1, C, h, w) at variance 1, and the `detail` of the picture.
    """

    clean: Tensor
    noisy: Tensor
    detail: float


def solve(components: Components, task: ev.Task) -> Solution:
    """Walk from the task's noise to the solution."""
    *_, before, clean = walk(components, task, SOLVER, SOLUTION_STEPS)
    sigma = planned(components, SOLVER, SOLUTION_STEPS).sigmas[-2]  # type: ignore[attr-defined]
    return Solution(clean, before / math.sqrt(sigma**2 + 1), detail(decode(components, clean)))


def ends_clean(scheduler: Scheduler) -> bool:
    """Whether a walk without fresh noise ends at no noise, not at the first timestep's."""
    sigmas: Sequence[float] | None = getattr(scheduler, "sigmas", None)
    return sigmas is not None and sigmas[-1] == 0


def detail(picture: Tensor) -> float:
    """Root mean square of the difference between a picture (1, 3, H, W) and a blurred one."""
    blurred = F.avg_pool2d(picture, 3, stride=1, padding=1, count_include_pad=False)
    return (picture - blurred).square().mean().sqrt().item()


def distance(latents: Tensor, solution: Tensor) -> float:
    """Root mean square of the difference, over that of the solution."""
    return ((latents - solution).square().mean() / solution.square().mean()).sqrt().item()


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What is measured, and of what.

    Attributes:
        prompts: number of prompts whose pictures are read.
        solved: number of them, from the first on, whose solutions are found to compare with.
        evaluations: numbers of evaluations at which to take distances.
        read_at: numbers of evaluations at which to read the pictures and take their detail.
        weights: digest of the model's and the reader's.
    """

    prompts: int
    solved: int
    evaluations: tuple[int, ...]
    read_at: tuple[int, ...]
    weights: str


@dataclass(frozen=True)
class Walked:
    """What came of a sampler with a number of steps.

    Attributes:
        steps: number of steps.
        distances: to the solution, by prompt; none with fresh noise.
        as_asked: whether all attributes were read as asked, by prompt; none if nothing was read.
        details: over those of the solutions, by prompt; none if nothing was read.
    """

    steps: int
    distances: tuple[float, ...] = ()
    as_asked: tuple[bool, ...] = ()
    details: tuple[float, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What is known of a sampler.

    Attributes:
        noisy: whether it adds fresh noise.
        late: whether it begins below the pure noise that the model begins with.
        walked: by the number of evaluations that it was allowed.
    """

    noisy: bool
    late: bool
    walked: dict[int, Walked]


@dataclass
class Results:
    """What was measured so far.

    Attributes:
        setup: what is measured.
        check: distance between the solutions of `SOLVER` and `CHECK` for the first prompt.
        samplers: by name.
    """

    setup: Setup
    check: float | None = None
    samplers: dict[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """What measuring needs."""

    components: Components
    reader: ev.Reader
    setup: Setup

    @cached_property
    def tasks(self) -> list[ev.Task]:
        """What to paint."""
        return ev.withheld_tasks(max(self.setup.prompts, self.setup.solved))

    def steps(self, sampler: str) -> dict[int, int]:
        """Numbers of steps, by the evaluations that are allowed."""
        numbers = sorted({*self.setup.evaluations, *self.setup.read_at})
        return {n: steps_within(self.components, sampler, n) for n in numbers}

    def measure(self, sampler: str, solutions: Sequence[Solution]) -> Measured:
        """All that is to be known of a sampler."""
        noisy = adds_noise(self.components, sampler)
        walked = {}
        for n, steps in self.steps(sampler).items():
            near = not noisy and n in self.setup.evaluations
            if near or n in self.setup.read_at:
                walked[n] = self._walk(
                    sampler, steps, solutions, near=near, read=n in self.setup.read_at
                )
        return Measured(noisy, begins_late(self.components, sampler), walked)

    def _walk(
        self, sampler: str, steps: int, solutions: Sequence[Solution], *, near: bool, read: bool
    ) -> Walked:
        tasks = self.tasks[: self.setup.prompts] if read else self.tasks[: len(solutions)]
        ended = [walk(self.components, task, sampler, steps)[-1] for task in tasks]
        walked = Walked(steps)
        if near:
            clean = ends_clean(planned(self.components, sampler, steps))
            distances = tuple(
                distance(latents, solution.clean if clean else solution.noisy)
                for latents, solution in zip(ended, solutions, strict=False)
            )
            walked = dataclasses.replace(walked, distances=distances)
        if read:
            pictures = [decode(self.components, latents) for latents in ended]
            readings = ev.read(self.reader, pictures)
            as_asked = tuple(
                not ev.mistakes(ev.attributes(task.scene), reading)
                for task, reading in zip(tasks, readings, strict=True)
            )
            details = tuple(
                detail(picture) / solution.detail
                for picture, solution in zip(pictures, solutions, strict=False)
            )
            walked = dataclasses.replace(walked, as_asked=as_asked, details=details)
        return walked


def measure(bench: Bench, file: Path, samplers: Sequence[str]) -> Results:
    """Measure the samplers that are not in the file yet, and write each to it.

    Raises:
        UsageError: the file holds results of something else, or a sampler cannot do so many steps.
    """
    results = read_results(file) if file.exists() else Results(bench.setup)
    if results.setup != bench.setup:
        raise UsageError(f"{file} was measured of other weights or options: name another file")
    for sampler in samplers:
        bench.steps(sampler)  # before anything is measured, whether it can be
    solutions = solve_all(bench, file.with_suffix(".pt"))
    if results.check is None and solutions:
        *_, checked = walk(bench.components, bench.tasks[0], CHECK, SOLUTION_STEPS)
        results.check = distance(checked, solutions[0].noisy)
        write_results(file, results)
    for sampler in samplers:
        if sampler not in results.samplers:
            started = time.monotonic()
            results.samplers[sampler] = bench.measure(sampler, solutions)
            write_results(file, results)
            ev.tell(f"{sampler}: {time.monotonic() - started:.0f} s")
    return results


def solve_all(bench: Bench, file: Path) -> list[Solution]:
    """The solutions, from the file as far as it has them."""
    found: dict[str, Any] = {}
    if file.exists():
        found = torch.load(file, weights_only=True)
    if found.get("weights") != bench.setup.weights:
        found = {"weights": bench.setup.weights, "solutions": []}
    kept = found["solutions"]
    for i, task in enumerate(bench.tasks[: bench.setup.solved]):
        if i == len(kept):
            kept.append(dataclasses.astuple(solve(bench.components, task)))
            with atomic_write(file) as opened:
                torch.save(found, opened)
            ev.tell(f"{i + 1} of {bench.setup.solved} solutions")
    return [Solution(*parts) for parts in kept[: bench.setup.solved]]


def digest(files: Iterable[Path]) -> str:
    """What tells these files' contents from others."""
    together = hashlib.sha256()
    for file in files:
        together.update(hashlib.sha256(file.read_bytes()).digest())
    return together.hexdigest()


def write_results(file: Path, results: Results) -> None:
    """Write results as JSON."""
    text = json.dumps(dataclasses.asdict(results), indent=1) + "\n"
    with atomic_write(file) as opened:
        opened.write(text.encode())


def read_results(file: Path) -> Results:
    """The results in a file of `write_results`."""
    found = json.loads(file.read_text())
    setup: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in found["setup"].items()
    }
    samplers = {}
    for name, one in found["samplers"].items():
        walked = {
            int(n): Walked(w.pop("steps"), **{key: tuple(values) for key, values in w.items()})
            for n, w in one["walked"].items()
        }
        samplers[name] = Measured(one["noisy"], one["late"], walked)
    return Results(Setup(**setup), found["check"], samplers)


# --- what it says ---------------------------------------------------------------------------------


def median_distances(measured: Measured) -> dict[int, float]:
    """The median distance of the prompts, by evaluations."""
    return {n: statistics.median(w.distances) for n, w in measured.walked.items() if w.distances}


def adherence(measured: Measured) -> dict[int, float]:
    """Percentage of pictures as asked, by evaluations."""
    return {n: ev.percent(w.as_asked) for n, w in measured.walked.items() if w.as_asked}


def median_details(measured: Measured) -> dict[int, float]:
    """The median detail of the prompts, percent, by evaluations."""
    return {n: 100 * statistics.median(w.details) for n, w in measured.walked.items() if w.details}


def near_from(measured: Measured) -> str:
    """The fewest evaluations from which on the picture stays near the solution, in words."""
    taken = median_distances(measured)
    if not taken:
        return ""
    far = [n for n, value in taken.items() if value > NEAR]
    enough = [n for n in taken if n > max(far, default=0)]
    return str(min(enough)) if enough else f"over {max(taken)}"


def ranked(samplers: Mapping[str, Measured]) -> list[str]:
    """Samplers without fresh noise, the nearest to the solution first.

    By the mean logarithm of the distances at the numbers of evaluations that people use.
    """

    def mean_logarithm(name: str) -> float:
        values = [d for n, d in median_distances(samplers[name]).items() if 5 <= n <= 30]
        return statistics.fmean(map(math.log, values)) if values else math.inf

    return sorted((n for n in samplers if not samplers[n].noisy), key=mean_logarithm)


def table(results: Results, names: Sequence[str]) -> str:
    """A Markdown table of these samplers."""
    columns = results.setup.read_at
    heads = [f"within {100 * NEAR:.0f} % from"]
    heads += [f"as asked / detail at {columns[0]} evaluations", *(f"at {n}" for n in columns[1:])]
    lines = ["| sampler | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for name in names:
        measured = results.samplers[name]
        shares, details = adherence(measured), median_details(measured)
        cells = [f"{shares[n]:.0f} / {details[n]:.0f} %" for n in columns]
        lines.append(f"| `{name}` | {near_from(measured)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_noise(samplers: Mapping[str, Measured]) -> list[str]:
    """Samplers with fresh noise, those that were read best first."""

    def mean_adherence(name: str) -> float:
        values = adherence(samplers[name]).values()
        return statistics.fmean(values) if values else math.nan

    noisy = [name for name in samplers if samplers[name].noisy]
    return sorted(noisy, key=mean_adherence, reverse=True)


def chart(results: Results) -> sampler_chart.Chart:
    """The picture of the results."""
    samplers = results.samplers
    nearest = ranked(samplers)
    default = Settings("").scheduler
    colours = {default: sampler_chart.INK}
    best = [name for name in nearest if name != default]
    colours |= dict(zip(best, sampler_chart.HIGHLIGHTS, strict=False))

    def row(name: str) -> sampler_chart.Row:
        measured = samplers[name]
        return sampler_chart.Row(
            name,
            median_distances(measured),
            (adherence(measured), median_details(measured)),
            colours.get(name, sampler_chart.REST),
            mark="*" if measured.late else "",
        )

    groups = {
        "no noise added, nearest first": [row(name) for name in nearest],
        "fresh noise at each step": [row(name) for name in with_noise(samplers)],
    }
    groups = {heading: rows for heading, rows in groups.items() if rows}
    titles = [("As asked, %", "read by a classifier"), ("Detail, %", "of the solution's")]
    return sampler_chart.draw(groups, titles, notes(results))


def notes(results: Results) -> list[str]:
    """What stands below the picture."""
    setup = results.setup
    lines = [
        f"Distance and detail: medians of {setup.solved} prompts. As asked: {setup.prompts} "
        "prompts. heun, kdpm2 and kdpm2-a take two evaluations a step, the others one.",
    ]
    if any(measured.late for measured in results.samplers.values()):
        lines.append(
            "* cannot begin with pure noise, as this zero-terminal-SNR model does, and begins "
            "below it."
        )
    return lines


# --- README ---------------------------------------------------------------------------------------

BEGIN = "<!-- samplers: written by scripts/compare_samplers.py -->"
END = "<!-- /samplers -->"


def readme_lines(results: Results) -> str:
    """What README says of the results: all of its figures are here."""
    setup = results.setup
    default = Settings("").scheduler
    nearest = ranked(results.samplers)
    shown = [*nearest[:3], *([default] if default in nearest[3:] else [])]
    lines = [
        table(results, shown),
        "",
        f"Distance and detail are medians of {setup.solved} prompts; {setup.prompts} were painted "
        f"to be read, so that one picture is {100 / setup.prompts:.0f} %.",
    ]
    if results.check is not None:
        lines[-1] += (
            f" {SOLUTION_STEPS} steps of `{CHECK}` end {100 * results.check:.2g} % from the "
            "solution."
        )
    return "\n".join(lines)


def insert(text: str, lines: str) -> str:
    """The text with the lines between `BEGIN` and `END`, and nothing else changed.

    Raises:
        UsageError: the marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the file does not have the lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{lines}\n\n{end}{after}"


# --- command line ---------------------------------------------------------------------------------


def find_reader(file: Path, renders: int) -> ev.Reader:
    """The reader in the file, or one that is trained first and left there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            ev.train_reader(Path(folder), renders)
            shutil.move(Path(folder, ev.READER_FILE), file)
    return ev.open_reader(file)


def measured_by(options: argparse.Namespace) -> Results:
    """What the options say is measured."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    file: Path = options.json
    file.parent.mkdir(parents=True, exist_ok=True)
    reader_file = options.reader or file.parent / ev.READER_FILE
    components = open_components(options.files, options.device)
    files = components.files
    reader = find_reader(reader_file, options.renders)
    setup = Setup(
        options.prompts,
        options.solved,
        tuple(sorted(options.evaluations)),
        tuple(sorted(options.read_at)),
        digest([*files.weights.values(), files.vocabulary, reader_file]),
    )
    return measure(Bench(components, reader, setup), file, options.samplers)


def count(text: str) -> int:
    """A number from 1 on, on the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("use 1 or more")
    return number


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or read what was measured; print it, and draw it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--json", type=Path, help="measure into this file, or go on with it")
    source.add_argument("--from-json", type=Path, help="take what this file holds")
    parser.add_argument("--reader", type=Path, help="its file; reader.pt beside the JSON")
    parser.add_argument("--renders", type=int, default=16_000, help="that a new reader learns from")
    parser.add_argument("--files", type=Path, help="folder of other weights than the bundled ones")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), help="as for --scheduler")
    parser.add_argument("--prompts", type=count, default=20, help="whose pictures are read")
    parser.add_argument("--solved", type=count, default=4, help="prompts to take distances of")
    parser.add_argument(
        "--evaluations",
        type=count,
        nargs="+",
        default=[2, 3, 5, 7, 10, 15, 20, 30, 50],
        help="of the UNet, at which to take distances",
    )
    parser.add_argument(
        "--read-at",
        type=count,
        nargs="+",
        default=[2, 3, 5, 10, 20],
        help="evaluations at which to read pictures",
    )
    parser.add_argument("--picture", type=Path, help="file to draw to")
    parser.add_argument("--readme", type=Path, help="file to write the short table into")
    parser.add_argument("--device", default="cpu", help="where the models run")
    parser.add_argument("--threads", type=count, help="of torch")
    options = parser.parse_args(arguments)
    try:
        results = read_results(options.from_json) if options.from_json else measured_by(options)
        print(table(results, [*ranked(results.samplers), *with_noise(results.samplers)]))
        if options.picture is not None:
            picture = chart(results).picture
            # So few colours are enough, and take a third of the bytes.
            picture.quantize(256, dither=Image.Dither.NONE).save(options.picture, optimize=True)
        if options.readme is not None:
            text = insert(options.readme.read_text(), readme_lines(results))
            options.readme.write_text(text)
    except SdpyError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
