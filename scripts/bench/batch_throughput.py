"""Images an hour of a batch, of a shell loop, and of diffusers in a Python loop, side by side.

    python -m scripts.bench.batch_throughput --images 8 --steps 10

Each is timed from the start of its process to its end. ``--ray 1,2`` adds Ray clusters of so many
workers, if Ray is installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from sdpy.zoo.variants import VARIANTS

SUBJECTS = ("a castle at dusk", "a cat at noon", "a house in the snow", "a robot at night")

DIFFUSERS_LOOP = """
import sys, torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
folder, steps, prompts = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
pipeline = StableDiffusionPipeline.from_pretrained(
    folder, safety_checker=None, torch_dtype=torch.float32
)
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
pipeline.set_progress_bar_config(disable=True)
for k, prompt in enumerate(prompts):
    generator = torch.Generator().manual_seed(k)
    image = pipeline(
        prompt, num_inference_steps=steps, guidance_scale=4.0, generator=generator,
        height=128, width=128
    ).images[0]
    image.save(f"diffusers-{k}.png")
"""


def main() -> None:
    """Time all ways, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--ray", default="")
    chosen = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        prompts = [SUBJECTS[k % len(SUBJECTS)] for k in range(chosen.images)]
        lines = (f"{prompt} --seed {k}" for k, prompt in enumerate(prompts))
        (folder / "jobs.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        merges = VARIANTS["demo"].bundled
        assert merges is not None
        convert = ["convert", str(merges), "demo", "--vocab-file", str(merges / "merges.txt"), "-q"]
        subprocess.run([sys.executable, "-m", "sdpy", *convert], cwd=folder, check=True)
        steps = ("--steps", str(chosen.steps))
        batch = [sys.executable, "-m", "sdpy", "batch", "jobs.txt", "-m", "demo", *steps, "-q"]
        seconds = {"sdpy batch": timed(folder, [*batch, "-o", "batch/{index}.png"])}
        began = time.monotonic()
        for k, prompt in enumerate(prompts):
            single = [sys.executable, "-m", "sdpy", "generate", prompt, "-m", "demo", "-q"]
            timed(folder, [*single, *steps, "--seed", str(k), "-o", f"single-{k}.png"])
        seconds["a shell loop of sdpy generate"] = time.monotonic() - began
        loop = [sys.executable, "-c", DIFFUSERS_LOOP, "demo", str(chosen.steps), *prompts]
        seconds["diffusers in a Python loop"] = timed(folder, loop)
        for count in filter(None, chosen.ray.split(",")):
            workers = ("--engine", "ray", "--workers", count, "-o", f"ray-{count}/{{index}}.png")
            seconds[f"sdpy batch, Ray workers: {count}"] = timed(folder, [*batch, *workers])
    print("| | seconds | seconds an image | beside sdpy batch |")
    print("|---|---:|---:|---:|")
    for way, taken in seconds.items():
        ratio = taken / seconds["sdpy batch"]
        print(f"| {way} | {taken:.1f} | {taken / chosen.images:.2f} | {ratio:.2f} |")


def timed(folder: Path, command: list[str]) -> float:
    """Seconds that a command takes."""
    began = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
