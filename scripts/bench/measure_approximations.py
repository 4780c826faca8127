"""Measure what the approximations save, and what is lost by them.

    python -m scripts.bench.measure_approximations demo --run runs/demo \\
        --write docs/speed-and-memory.md
    python -m scripts.bench.measure_approximations full-size --write docs/speed-and-memory.md

``demo`` generates images of prompts with the demo model, each prompt with all configurations, one
after the other, so that whatever else the machine does slows all of them alike. For each it tells
how much faster an image was than the exact one of the same prompt (the median over the prompts),
how near it is to that one, and how many images show what was asked for, as judged by
``RUN/classifier.pt``, which ``python -m scripts.demo.evaluate classifier`` trains. ``full-size``
measures only the time: of one evaluation of Stable Diffusion 1.5's UNet, and of its decoder, with
random weights at 512x512.

``--write`` puts the tables into a Markdown file, between the comments that name them
``approximations-demo`` and ``approximations-full-size``.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.bench.run import machine
from scripts.demo.adherence import score, withheld_tasks
from scripts.demo.classifier import CLASSIFIER_FILE, classify, load_classifier
from scripts.demo.recipes import RECIPES
from scripts.demo.sheets import psnr
from scripts.demo.training.models import CONSISTENCY_FILE
from scripts.demo.training.tiny_autoencoder import TINY_VAE_FILE
from scripts.engine import DemoModel
from scripts.reports import tell, write_between
from sdpy.benchmark.figures import table
from sdpy.models import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from sdpy.optimizations.approximate import DeepCache, TokenMerging, UNet, approximate
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact import apply_passes
from sdpy.runtime.allocator import keep_freed_memory
from sdpy.zoo.variants import SD15

EXACT = "exact"


@dataclass(frozen=True)
class Configuration:
    """A way to generate images: its name, and what differs from the exact one.

    Attributes:
        name: its options on the command line.
        settings: fields of `sdpy.pipelines.request.Request` that differ.
        files: weights, in the run's folder, that take the place of the demo model's, by component;
            the configuration is left out where one is missing.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


FEW = {"scheduler": "lcm", "steps": 4}
DISTILLED, TINY_VAE = {"unet": CONSISTENCY_FILE}, {"vae": TINY_VAE_FILE}

CONFIGURATIONS = (
    Configuration(EXACT),
    Configuration("`--deepcache 2`", {"deepcache": 2}),
    Configuration("`--deepcache 3`", {"deepcache": 3}),
    Configuration("`--deepcache 5`", {"deepcache": 5}),
    Configuration("`--deepcache 3 --deepcache-branch 2`", {"deepcache": 3, "deepcache_branch": 2}),
    Configuration("`--token-merging 0.5`", {"token_merging": 0.5}),
    Configuration("`--guidance-interval 0.2,0.8`", {"guidance_interval": (0.2, 0.8)}),
    Configuration("`--guidance-interval 0,0.5`", {"guidance_interval": (0.0, 0.5)}),
    Configuration(
        "`--deepcache 3 --guidance-interval 0,0.5`",
        {"guidance_interval": (0.0, 0.5), "deepcache": 3},
    ),
    Configuration("tiny decoder", files=TINY_VAE),
    Configuration("`--steps 10`", {"steps": 10}),
    Configuration("`--steps 10 --scheduler dpm++-2m`", {"steps": 10, "scheduler": "dpm++-2m"}),
    Configuration("`--steps 4 --scheduler lcm`, not distilled for it", FEW),
    Configuration("`--steps 4 --scheduler lcm`, distilled UNet", FEW, DISTILLED),
    Configuration("the same with the tiny decoder", FEW, DISTILLED | TINY_VAE),
)
"""The exact one comes first. Those that just take fewer steps are there to compare with."""


# --- the demo model -------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Seconds and images of a configuration, prompt by prompt."""

    seconds: list[float] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)


def measure_demo(run: Path, folder: Path | None, prompts: int) -> str:
    """Generate ``prompts`` prompts with all configurations; returns a Markdown table."""
    classifier = load_classifier(run / CLASSIFIER_FILE, RECIPES["demo"])
    tasks = withheld_tasks(prompts)
    configurations = [
        one for one in CONFIGURATIONS if all((run / file).exists() for file in one.files.values())
    ]
    outcomes = {one.name: Outcome() for one in configurations}
    models = {
        one.name: DemoModel.open(folder, files={n: run / file for n, file in one.files.items()})
        for one in configurations
    }
    for one in configurations:  # loads and warms up
        models[one.name].generate(tasks[0].prompt, tasks[0].seed, **{**one.settings, "steps": 2})
    for i, task in enumerate(tasks, start=1):
        for one in configurations:
            started = time.perf_counter()
            image = models[one.name].generate(task.prompt, task.seed, **one.settings)
            outcomes[one.name].seconds.append(time.perf_counter() - started)
            outcomes[one.name].images.append(image.clamp(-1, 1))
        seconds = sum(outcome.seconds[-1] for outcome in outcomes.values())
        tell(f"{i} of {prompts} prompts, {seconds:.1f} s each")

    exact = outcomes[EXACT]
    asked = [task.scene for task in tasks]
    rows = []
    for name, outcome in outcomes.items():
        ratios = [a / b for a, b in zip(exact.seconds, outcome.seconds, strict=True)]
        adherence = score(asked, classify(classifier, outcome.images))["all"]
        rows.append(
            [
                name,
                f"{statistics.median(ratios):.2f}",
                "" if name == EXACT else f"{mean_psnr(outcome.images, exact.images):.1f}",
                f"{adherence:.0f}",
            ]
        )
    note = (
        f"Demo model, 128x128, 30 steps, {prompts} prompts; an exact image takes "
        f"{statistics.median(exact.seconds):.1f} s with the models loaded. {_computed_on()}"
    )
    head = ["", "times as fast", "PSNR to exact, dB", "shows what was asked, %"]
    return f"{table(head, rows)}\n\n{note}"


