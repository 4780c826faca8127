"""Compare the samplers on the demo model: how accurate they are, how well they draw, how fast.

    python -m scripts.figures.compare_samplers --json runs/samplers.json \\
        --classifier runs/demo/classifier.pt
    python -m scripts.figures.compare_samplers --from-json runs/samplers.json \\
        --image media/samplers.png --write docs/samplers.md

The first command measures, the second draws the figure and the table of what was measured.
Samplers are compared by evaluations of the UNet, which is what one waits for. That is their number
of steps, except for those that evaluate it twice a step; these get half of the steps.

Distance. Without fresh noise, every sampler solves the same differential equation, each with errors
of its own that vanish with more steps. So from the same noise all come to the same image, the
solution. It is found in 1000 steps, as many as the model was trained with, by the linear multistep
method, for its fourth order: where the solution is a formula, it comes nearer to it than DDIM and
Euler do in as many steps. DDIM takes 1000 steps once as well, to check that it ends there too.
The distance is the root mean square difference of the final latents from the solution's, over the
root mean square of these, and the median of some prompts. Latents are compared and not images,
because the decoder's errors are not the samplers'.

Some samplers end at no noise, others (DDIM, PNDM, DEIS) at that of the first training timestep, as
they are defined. Each is compared with the solution where it ends.

Samplers that add fresh noise at each step give another image with each number of steps; nothing is
wrong with that, but there is no distance to measure.

Adherence. Images of prompts whose combinations were withheld from training are judged by the
classifier of `scripts.demo.classifier`: the share in which all attributes are as asked. It is
trained first if its file does not exist. It recognises soft images as well as sharp ones.

Detail. The root mean square of what a blur of 3x3 pixels takes away from an image, over that of
the solution's image for the same prompt, and the median of these prompts. Below 1 the image is
softer, above 1 it may be noisy. It does not depend on the composition, so that it can be taken of
samplers with fresh noise as well.

What was measured is kept sampler by sampler in the JSON file, so that a run can be continued; the
solutions lie beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from scripts.demo.adherence import Task, mistakes, withheld_tasks
from scripts.demo.classifier import (
    CLASSIFIER_FILE,
    AttributeClassifier,
    classify,
    find_classifier,
)
from scripts.demo.recipes import RECIPES
from scripts.engine import DEFAULT_SCHEDULER, DemoModel, adds_noise
from scripts.figures import sampler_chart
from scripts.figures.sampler_results import (
    NEAR,
    Results,
    SamplerResults,
    SamplerRun,
    Setup,
    adherence,
    median_details,
    median_distances,
    near_from,
    ranked,
    read_results,
    with_noise,
    write_results,
)
from scripts.reports import tell, write_between
from sdpy.benchmark import figures
from sdpy.errors import SdpyError, UsageError
from sdpy.files import atomic_write
from sdpy.schedulers import SCHEDULERS, Scheduler, find_scheduler

SOLVER, CHECK = "lms", "ddim"
SOLUTION_STEPS = 1000

TABLE = "samplers"
"""Name of the table in Markdown files; see `scripts.reports`."""


# --- samplers -------------------------------------------------------------------------------------


def run_sampler(model: DemoModel, task: Task, sampler: str, steps: int) -> list[Tensor]:
    """The latents (1, C, h, w) after each evaluation of the UNet."""
    return model.denoise(task.prompt, task.seed, sampler, steps)


def steps_within(model: DemoModel, sampler: str, evaluations: int) -> int:
    """The most steps for which that many evaluations of the UNet are enough.

    Raises:
        UsageError: more than the sampler can do.
    """
    return max(
        steps
        for steps in range(1, evaluations + 1)
        if len(model.plan(sampler, steps).timesteps) <= evaluations
    )


def begins_late(model: DemoModel, sampler: str) -> bool:
    """Whether the sampler has to leave out the first timesteps of the model."""
    return model.variant.noise.rescale_betas_zero_snr and not (
        SCHEDULERS[find_scheduler(sampler)[0]].begins_with_pure_noise
    )


# --- distance -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solution:
    """The solution of a task.

    Attributes:
        clean: latents (1, C, h, w) at no noise.
        noisy: latents (1, C, h, w) at the first training timestep, at variance 1.
        detail: `detail` of the image.
    """

    clean: Tensor
    noisy: Tensor
    detail: float


def solve(model: DemoModel, task: Task) -> Solution:
    """Find the solution for the task's noise."""
    *_, before, clean = run_sampler(model, task, SOLVER, SOLUTION_STEPS)
    sigma = model.plan(SOLVER, SOLUTION_STEPS).sigmas[-2]  # type: ignore[attr-defined]
    return Solution(clean, before / math.sqrt(sigma**2 + 1), detail(model.decode(clean)))


