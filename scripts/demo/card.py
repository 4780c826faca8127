"""The model card of a demo model that has been trained in one run, from what the run has left."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.demo.recipes import RECIPES
from sdpy.benchmark.figures import table
from sdpy.checkpoints import read_checkpoint
from sdpy.zoo.bundle import TURBO, Bundle, read_bundle

NAMES = {
    "text_encoder": "text encoder",
    "unet": "UNet",
    TURBO: "UNet for few steps (`--model demo-turbo`)",
    "vae": "autoencoder",
}
"""The components in the order of the card."""

WEAK = 95.0
"""Values that fewer per cent of the images show are told as the model's weaknesses."""


@dataclass(frozen=True)
class Facts:
    """What is known of a run.

    Attributes:
        bundle: what its exported files say of themselves.
        parameters: numbers of each network.
        evaluation: the JSON of `scripts.demo.evaluate`.
        options: of the training.
        steps: training steps that each stage has done.
        decibels: signal-to-noise ratio of the autoencoder on fresh images; NaN if it is unknown.
        minutes: that all stages took.
    """

    bundle: Bundle
    parameters: Mapping[str, int]
    evaluation: Mapping[str, Any]
    options: Mapping[str, Any]
    steps: Mapping[str, int]
    decibels: float
    minutes: float

    @classmethod
    def of(cls, run: Path, files: Path, evaluation: Path) -> Facts:
        """Read what a run has left: its exported files, its log, and its evaluation."""
        log = (run / "log.txt").read_text(encoding="utf-8")
        steps = re.findall(r"^\S+ (\S+): step (\d+) of", log, re.MULTILINE)
        fresh = re.findall(r"(?:autoencoder|decoder): fresh images: (\S+) dB", log)
        clock = json.loads((run / "clock.json").read_text(encoding="utf-8"))
        bundle = read_bundle(files)
        return cls(
            bundle=bundle,
            parameters={
                name: sum(map(math.prod, _shapes(files / f"{name}.ot")))
                for name in NAMES
                if name in bundle.configs
            },
            evaluation=json.loads(evaluation.read_text(encoding="utf-8")),
            options=json.loads((run / "options.json").read_text(encoding="utf-8")),
            steps={stage: int(step) for stage, step in steps},
            decibels=float(fresh[-1]) if fresh else math.nan,
            minutes=sum(clock.values()) / 60,
        )


def _shapes(file: Path) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in read_checkpoint(file).tensors.values()]


@dataclass(frozen=True)
class Goal:
    """Something that a model is to reach before it is shipped."""

    what: str
    reached: bool


def goals(facts: Facts) -> list[Goal]:
    """What the model is to reach, and whether it does."""
    found = facts.evaluation
    rows = found["adherence"]["rows"]
    reader = found.get("classifier", {})
    fresh = min((_worst(row) for row in reader.values()), default=_worst(rows["renders"]))
    reconstructed = _worst(rows["reconstructions"])
    cost, size = found["cost"], facts.parameters
    reached = [
        Goal(f"the reader knows {fresh:.1f} % of fresh renders, at least 98", fresh >= 98),
        Goal(f"the autoencoder has {facts.decibels:.1f} dB, at least 32", facts.decibels >= 32),
        Goal(f"{reconstructed:.1f} % are read after it, at least 98", reconstructed >= 98),
        Goal(f"the UNet has {size['unet'] / 1e6:.1f} M numbers, at most 12", size["unet"] <= 12e6),
        Goal(
            f"the text encoder has {size['text_encoder'] / 1e6:.2f} M numbers, at most 1.5",
            size["text_encoder"] <= 1.5e6,
        ),
        Goal(f"all files have {cost['megabytes']:.1f} MB, at most 30", cost["megabytes"] <= 30),
    ]
    limits = {"demo": 6.0, "demo-turbo": 2.5}
    for name, seconds in cost["seconds"].items():
        limit = limits[name]
        told = f"an image of {name} takes {seconds:.1f} s, at most {limit:g}"
        reached.append(Goal(told, seconds <= limit))
    if found.get("turbo"):
        student = list(found["turbo"].values())[-1]
        lost = max(rows["generated"][name] - student[name] for name in student if name != "all")
        told = f"demo-turbo loses {lost:.1f} points of an attribute, at most 3"
        reached.append(Goal(told, lost <= 3))
    return reached


