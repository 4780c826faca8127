"""Kills a batch again and again, and compares what it leaves with an undisturbed run.

    python -m scripts.bench.interrupted_batch --images 500 --kills 20

The undisturbed run also says how much memory and how many open files the process has at its 10th
and at its last image.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

SUBJECTS = ("a castle", "a cat", "a house", "trees", "a robot", "a lighthouse")
TIMES = ("at night", "at noon", "at dusk", "at dawn", "in the snow")


def main() -> None:
    """Run both, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_jobs(folder / "jobs.txt", chosen.images, draw)
        began = time.monotonic()
        for line in undisturbed(folder, chosen.images, chosen.steps):
            print(line)
        seconds = time.monotonic() - began
        print(f"undisturbed: {seconds:.0f} s")
        moments = sorted(draw.uniform(0.02, 0.9) * chosen.images for _ in range(chosen.kills))
        killed(folder, [int(moment) for moment in moments], chosen.steps)
        compare(folder, chosen.images)


def write_jobs(path: Path, images: int, draw: random.Random) -> None:
    """A text file with a prompt and a seed a line."""
    lines = (
        f"{draw.choice(SUBJECTS)} {draw.choice(TIMES)} --seed {draw.randrange(2**32)}"
        for _ in range(images)
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def start(folder: Path, out: str, steps: int) -> subprocess.Popen[str]:
    """The batch as a process of its own."""
    command = [sys.executable, "-m", "sdpy", "batch", "jobs.txt", "-m", "demo"]
    command += ["--steps", str(steps), "-o", f"{out}/{{index:05d}}.png", "--progress", "none"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


def undisturbed(folder: Path, images: int, steps: int) -> list[str]:
    """Run to the end; memory and open files after the 10th and after the last image."""
    lines = []
    with start(folder, "whole", steps) as process:
        assert process.stdout is not None
        for number, _ in enumerate(process.stdout, start=1):
            if number in (10, images // 2, images):
                lines.append(f"after image {number}: {state_of(process.pid)}")
    if process.returncode:
        sys.exit(f"the undisturbed run ended with {process.returncode}")
    return lines


def state_of(pid: int) -> str:
    """Memory and open files of a process, as Linux says."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return (
            f"{int(resident.split()[1]) / 1024:.0f} MB, {len(os.listdir(f'/proc/{pid}/fd'))} files"
        )
    except (FileNotFoundError, StopIteration):
        return "the process has ended"


def killed(folder: Path, moments: list[int], steps: int) -> None:
    """Kill a run each time that so many images are there, then let it end."""
    repeated = 0
    made: dict[str, int] = {}
    for moment in [*moments, None]:
        with start(folder, "parts", steps) as process:
            assert process.stdout is not None
            if moment is not None:
                while len(list((folder / "parts").glob("*.png"))) < moment:
                    if process.poll() is not None:
                        break
                    time.sleep(0.005)
                time.sleep(random.random() * 0.2)
                process.send_signal(signal.SIGKILL)
            for line in process.stdout:
                made[line] = made.get(line, 0) + 1
        left = [path.name for path in (folder / "parts").glob(".sdpy-*.tmp")]
        if left:
            print(f"killed at {moment} images: left {left}")
        if moment is None and process.returncode:
            sys.exit(f"the last run ended with {process.returncode}")
    repeated = sum(count - 1 for count in made.values())
    print(f"killed {len(moments)} times; images written twice: {repeated}")


def compare(folder: Path, images: int) -> None:
    """Compare the images of both runs in every pixel."""
    whole, parts = (sorted((folder / name).glob("*.png")) for name in ("whole", "parts"))
    names = [path.name for path in whole]
    if names != [path.name for path in parts] or len(names) != images:
        sys.exit(f"{len(whole)} images in the one run, {len(parts)} in the other")
    differing = [
        one.name
        for one, other in zip(whole, parts, strict=True)
        if not np.array_equal(pixels(one), pixels(other))
    ]
    print(f"{images} images, {len(differing)} of them differ: {differing[:5]}")
    sys.exit(bool(differing))


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3), 8 bits."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


if __name__ == "__main__":
    main()
