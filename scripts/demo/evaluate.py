"""Measure the demo model: does an image show what the prompt asked for?

    python -m scripts.demo.evaluate classifier --run runs/demo
    python -m scripts.demo.evaluate adherence settings edits cost sheet --run runs/demo

A small classifier is trained on scenes of its own and judges images by their attributes, such as
subject, colour, time of day, weather. The parts print Markdown tables:

    classifier  trains the classifier into ``RUN/classifier.pt``, and tests it on fresh scenes
    adherence   generates images of combinations that were withheld from training and classifies
                them, beside renders and the autoencoder's reconstructions of the same scenes;
                the images that failed go to ``RUN/failures.png``
    settings    does the same with other numbers of steps and guidance scales
    edits       runs img2img and inpaint: one attribute of a render is to change, no other
    turbo       does the same with the UNet for few steps, where there is one
    cost        tells the bytes of the files, and seconds of ``sdpy generate`` as a process
    sheet       draws prompts by seeds, ``RUN/prompts.png``, to look at

The bundled weights are measured unless ``--files`` names a folder of others, ``--state`` asks for
the averages of an unfinished training in ``RUN``, or ``--untrained`` for weights that have learned
nothing, whose speed is that of any others. ``--recipe`` says which sizes and scenes these have; by
default it is the one that the files name.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scripts.demo.adherence import (
    Task,
    mistakes,
    score,
    score_by_value,
    score_edits,
    withheld_tasks,
)
from scripts.demo.classifier import (
    CLASSIFIER_FILE,
    AttributeClassifier,
    classify,
    load_classifier,
    render,
    train_classifier,
)
from scripts.demo.recipes import RECIPES, Recipe
from scripts.demo.scene_sets import AnyScene
from scripts.demo.sheets import wrap, write_sheet
from scripts.demo.training.models import write_averages, write_untrained
from scripts.demo.training.options import TrainingOptions
from scripts.engine import DemoModel, sdpy_command
from scripts.reports import tell
from sdpy.benchmark.figures import table
from sdpy.images.mask import composite
from sdpy.images.tensors import image_to_tensor, mask_to_tensor, tensor_to_image
from sdpy.zoo.bundle import BUNDLE, read_bundle
from sdpy.zoo.variants import bundled_variants

FRESH_SET, EDIT_WORDS = 7002, 7004
"""Numbers of endless sets of scenes and of words that are not trained on."""

FRESH_SCENES = 2000
"""Scenes that the trained classifier is tested on."""

TIMED_PROCESSES = 3
"""Processes of which the time of one is told."""

Results = Mapping[str, Any]
"""What a part has measured, for the JSON file."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and how much of it; the options of the command line.

    Attributes:
        run: folder of the classifier and the sheets.
        files: folder of the weights, as a bundled model has them.
        recipe: by which the weights were trained.
        renders: scenes that the classifier is trained on.
        prompts: prompts of the table of adherence.
        setting_prompts: prompts for each setting.
        edits: edits of each kind.
        strength: strength of img2img.
    """

    run: Path
    files: Path
    recipe: Recipe
    renders: int
    prompts: int
    setting_prompts: int
    edits: int
    strength: float

    @cached_property
    def model(self) -> DemoModel:
        """The model in the folder."""
        return DemoModel.open(self.files, variant=self.recipe.variant)

    @cached_property
    def turbo(self) -> DemoModel | None:
        """The one for few steps, if it is there."""
        variants = bundled_variants(self.files)[1:]
        return DemoModel.open(self.files, variant=variants[0]) if variants else None

    @cached_property
    def classifier(self) -> AttributeClassifier:
        """The classifier that was trained in the run."""
        return load_classifier(self.run / CLASSIFIER_FILE, self.recipe)


def generate(
    model: DemoModel, tasks: Sequence[Task], steps: int = 30, guidance_scale: float | None = None
) -> list[Tensor]:
    """Generate the image of every task."""
    started = time.monotonic()
    images = []
    for i, task in enumerate(tasks, start=1):
        settings = {"steps": steps, "guidance_scale": guidance_scale}
        images.append(model.generate(task.prompt, task.seed, **settings))
        if i % 20 == 0 or i == len(tasks):
            seconds = (time.monotonic() - started) / i
            tell(f"{i} of {len(tasks)} at {steps} steps, {seconds:.2f} s per image")
    return images


def print_scores(first: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Print rows of percentages as a Markdown table, the first column headed ``first``."""
    columns = list(next(iter(scores.values())))
    rows = [[name, *(f"{row[column]:.1f}" for column in columns)] for name, row in scores.items()]
    print(f"\n{table([first, *columns], rows)}", flush=True)


# --- the parts ------------------------------------------------------------------------------------


def evaluate_classifier(evaluation: Evaluation) -> Results:
    """Train the classifier, and test it on scenes that it has not seen."""
    recipe = evaluation.recipe
    classifier = train_classifier(evaluation.run / CLASSIFIER_FILE, evaluation.renders, recipe)
    fresh = [recipe.scenes.scene_at(i, FRESH_SET, None) for i in range(FRESH_SCENES)]
    seen = classify(classifier, [render(scene, recipe) for scene in fresh])
    scores = {f"fresh renders ({len(fresh)})": score(fresh, seen)}
    print_scores("images, % classified as they are", scores)
    return scores