def ends_clean(scheduler: Scheduler) -> bool:
    """Whether a sampler without fresh noise ends at no noise, not at the first timestep's."""
    sigmas: Sequence[float] | None = getattr(scheduler, "sigmas", None)
    return sigmas is not None and sigmas[-1] == 0


def detail(image: Tensor) -> float:
    """Root mean square of the difference between an image (1, 3, H, W) and a blurred one."""
    blurred = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    return (image - blurred).square().mean().sqrt().item()


def distance(latents: Tensor, solution: Tensor) -> float:
    """Root mean square of the difference, over that of the solution."""
    return ((latents - solution).square().mean() / solution.square().mean()).sqrt().item()


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """What measuring needs: the model, the classifier of its images, and what to measure."""

    model: DemoModel
    classifier: AttributeClassifier
    setup: Setup

    @cached_property
    def tasks(self) -> list[Task]:
        """The prompts, and the seeds of their noise."""
        return withheld_tasks(max(self.setup.prompts, self.setup.solved))

    def steps(self, sampler: str) -> dict[int, int]:
        """Numbers of steps, by the evaluations that are allowed."""
        numbers = sorted({*self.setup.evaluations, *self.setup.classify_at})
        return {n: steps_within(self.model, sampler, n) for n in numbers}

    def measure(self, sampler: str, solutions: Sequence[Solution]) -> SamplerResults:
        """Measure everything of a sampler."""
        noisy = adds_noise(self.model.plan(sampler, 3))
        runs = {}
        for n, steps in self.steps(sampler).items():
            compared = not noisy and n in self.setup.evaluations
            classified = n in self.setup.classify_at
            if compared or classified:
                runs[n] = self._run(
                    sampler, steps, solutions, compared=compared, classified=classified
                )
        return SamplerResults(noisy, begins_late(self.model, sampler), runs)

    def _run(
        self,
        sampler: str,
        steps: int,
        solutions: Sequence[Solution],
        *,
        compared: bool,
        classified: bool,
    ) -> SamplerRun:
        tasks = self.tasks[: self.setup.prompts] if classified else self.tasks[: len(solutions)]
        ended = [run_sampler(self.model, task, sampler, steps)[-1] for task in tasks]
        run = SamplerRun(steps)
        if compared:
            clean = ends_clean(self.model.plan(sampler, steps))
            distances = tuple(
                distance(latents, solution.clean if clean else solution.noisy)
                for latents, solution in zip(ended, solutions, strict=False)
            )
            run = dataclasses.replace(run, distances=distances)
        if classified:
            images = [self.model.decode(latents) for latents in ended]
            as_asked = tuple(
                not mistakes(task.scene.attributes, seen)
                for task, seen in zip(tasks, classify(self.classifier, images), strict=True)
            )
            details = tuple(
                detail(image) / solution.detail
                for image, solution in zip(images, solutions, strict=False)
            )
            run = dataclasses.replace(run, as_asked=as_asked, details=details)
        return run


