"""The training data: drawn images, and captions as token ids."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scripts.demo import scenes
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.trainer import Log
from sdpy.text.tokenizer import WORD_END, CLIPTokenizer
from sdpy.zoo.variants import DEMO

SIZE = DEMO.sample_size
"""Pixels a side of an image."""

(MERGES_FILE,) = DEMO.files.vocabulary

MERGE_CAPTIONS = 20_000
"""Captions from which the byte-pair merges are learned."""


# --- images ---------------------------------------------------------------------------------------


def render(options: TrainingOptions) -> None:
    """Draw ``options.images`` scenes into ``images.npy`` (N, SIZE, SIZE, 3) uint8."""
    path = options.run / "images.npy"
    if path.exists():
        return
    log = Log(options, "render")
    partial = path.with_suffix(".part.npy")
    shape = (options.images, SIZE, SIZE, 3)
    images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    jobs = [(i, options.seed) for i in range(options.images)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        for i, image in enumerate(pool.imap(_draw, jobs, chunksize=64)):
            images[i] = image
            if i % 5000 == 0:
                log(f"{i} of {options.images} images")
    images.flush()
    partial.rename(path)


def _draw(job: tuple[int, int]) -> scenes.Pixels:
    index, seed = job
    return scenes.draw(scenes.scene_at(index, seed), SIZE)


def load_images(options: TrainingOptions) -> scenes.Pixels:
    """The drawn images (N, SIZE, SIZE, 3), memory-mapped."""
    images: scenes.Pixels = np.load(options.run / "images.npy", mmap_mode="r")
    return images


def to_tensor(pixels: scenes.Pixels, device: str = "cpu") -> Tensor:
    """Images uint8 (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1], channels-last in memory."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1


def image_batches(options: TrainingOptions, stage: str, start: int, crop: int) -> Iterator[Tensor]:
    """Batches (B, 3, crop, crop) in [-1, 1] from batch ``start`` on, the same for the same seed."""
    images = load_images(options)
    for i in itertools.count(start):
        rng = step_generator(options, stage, i)
        picked = images[np.sort(rng.integers(len(images), size=options.batch))]
        y, x = rng.integers(0, SIZE - crop + 1, size=2)
        yield to_tensor(picked[:, y : y + crop, x : x + crop].copy(), options.device)


def load_latents(options: TrainingOptions) -> Tensor:
    """The images' latents (N, C, h, w) float16, memory-mapped."""
    latents: Tensor = torch.load(options.run / "latents.pt", mmap=True, weights_only=True)[
        "latents"
    ]
    return latents


def step_generator(options: TrainingOptions, stage: str, step: int) -> np.random.Generator:
    """Random numbers for a training step, the same in every process."""
    stage_number = int.from_bytes(stage.encode()[:6], "little")
    return np.random.default_rng([options.seed, stage_number, step])


# --- captions -------------------------------------------------------------------------------------


def vocabulary(options: TrainingOptions) -> None:
    """Learn byte-pair merges from captions and write them in CLIP's file format."""
    path = options.run / MERGES_FILE
    if path.exists():
        return
    captions = [scenes.caption_at(i, options.seed) for i in range(MERGE_CAPTIONS)]
    merges = learn_merges(captions, DEMO.text_encoder.vocab_size - CLIPTokenizer(()).vocab_size)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    Log(options, "vocabulary")(f"{len(merges)} merges")


def learn_merges(captions: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Learn ``count`` byte-pair merges, the most frequent pair first.

    Source: "Neural Machine Translation of Rare Words with Subword Units" (Sennrich et al., 2016),
    algorithm 1.
    """
    frequencies = collections.Counter(
        word for caption in captions for word in _words_in_bytes(caption)
    )
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for symbols, frequency in frequencies.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += frequency
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        frequencies = collections.Counter(
            {_merge(symbols, best): n for symbols, n in frequencies.items()}
        )
    return merges


_BYTES = CLIPTokenizer(())
"""A tokenizer without merges: every byte is a token, and the last of a word carries a mark."""


def _words_in_bytes(caption: str) -> Iterator[tuple[str, ...]]:
    word: list[str] = []
    for token in _BYTES.encode(caption):
        word.append(_BYTES.tokens[token])
        if word[-1].endswith(WORD_END):
            yield tuple(word)
            word = []


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def load_tokenizer(run: Path) -> CLIPTokenizer:
    """The tokenizer with the merges that were learned in the run."""
    return CLIPTokenizer.from_file(run / MERGES_FILE, vocab_size=DEMO.text_encoder.vocab_size)


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str], device: str = "cpu") -> Tensor:
    """Token ids (B, T): start, the caption's tokens, and the end up to the full length."""
    length = DEMO.text_encoder.max_position_embeddings
    ids: npt.NDArray[np.int64] = np.full((len(captions), length), tokenizer.end_id, np.int64)
    ids[:, 0] = tokenizer.start_id
    for row, caption in zip(ids, captions, strict=True):
        tokens = tokenizer.encode(caption)[: length - 2]
        row[1 : 1 + len(tokens)] = tokens
    return torch.from_numpy(ids).to(device)