def evaluate_adherence(evaluation: Evaluation) -> Results:
    """Generate withheld combinations at the defaults and classify them."""
    classifier, model = evaluation.classifier, evaluation.model
    tasks = withheld_tasks(evaluation.prompts, evaluation.recipe.scenes)
    asked = [task.scene for task in tasks]
    drawn = [render(scene, evaluation.recipe, model.size) for scene in asked]
    reconstructed = [model.reconstruct(image) for image in drawn]
    generated = generate(model, tasks)
    seen = classify(classifier, generated)
    scores = {
        "renders": score(asked, classify(classifier, drawn)),
        "reconstructions": score(asked, classify(classifier, reconstructed)),
        "generated": score(asked, seen),
    }
    print_scores(f"images ({len(tasks)}), % as asked", scores)

    counts: collections.Counter[str] = collections.Counter()
    failures: list[tuple[Tensor, Task, list[str]]] = []
    for task, image, got in zip(tasks, generated, seen, strict=True):
        want = task.scene.attributes
        wrong = [f"{want[name]} seen as {got[name]}" for name in mistakes(want, got)]
        counts.update(wrong)
        if wrong:
            failures.append((image, task, wrong))
    if failures:
        labels = ["\n".join([*wrap(task.prompt), *wrong]) for _, task, wrong in failures]
        images = [image for image, _, _ in failures]
        write_sheet(evaluation.run / "failures.png", images, columns=8, labels=labels)
    print("\nMost frequent: " + "; ".join(f"{what} ({n})" for what, n in counts.most_common(8)))
    return {
        "rows": scores,
        "by value": score_by_value(asked, seen),
        "failures": [
            {"prompt": task.prompt, "seed": task.seed, "wrong": wrong}
            for _, task, wrong in failures
        ],
    }


def evaluate_settings(evaluation: Evaluation) -> Results:
    """Adherence at other numbers of steps and guidance scales."""
    classifier, model = evaluation.classifier, evaluation.model
    tasks = withheld_tasks(evaluation.setting_prompts, evaluation.recipe.scenes)
    asked = [task.scene for task in tasks]
    default = model.variant.guidance_scale
    scales = (1.0, 2.0, default, 6.0, 8.0)
    scores: dict[str, Mapping[str, float]] = {}
    for steps, scale in [(n, default) for n in (10, 20, 30, 50)] + [(30, g) for g in scales]:
        name = f"{steps} steps, guidance {scale:g}"
        if name not in scores:
            seen = classify(classifier, generate(model, tasks, steps, scale))
            scores[name] = score(asked, seen)
    print_scores(f"generated ({len(tasks)}), % as asked", scores)
    return scores


def evaluate_turbo(evaluation: Evaluation) -> Results:
    """Adherence of the UNet for few steps, to the same prompts as that of the other."""
    model, classifier = evaluation.turbo, evaluation.classifier
    if model is None:
        tell("there is no UNet for few steps")
        return {}
    scores: dict[str, Mapping[str, float]] = {}
    for steps, count in (
        (1, evaluation.setting_prompts),
        (2, evaluation.setting_prompts),
        (model.variant.steps, evaluation.prompts),
    ):
        tasks = withheld_tasks(count, evaluation.recipe.scenes)
        seen = classify(classifier, generate(model, tasks, steps))
        scores[f"{steps} steps ({len(tasks)})"] = score([task.scene for task in tasks], seen)
    print_scores("generated, % as asked", scores)
    return scores


def evaluate_cost(evaluation: Evaluation) -> Results:
    """Size of the files, and the time of a whole process: the median of `TIMED_PROCESSES`.

    One goes before, so that Python has compiled what it imports, as it is once sdpy is installed.
    """
    files = [f for f in evaluation.files.iterdir() if f.suffix in (".ot", ".txt")]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for variant in bundled_variants(evaluation.files):
            command = [*sdpy_command(evaluation.files), "generate", "lighthouse at dark"]
            command += ["--model", variant.name, "--quiet", "--output", f"{folder}/image.png"]
            times = []
            for _ in range(1 + TIMED_PROCESSES):
                started = time.monotonic()
                subprocess.run(
                    [*command, "--overwrite"],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    env=environment,
                )
                times.append(time.monotonic() - started)
            seconds[variant.name] = statistics.median(times[1:])
    told = "; ".join(f"{name} {number:.1f} s" for name, number in seconds.items())
    print(f"\nFiles: {megabytes:.1f} MB. One image, process start included: {told}.")
    return {"megabytes": megabytes, "seconds": seconds}