def measure(comparison: Comparison, file: Path, samplers: Sequence[str]) -> Results:
    """Measure the samplers that are not in the file yet, and write each to it.

    Raises:
        UsageError: the file holds results of something else, or a sampler cannot do so many steps.
    """
    results = read_results(file) if file.exists() else Results(comparison.setup)
    if results.setup != comparison.setup:
        raise UsageError(f"{file} was measured of other weights or options: name another file")
    for sampler in samplers:
        comparison.steps(sampler)  # raises before anything is measured
    solutions = solve_all(comparison, file.with_suffix(".pt"))
    if results.check is None and solutions:
        task = comparison.tasks[0]
        *_, checked = run_sampler(comparison.model, task, CHECK, SOLUTION_STEPS)
        results.check = distance(checked, solutions[0].noisy)
        write_results(file, results)
    for sampler in samplers:
        if sampler not in results.samplers:
            started = time.monotonic()
            results.samplers[sampler] = comparison.measure(sampler, solutions)
            write_results(file, results)
            tell(f"{sampler}: {time.monotonic() - started:.0f} s")
    return results


def solve_all(comparison: Comparison, file: Path) -> list[Solution]:
    """The solutions, from the file as far as it has them."""
    weights, count = comparison.setup.weights, comparison.setup.solved
    found: dict[str, Any] = {}
    if file.exists():
        found = torch.load(file, weights_only=True)
    if found.get("weights") != weights:
        found = {"weights": weights, "solutions": []}
    kept = found["solutions"]
    for i, task in enumerate(comparison.tasks[:count]):
        if i == len(kept):
            kept.append(dataclasses.astuple(solve(comparison.model, task)))
            with atomic_write(file) as opened:
                torch.save(found, opened)
            tell(f"{i + 1} of {count} solutions")
    return [Solution(*parts) for parts in kept[:count]]


def digest(files: Iterable[Path]) -> str:
    """SHA-256 of the files' contents, in hexadecimal."""
    together = hashlib.sha256()
    for file in files:
        together.update(hashlib.sha256(file.read_bytes()).digest())
    return together.hexdigest()


# --- table and figure -----------------------------------------------------------------------------


def table(results: Results, names: Sequence[str]) -> str:
    """A Markdown table of these samplers."""
    columns = results.setup.classify_at
    heads = ["sampler", f"within {100 * NEAR:.0f} % from"]
    heads += [f"as asked / detail at {columns[0]} evaluations", *(f"at {n}" for n in columns[1:])]
    rows = []
    for name in names:
        one = results.samplers[name]
        shares, details = adherence(one), median_details(one)
        cells = [f"{shares[n]:.0f} / {details[n]:.0f} %" for n in columns]
        rows.append([f"`{name}`", near_from(one), *cells])
    return figures.table(heads, rows)


def short_table(results: Results) -> str:
    """The table of the most accurate samplers and the default one, with a note."""
    setup = results.setup
    nearest = ranked(results.samplers)
    shown = [*nearest[:3], *([DEFAULT_SCHEDULER] if DEFAULT_SCHEDULER in nearest[3:] else [])]
    note = (
        f"Distance and detail are medians of {setup.solved} prompts; images of {setup.prompts} "
        f"were classified, so that one image is {100 / setup.prompts:.0f} %."
    )
    if results.check is not None:
        note += (
            f" {SOLUTION_STEPS} steps of `{CHECK}` end {100 * results.check:.2g} % from the "
            "solution."
        )
    return f"{table(results, shown)}\n\n{note}"


