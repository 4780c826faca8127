"""Drawing scenes and tokenising their captions in processes of their own, beside training.

`Renderer` starts this module as a program, which gets its `RenderJob` on its standard input and
appends to two files, image by image. The program and its workers import no torch, so that they
start at once, and leave the processor to the training where both want it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.demo.scene_sets import SceneSet
from sdpy.text.tokenizer import CLIPTokenizer

NICENESS = 5
"""How far the drawing stands back behind the training."""

STOP_SECONDS = 10
"""Time that the program has to end its workers."""

CHUNK = 8
"""Scenes that a worker gets at a time."""


class RenderError(Exception):
    """The drawing has ended early."""


@dataclass(frozen=True)
class RenderJob:
    """What is drawn, and where to.

    Attributes:
        scenes: the set of scenes.
        seed: number of its endless set.
        size: pixels a side of an image.
        count: scenes that are drawn at most, from number 0 on.
        versions: captions of each; 0 for images alone.
        length: token ids of a caption, filled up with the end token.
        merges: file of the tokenizer's merges.
        vocab_size: of the tokenizer.
        images: file of the pixels, (N, size, size, 3) uint8.
        captions: file of the token ids, (N, versions, length) int16; empty without captions.
        held_out: whether the scenes are withheld from training (True), the others, or all (None).
    """

    scenes: SceneSet
    seed: int
    size: int
    count: int
    versions: int
    length: int
    merges: Path
    vocab_size: int
    images: Path
    captions: Path
    held_out: bool | None = False

    @property
    def drawn(self) -> int:
        """Scenes that are in both files as a whole."""
        sizes = [(self.images, self.image_bytes)]
        if self.versions:
            sizes.append((self.captions, self.caption_bytes))
        return min(file.stat().st_size // size if file.exists() else 0 for file, size in sizes)

    @property
    def image_bytes(self) -> int:
        """Size of an image in its file."""
        return 3 * self.size**2

    @property
    def caption_bytes(self) -> int:
        """Size of a scene's captions in their file."""
        return 2 * self.versions * self.length

    def draw(self, index: int) -> tuple[bytes, bytes]:
        """The pixels and the token ids of a scene, as they are in the files."""
        scene = self.scenes.scene_at(index, self.seed, self.held_out)
        pixels = self.scenes.draw(scene, self.size).tobytes()
        if not self.versions:
            return pixels, b""
        texts = [
            self.scenes.caption_at(index, self.seed, self.held_out, version)
            for version in range(self.versions)
        ]
        tokenizer = _tokenizer(self.merges, self.vocab_size)
        return pixels, tokenize(tokenizer, texts, self.length).astype(np.int16).tobytes()


@lru_cache(maxsize=1)
def _tokenizer(merges: Path, vocab_size: int) -> CLIPTokenizer:
    return CLIPTokenizer.from_file(merges, vocab_size=vocab_size)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str], length: int) -> npt.NDArray[np.int64]:
    """Token ids (B, length): start, the caption's tokens, and the end up to the full length."""
    ids: npt.NDArray[np.int64] = np.full((len(captions), length), tokenizer.end_id, np.int64)
    ids[:, 0] = tokenizer.start_id
    for row, caption in zip(ids, captions, strict=True):
        tokens = tokenizer.encode(caption)[: length - 2]
        row[1 : 1 + len(tokens)] = tokens
    return ids


# --- the side of the training ---------------------------------------------------------------------


class Renderer:
    """A program that draws until everything is drawn, or it is stopped, or this process ends.

    It goes on after what an earlier one has left in the files.
    """

    def __init__(self, job: RenderJob) -> None:
        self.job = job
        # Each of the workers would start threads of its own for its few products.
        alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scripts.demo.training.renderer"],
            stdin=subprocess.PIPE,
            env={**os.environ, **alone, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self.process.stdin is not None
        with self.process.stdin as stdin:
            pickle.dump(job, stdin)

    @property
    def drawn(self) -> int:
        """Scenes that have been drawn so far.

        Raises:
            RenderError: not all, and no more will come.
        """
        ended = self.process.poll() is not None  # asked first: it may be drawing the last
        drawn = self.job.drawn
        if ended and drawn < self.job.count:
            raise RenderError(f"the drawing ended with code {self.process.returncode}")
        return drawn

    def wait(self, count: int, seconds: float | None = None) -> int:
        """Wait for so many scenes, or until the time is over and there is at least one."""
        started = time.monotonic()
        while (drawn := self.drawn) < count:
            if seconds is not None and drawn > 0 and time.monotonic() - started > seconds:
                break
            time.sleep(0.05)
        return drawn

    def stop(self) -> int:
        """End the program; returns how many scenes there are."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:  # the training must not wait for what hangs
            self.process.kill()
            self.process.wait()
        return self.job.drawn


# --- the program ----------------------------------------------------------------------------------


def main() -> None:
    """Draw what the job on the standard input asks for."""
    job: RenderJob = pickle.load(sys.stdin.buffer)
    os.nice(NICENESS)
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: sys.exit(0))
    first = job.drawn
    for file, size in ((job.captions, job.caption_bytes), (job.images, job.image_bytes)):
        file.touch()
        os.truncate(file, first * size)
    with job.captions.open("ab", buffering=0) as captions, job.images.open("ab", 0) as images:
        for pixels, ids in _drawn(job, first):
            captions.write(ids)
            images.write(pixels)


def _drawn(job: RenderJob, first: int) -> Iterator[tuple[bytes, bytes]]:
    """The scenes from number ``first`` on, while the process that asked for them lives."""
    parent = os.getppid()
    context: Any = multiprocessing.get_context("spawn")
    with context.Pool(drawing_processes(), _ignore_interrupts) as pool:
        for drawn in pool.imap(job.draw, range(first, job.count), CHUNK):
            if os.getppid() != parent:
                return
            yield drawn


def drawing_processes(cores: int | None = None) -> int:
    """How many processes draw, with so many cores: one of many is left to the training."""
    cores = os.cpu_count() or 1 if cores is None else cores
    return cores if cores <= 2 else cores - 1


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