def write_prompt_sheet(evaluation: Evaluation, seeds: int = 6) -> Results:
    """The training's sample prompts by seeds, to look at."""
    prompts = [prompt for prompt in evaluation.recipe.scenes.prompts for _ in range(seeds)]
    anything = evaluation.recipe.scenes.scene_at(0)
    tasks = [Task(anything, prompt, seed=32 + i % seeds) for i, prompt in enumerate(prompts)]
    labels = ["\n".join(wrap(prompt)) for prompt in prompts]
    path = evaluation.run / "prompts.png"
    write_sheet(path, generate(evaluation.model, tasks), columns=2 * seeds, labels=labels)
    print(f"\nSheet: {path}")
    return {"sheet": str(path)}


# --- edits ----------------------------------------------------------------------------------------

Change = Callable[[AnyScene, str, int], Tensor]
"""Makes an edited image of a drawn scene, a prompt and a seed."""


def evaluate_edits(evaluation: Evaluation) -> Results:
    """Change one attribute of renders and see whether it, and nothing else, changed."""
    classifier, model = evaluation.classifier, evaluation.model
    strength = evaluation.strength
    scenes = evaluation.recipe.scenes

    def img2img(scene: AnyScene, prompt: str, seed: int) -> Tensor:
        return model.img2img(render(scene, evaluation.recipe, model.size), prompt, seed, strength)

    def inpaint(scene: AnyScene, prompt: str, seed: int) -> Tensor:
        image = tensor_to_image(render(scene, evaluation.recipe, model.size))
        mask = Image.new("L", image.size, 0)
        mask.paste(255, scenes.subject_box(scene, model.size))
        inside = model.inpaint(image_to_tensor(image), mask_to_tensor(mask), prompt, seed)
        return image_to_tensor(composite(image, tensor_to_image(inside), mask))

    changes: dict[str, tuple[str, Change]] = {
        "img2img": (f"img2img, strength {strength:g}", img2img),
        "inpaint": ("inpaint", inpaint),
    }
    scores = {}
    sheet: list[Tensor] = []
    labels: list[str] = []
    for task, attribute, subjects in scenes.edits:
        how, change = changes[task]
        pairs = scenes.edit_scenes(attribute, evaluation.edits, subjects)
        images = []
        for i, (scene, target) in enumerate(pairs):
            prompt = scenes.caption(target, np.random.default_rng([EDIT_WORDS, i]), complete=True)
            images.append(change(scene, prompt, i))
            if i < 8:
                sheet += [render(scene, evaluation.recipe, model.size), images[-1]]
                labels += [f"{how}\n{attribute}", "\n".join(wrap(prompt)[:2])]
        tell(f"{len(images)} edits: {how}, {attribute}")
        targets = [target for _, target in pairs]
        seen = classify(classifier, images)
        scores[f"{how}: {attribute}"] = score_edits(targets, seen, attribute)
    print_scores(f"edits ({evaluation.edits} each), %", scores)
    write_sheet(evaluation.run / "edits.png", sheet, columns=8, labels=labels)
    return scores


# --- command line ---------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Evaluation], Results]] = {
    "classifier": evaluate_classifier,
    "adherence": evaluate_adherence,
    "settings": evaluate_settings,
    "edits": evaluate_edits,
    "turbo": evaluate_turbo,
    "cost": evaluate_cost,
    "sheet": write_prompt_sheet,
}


def with_files(options: dict[str, Any]) -> dict[str, Any]:
    """The options with the folder of the weights that they mean, and the recipe of these."""
    run, files = options["run"], options["files"]
    state, untrained = options.pop("state"), options.pop("untrained")
    named = options["recipe"]
    if named is None:
        named = "demo" if state or untrained else read_bundle(files or BUNDLE).recipe
    recipe = RECIPES[named]
    if state:
        files = run / "state"
        write_averages(TrainingOptions(run=run, recipe=recipe), files, torch.float32)
    elif untrained:
        files = run / "untrained"
        write_untrained(recipe, files)
    renders = recipe.reader_renders if options["renders"] is None else options["renders"]
    return {**options, "files": files or BUNDLE, "recipe": recipe, "renders": renders}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", choices=["all", *PARTS], nargs="+")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of the classifier and sheets"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--files", type=Path, help="folder of other weights than the bundled ones")
    source.add_argument("--state", action="store_true", help="measure the training state in RUN")
    source.add_argument("--untrained", action="store_true", help="measure the speed of any weights")
    parser.add_argument("--recipe", choices=list(RECIPES), help="that of the weights")
    parser.add_argument("--renders", type=int, help="scenes that the classifier is trained on")
    parser.add_argument(
        "--prompts", type=int, default=216, help="prompts of the table of adherence"
    )
    parser.add_argument("--setting-prompts", type=int, default=54, help="prompts for each setting")
    parser.add_argument("--edits", type=int, default=40, help="edits of each kind")
    parser.add_argument("--strength", type=float, default=0.8, help="strength of img2img")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    parser.add_argument("--threads", type=int, help="threads of torch")
    options = vars(parser.parse_args(arguments))

    parts, target, threads = options.pop("parts"), options.pop("json"), options.pop("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    evaluation = Evaluation(**with_files(options))
    results = {}
    for part in PARTS if "all" in parts else parts:
        results[part] = PARTS[part](evaluation)
        if target is not None:
            target.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
