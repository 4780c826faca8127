"""Measure what the approximations save, and what is lost by them.

    python scripts/measure_approximations.py demo --run runs/demo --write README.md
    python scripts/measure_approximations.py full-size --write README.md

``demo`` paints prompts with the demo model, each prompt in all ways, one after the other, so that
whatever else the machine does slows all of them alike. For each way it tells how much faster a
picture was than the exact one of the same prompt (the median over the prompts), how near it is to
that one, and how many pictures show what was asked for, as read by ``RUN/reader.pt``, which
``scripts/evaluate_demo.py reader`` trains. ``full-size`` measures the time alone of one evaluation
of Stable Diffusion 1.5's UNet, and of its decoder, with random weights at 512x512.

``--write`` puts the tables between the comments in a Markdown file that name the parts.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import evaluate_demo as ev
from distil_demo import CONSISTENCY_FILE, TINY_VAE_FILE
from sdpy import pipelines
from sdpy.models import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from sdpy.optimizations.approximate import Approximation, DeepCache, TokenMerging, approximate
from sdpy.optimizations.exact import PassContext, apply_passes
from sdpy.pipelines import Components, Settings
from sdpy.runtime.allocator import keep_freed_memory
from sdpy.zoo.components import find_files
from sdpy.zoo.variants import DEMO, SD15
from train_demo import psnr

EXACT = "exact"


@dataclass(frozen=True)
class Way:
    """A way to paint: what it is called, and what is other than in the exact one.

    Attributes:
        name: its options on the command line.
        settings: changes of `Settings`.
        files: of the models that take the places of the demo model's, by the fields of
            `ModelFiles`, in the run's folder; the way is left out where one is missing.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def _approximated(*approximations: Approximation) -> dict[str, Any]:
    return {"approximations": approximations}


FEW = {"scheduler": "lcm", "steps": 4}
DISTILLED, TINY_VAE = {"unet": CONSISTENCY_FILE}, {"vae": TINY_VAE_FILE}

WAYS = (
    Way(EXACT),
    Way("`--deepcache 2`", _approximated(DeepCache(2))),
    Way("`--deepcache 3`", _approximated(DeepCache(3))),
    Way("`--deepcache 5`", _approximated(DeepCache(5))),
    Way("`--deepcache 3 --deepcache-branch 2`", _approximated(DeepCache(3, 2))),
    Way("`--token-merging 0.5`", _approximated(TokenMerging(0.5))),
    Way("`--guidance-interval 0.2,0.8`", {"guidance_interval": (0.2, 0.8)}),
    Way("`--guidance-interval 0,0.5`", {"guidance_interval": (0.0, 0.5)}),
    Way(
        "`--deepcache 3 --guidance-interval 0,0.5`",
        {"guidance_interval": (0.0, 0.5), **_approximated(DeepCache(3))},
    ),
    Way("tiny decoder", files=TINY_VAE),
    Way("`--steps 10`", {"steps": 10}),
    Way("`--steps 10 --scheduler dpm++-2m`", {"steps": 10, "scheduler": "dpm++-2m"}),
    Way("`--steps 4 --scheduler lcm`, not distilled for it", FEW),
    Way("`--steps 4 --scheduler lcm`, distilled UNet", FEW, DISTILLED),
    Way("the same with the tiny decoder", FEW, DISTILLED | TINY_VAE),
)
"""The exact one first. The plain ways to take fewer steps are there to compare with."""


# --- the demo model -------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a way of painting gave, prompt by prompt."""

    seconds: list[float] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)


def measure_demo(run: Path, files: Path | None, prompts: int, log: Callable[[str], None]) -> str:
    """Paint ``prompts`` prompts in all ways, and tell of them in a Markdown table."""
    reader = ev.load_reader(run)
    tasks = ev.withheld_tasks(prompts)
    ways = [way for way in WAYS if all((run / file).exists() for file in way.files.values())]
    outcomes = {way.name: Outcome() for way in ways}
    models = {way.name: find_components(run, files, way) for way in ways}
    for way in ways:  # loads and warms up
        paint(models[way.name], {**way.settings, "steps": 2}, tasks[0])
    for i, task in enumerate(tasks, start=1):
        for way in ways:
            started = time.perf_counter()
            picture = paint(models[way.name], way.settings, task)
            outcomes[way.name].seconds.append(time.perf_counter() - started)
            outcomes[way.name].pictures.append(picture.clamp(-1, 1))
        log(f"{i} of {prompts} prompts, {sum(o.seconds[-1] for o in outcomes.values()):.1f} s each")

    exact = outcomes[EXACT]
    asked = [task.scene for task in tasks]
    rows = []
    for name, outcome in outcomes.items():
        ratios = [a / b for a, b in zip(exact.seconds, outcome.seconds, strict=True)]
        adherence = ev.score(asked, ev.read(reader, outcome.pictures))["all"]
        rows.append(
            [
                name,
                f"{statistics.median(ratios):.2f}",
                "" if name == EXACT else f"{likeness(outcome.pictures, exact.pictures):.1f}",
                f"{adherence:.0f}",
            ]
        )
    seconds = statistics.median(exact.seconds)
    note = (
        f"Demo model, 128x128, 30 steps, {prompts} prompts, {torch.get_num_threads()} threads; "
        f"an exact picture takes {seconds:.1f} s with the models loaded."
    )
    head = ["", "times as fast", "PSNR to exact, dB", "shows what was asked, %"]
    return f"{table(head, rows)}\n\n{note}"