def chart(results: Results) -> sampler_chart.Chart:
    """Draw the figure of the results."""
    samplers = results.samplers
    nearest = ranked(samplers)
    colours = {DEFAULT_SCHEDULER: sampler_chart.INK}
    best = [name for name in nearest if name != DEFAULT_SCHEDULER]
    colours |= dict(zip(best, sampler_chart.HIGHLIGHTS, strict=False))

    def row(name: str) -> sampler_chart.Row:
        one = samplers[name]
        return sampler_chart.Row(
            name,
            median_distances(one),
            (adherence(one), median_details(one)),
            colours.get(name, sampler_chart.REST),
            mark="*" if one.late else "",
        )

    groups = {
        "no noise added, nearest first": [row(name) for name in nearest],
        "fresh noise at each step": [row(name) for name in with_noise(samplers)],
    }
    groups = {heading: rows for heading, rows in groups.items() if rows}
    titles = [("As asked, %", "judged by a classifier"), ("Detail, %", "of the solution's")]
    return sampler_chart.draw(groups, titles, notes(results))


def notes(results: Results) -> list[str]:
    """The notes below the figure, line by line."""
    setup = results.setup
    lines = [
        f"Distance and detail: medians of {setup.solved} prompts. As asked: {setup.prompts} "
        "prompts. heun, kdpm2 and kdpm2-a take two evaluations a step, the others one.",
    ]
    if any(one.late for one in results.samplers.values()):
        lines.append(
            "* cannot begin with pure noise, as this zero-terminal-SNR model does, and begins "
            "below it."
        )
    return lines


# --- command line ---------------------------------------------------------------------------------


def measure_as_asked(options: argparse.Namespace) -> Results:
    """Measure as the options of the command line say."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    file: Path = options.json
    file.parent.mkdir(parents=True, exist_ok=True)
    classifier_file: Path = options.classifier or file.parent / CLASSIFIER_FILE
    model = DemoModel.open(options.files, device=options.device)
    classifier = find_classifier(classifier_file, options.renders, RECIPES["demo"])
    setup = Setup(
        options.prompts,
        options.solved,
        tuple(sorted(options.evaluations)),
        tuple(sorted(options.classify_at)),
        digest([*model.files.values(), classifier_file]),
    )
    return measure(Comparison(model, classifier, setup), file, options.samplers)


def count(text: str) -> int:
    """Read a number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("use 1 or more")
    return number


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or read what was measured; print it, and draw it if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--json", type=Path, help="measure into this file, or go on with it")
    source.add_argument("--from-json", type=Path, help="take what this file holds")
    parser.add_argument("--classifier", type=Path, help="its file (classifier.pt beside the JSON)")
    parser.add_argument(
        "--renders", type=int, default=16_000, help="scenes that a new classifier is trained on"
    )
    parser.add_argument("--files", type=Path, help="folder of other weights than the bundled ones")
    parser.add_argument(
        "--samplers", nargs="+", default=list(SCHEDULERS), help="as for --scheduler"
    )
    parser.add_argument("--prompts", type=count, default=20, help="prompts to classify images of")
    parser.add_argument("--solved", type=count, default=4, help="prompts to take distances of")
    parser.add_argument(
        "--evaluations",
        type=count,
        nargs="+",
        default=[2, 3, 5, 7, 10, 15, 20, 30, 50],
        help="of the UNet, at which to take distances",
    )
    parser.add_argument(
        "--classify-at",
        type=count,
        nargs="+",
        default=[2, 3, 5, 10, 20],
        help="evaluations at which to classify images",
    )
    parser.add_argument("--image", type=Path, help="file to draw the figure to")
    parser.add_argument("--write", type=Path, help="Markdown file to put the short table into")
    parser.add_argument("--device", default="cpu", help="where the models run")
    parser.add_argument("--threads", type=count, help="threads of torch")
    options = parser.parse_args(arguments)
    try:
        results = (
            read_results(options.from_json) if options.from_json else measure_as_asked(options)
        )
        print(table(results, [*ranked(results.samplers), *with_noise(results.samplers)]))
        if options.image is not None:
            image = chart(results).image
            # So few colours are enough, and take a third of the bytes.
            image.quantize(256, dither=Image.Dither.NONE).save(options.image, optimize=True)
        if options.write is not None:
            write_between(options.write, TABLE, short_table(results))
    except SdpyError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