def mean_psnr(images: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Mean PSNR in decibels of images in [-1, 1]; infinite where one is exact."""
    errors = [F.mse_loss(a, b).item() for a, b in zip(images, exact, strict=True)]
    return statistics.fmean(map(psnr, errors))


# --- Stable Diffusion's size ----------------------------------------------------------------------


def measure_full_size(rounds: int) -> str:
    """Time the parts of Stable Diffusion 1.5 in turn; returns a Markdown table."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(SD15.unet).eval()
    vae = AutoencoderKL(SD15.vae).eval()
    tiny_vae = AutoencoderTiny(SD15.tiny_vae).eval()
    for model in (unet, vae, tiny_vae):
        apply_passes(model, PassContext(fast_kernels=True, tiled=True))
    side = SD15.sample_size // SD15.vae.downsample_factor
    latents = torch.randn(1, SD15.unet.in_channels, side, side)
    context = torch.randn(2, 77, SD15.unet.cross_attention_dim)
    prompt_alone = context[1:]

    def evaluate(called: UNet, context: Tensor = context) -> None:
        called(latents, torch.tensor(500), context)

    seconds: dict[str, list[float]] = collections.defaultdict(list)

    def measure(name: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        seconds[name].append(time.perf_counter() - started)

    def measure_all() -> None:
        with approximate(unet, [DeepCache(sys.maxsize)], seeds=[0]) as cached:
            measure("whole", partial(evaluate, cached))
            measure("reused", partial(evaluate, cached))
        for ratio in MERGING_RATIOS:
            with approximate(unet, [TokenMerging(ratio)], seeds=[0]) as merging:
                measure(f"merging {ratio:g}", partial(evaluate, merging))
        measure("unguided", partial(evaluate, unet, prompt_alone))
        measure("decoder", partial(vae.decode, latents))
        measure("tiny decoder", partial(tiny_vae.decode, latents))

    with torch.inference_mode():
        for i in range(rounds + 1):  # the first warms up
            measure_all()
            tell(f"round {i} of {rounds}, {sum(times[-1] for times in seconds.values()):.0f} s")
    return full_size_table({name: statistics.median(t[1:]) for name, t in seconds.items()})


MERGING_RATIOS = (0.25, 0.5, 0.75)
INTERVALS = (2, 3, 5)


def full_size_table(seconds: dict[str, float]) -> str:
    """Mean times of a step of the denoising loop, from the medians of what was timed."""
    whole, decoder = seconds["whole"], seconds["decoder"]
    steps = {EXACT: whole}
    for n in INTERVALS:
        steps[f"`--deepcache {n}`"] = (whole + (n - 1) * seconds["reused"]) / n
    for ratio in MERGING_RATIOS:
        steps[f"`--token-merging {ratio:g}`"] = seconds[f"merging {ratio:g}"]
    steps["`--guidance-interval 0.2,0.8`"] = 0.6 * whole + 0.4 * seconds["unguided"]
    rows = [[name, f"{s:.2f}", f"{whole / s:.2f}"] for name, s in steps.items()]
    rows.append(["decoder", f"{decoder:.2f}", ""])
    tiny = seconds["tiny decoder"]
    rows.append(["tiny decoder (`--vae-weights`)", f"{tiny:.2f}", f"{decoder / tiny:.2f}"])
    note = (
        "Stable Diffusion 1.5's sizes, 512x512, random weights; a step of the UNet with guidance "
        f"on average. {_computed_on()}"
    )
    return f"{table(['', 's', 'times as fast'], rows)}\n\n{note}"


def _computed_on() -> str:
    return f"{machine()['processor']}, {torch.get_num_threads()} threads, fp32."


# --- command line ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", choices=["demo", "full-size"], nargs="+")
    parser.add_argument("--run", type=Path, help="folder of the classifier and distilled models")
    parser.add_argument("--files", type=Path, help="folder of other weights than the bundled ones")
    parser.add_argument("--prompts", type=int, default=36, help="prompts of the demo model")
    parser.add_argument("--rounds", type=int, default=3, help="rounds at full size")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--write", type=Path, help="Markdown file to put the tables into")
    options = parser.parse_args(arguments)
    if "demo" in options.parts and options.run is None:
        parser.error("demo needs --run")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    for part in options.parts:
        if part == "demo":
            text = measure_demo(options.run, options.files, options.prompts)
        else:
            text = measure_full_size(options.rounds)
        print(f"\n{text}", flush=True)
        if options.write is not None:
            write_between(options.write, f"approximations-{part}", text)


if __name__ == "__main__":
    main()