def find_components(run: Path, files: Path | None, way: Way) -> Components:
    """The models that a way takes, kept once they are loaded."""
    variant = DEMO if files is None else dataclasses.replace(DEMO, bundled=files)
    assert variant.bundled is not None
    found = find_files(variant, variant.bundled, {n: run / file for n, file in way.files.items()})
    return Components(variant, found, keep=frozenset({"text_encoder", "unet", "vae"}))


def paint(components: Components, changes: dict[str, Any], task: ev.Task) -> Tensor:
    """The task's picture."""
    settings = Settings(task.prompt, seed=task.seed, **changes)
    side = components.variant.sample_size
    return ev.painted(pipelines.generate(components, settings, width=side, height=side))


def likeness(pictures: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Mean PSNR in decibels of pictures in [-1, 1]; infinite where one is exact."""
    errors = [F.mse_loss(a, b).item() for a, b in zip(pictures, exact, strict=True)]
    return statistics.fmean(psnr(error) if error else math.inf for error in errors)


# --- Stable Diffusion's size ----------------------------------------------------------------------


def measure_full_size(rounds: int, log: Callable[[str], None]) -> str:
    """Time the parts of Stable Diffusion 1.5 in turn, and tell of them in a Markdown table."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(SD15.unet).eval()
    autoencoder = AutoencoderKL(SD15.vae).eval()
    tiny_autoencoder = AutoencoderTiny(SD15.tiny_vae).eval()
    for model in (unet, autoencoder, tiny_autoencoder):
        apply_passes(model, PassContext(fast_kernels=True, tiled=True))
    decoder, tiny_decoder = autoencoder.decoder, tiny_autoencoder.decoder
    side = SD15.sample_size // SD15.vae.downsample_factor
    latents = torch.randn(1, SD15.unet.in_channels, side, side)
    context = torch.randn(2, 77, SD15.unet.cross_attention_dim)
    prompt_alone = context[1:]

    def evaluate(context: Tensor = context) -> None:
        unet(latents.expand(len(context), -1, -1, -1), torch.tensor(500), context)

    seconds: dict[str, list[float]] = collections.defaultdict(list)

    def measure(name: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        seconds[name].append(time.perf_counter() - started)

    def measure_all() -> None:
        with approximate(unet, [DeepCache(sys.maxsize)], seed=0):
            measure("whole", evaluate)
            measure("reused", evaluate)
        for ratio in MERGING_RATIOS:
            with approximate(unet, [TokenMerging(ratio)], seed=0):
                measure(f"merging {ratio:g}", evaluate)
        measure("unguided", lambda: evaluate(prompt_alone))
        measure("decoder", lambda: decoder(latents))
        measure("tiny decoder", lambda: tiny_decoder(latents))

    with torch.inference_mode():
        for i in range(rounds + 1):  # the first warms up
            measure_all()
            log(f"round {i} of {rounds}, {sum(times[-1] for times in seconds.values()):.0f} s")
    return full_size_table({name: statistics.median(t[1:]) for name, t in seconds.items()})


MERGING_RATIOS = (0.25, 0.5, 0.75)
INTERVALS = (2, 3, 5)


def full_size_table(seconds: dict[str, float]) -> str:
    """Means of a step over a long walk, from the medians of what was timed."""
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
        "Stable Diffusion 1.5's sizes, 512x512, random weights, float32 on "
        f"{torch.get_num_threads()} threads; a step of the UNet with guidance on average."
    )
    return f"{table(['', 's', 'times as fast'], rows)}\n\n{note}"


# --- tables and command line ----------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_between(path: Path, part: str, text: str) -> None:
    """Put ``text`` between the comments that name ``part`` in a Markdown file.

    Raises:
        ValueError: the file has no such comments.
    """
    begin, end = f"<!-- measured: {part} -->", f"<!-- end: {part} -->"
    before = path.read_text(encoding="utf-8")
    pattern = re.compile(f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", re.DOTALL)
    after, count = pattern.subn(lambda _: f"\n{text}\n\n", before)
    if count != 1:
        raise ValueError(f"{path}: {begin} and {end} are there {count} times instead of once")
    path.write_text(after, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", choices=["demo", "full-size"], nargs="+")
    parser.add_argument("--run", type=Path, help="folder of the reader and of distilled models")
    parser.add_argument("--files", type=Path, help="folder of other weights than the bundled ones")
    parser.add_argument("--prompts", type=int, default=36, help="of the demo model")
    parser.add_argument("--rounds", type=int, default=3, help="at full size")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--write", type=Path, help="Markdown file to put the tables into")
    options = parser.parse_args(arguments)
    if "demo" in options.parts and options.run is None:
        parser.error("demo needs --run")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    for part in options.parts:
        if part == "demo":
            text = measure_demo(options.run, options.files, options.prompts, ev.tell)
        else:
            text = measure_full_size(options.rounds, ev.tell)
        print(f"\n{text}", flush=True)
        if options.write is not None:
            write_between(options.write, part, text)


if __name__ == "__main__":
    main()