def _worst(row: Mapping[str, float]) -> float:
    return min(v for name, v in row.items() if name != "all" and not math.isnan(v))


def write_card(facts: Facts) -> str:
    """The model card as Markdown."""
    recipe = RECIPES[facts.bundle.recipe]
    values = recipe.scenes.values
    found, size = facts.evaluation, recipe.size
    rows = [
        [NAMES[name], f"{count / 1e6:.1f} M", f"`{name}.ot`"]
        for name, count in facts.parameters.items()
    ]
    merges = recipe.variant.text_encoder.vocab_size - 514
    rows.append(["byte-pair merges, in CLIP's file format", str(merges), "`merges.txt`"])
    prompts = ", ".join(f'"{prompt}"' for prompt in recipe.scenes.prompts[1:7])
    known = "\n".join(
        f"- {name}: {', '.join(value for value in values[name] if value != 'none')}"
        for name in values
        if not name.startswith("second")
    )
    megabytes = found["cost"]["megabytes"]
    pairs = "One or two subjects in an image. " if "second" in values else ""
    seconds = "; ".join(
        f"`{name}` {value:.1f} s" for name, value in found["cost"]["seconds"].items()
    )
    return f"""# Model card: the demo model

A small Stable Diffusion that comes with sdpy, so that everything can be tried without a download.
It has the architecture of the large models (CLIP text encoder, autoencoder, UNet with
cross-attention, classifier-free guidance) and runs through the same code.

{table(["component", "parameters", "file"], rows)}

All weights are stored in float16, {megabytes:.1f} MB in total, under the licence of sdpy. By
default they run in float32. The file `model.json` holds their sizes.

## What it knows

Images of {size}x{size} pixels. {pairs}Prompts are plain English, such as {prompts}.

{known}

## Data and training

All images and captions were made by code of this repository; no image or text of anybody else is
in the data. One combination of attributes in ten was withheld for the evaluation. The recipe is
`{facts.bundle.recipe}` (`scripts/demo/recipes.py`), and `scripts/README.md` says how it is trained.

{_training(facts)}

## Figures

Images of prompts whose combinations of attributes were withheld from training, with 30 steps and
guidance scale 4, were classified by a network that was trained on separate renders
(`scripts/demo/evaluate.py`). Values that a prompt need not name do not count.

{_scores("% as asked", found["adherence"]["rows"])}
{_section("The same with other numbers of steps and guidance scales:", found.get("settings"))}
{_section("The UNet for few steps:", found.get("turbo"))}
{_section("Edits, of which each is to change one attribute of a render:", found.get("edits"))}
{_section("The classifier itself:", found.get("classifier"))}
An image, process start included, takes: {seconds}.

## What it cannot do

- Anything that it has not seen: other subjects, text, people.
- Words outside its vocabulary of about two hundred: their byte pairs were never trained.
- Sizes far from {size}x{size} pixels.
{_weaknesses(found["adherence"]["by value"])}"""


def _training(facts: Facts) -> str:
    options = facts.options
    batch = {"autoencoder": options["autoencoder_batch"] or options["batch"]}
    batch["decoder"] = batch["autoencoder"]
    lines = [
        f"- {stage}: {steps:,} steps of {batch.get(stage, options['batch'])} samples"
        for stage, steps in facts.steps.items()
    ]
    told = f"The training took {facts.minutes:.0f} minutes on `{options['device']}`, in bf16."
    quality = f"The autoencoder has {facts.decibels:.1f} dB on unseen images."
    return "\n".join([*lines, "", f"{told} {quality}"])


def _scores(first: str, scores: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(next(iter(scores.values())))
    rows = [[name, *(f"{row[column]:.1f}" for column in columns)] for name, row in scores.items()]
    return table([first, *columns], rows)


def _section(title: str, scores: Mapping[str, Mapping[str, float]] | None) -> str:
    return f"\n{title}\n\n{_scores('%', scores)}\n" if scores else ""


def _weaknesses(by_value: Mapping[str, float]) -> str:
    weak = sorted((share, value) for value, share in by_value.items() if share < WEAK)
    if not weak:
        return ""
    told = ", ".join(f"{value} ({share:.0f} %)" for share, value in weak)
    return f"- What it shows least reliably: {told}.\n"
