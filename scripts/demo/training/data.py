"""The training data: drawn images, and captions as token ids."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scripts.demo.scene_sets import draw_numbered
from scripts.demo.scenes import Pixels
from scripts.demo.training.clock import Clock
from scripts.demo.training.log import Log
from scripts.demo.training.options import TrainingOptions
from sdpy.models import CLIPTextConfig
from sdpy.text.tokenizer import WORD_END, CLIPTokenizer
from sdpy.zoo.variants import DEMO

(MERGES_FILE,) = DEMO.files.vocabulary
IMAGES_FILE, CAPTIONS_FILE, LATENTS_FILE = "images.raw", "captions.npy", "latents.pt"

MERGE_CAPTIONS = 20_000
"""Captions from which the byte-pair merges are learned."""

EMPTY_CAPTIONS = 0.1
"""Share of training samples without caption, which classifier-free guidance needs."""


# --- images ---------------------------------------------------------------------------------------


def render(options: TrainingOptions) -> None:
    """Draw ``options.images`` scenes, or as many as time allows, into ``images.raw``.

    The file is nothing but pixels: (N, size, size, 3) uint8.
    """
    path = options.run / IMAGES_FILE
    if path.exists():
        return
    log, clock = Log(options, "render"), Clock(options, "render")
    partial = path.with_suffix(".part")
    size, count = options.recipe.size, 0
    jobs = ((options.recipe.scenes, i, options.seed, size) for i in range(options.images))
    with (
        multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool,
        partial.open("wb") as file,
    ):
        for image in pool.imap(draw_numbered, jobs, chunksize=16):
            file.write(image.tobytes())
            count += 1
            if count % 5000 == 0:
                log(f"{count} of {options.images} images")
            if clock.limit is not None and clock.elapsed > clock.limit:
                break
        pool.terminate()
    log(f"{count} images of {size}x{size} in {clock.elapsed:.0f} s")
    partial.rename(path)
    clock.save()


def load_images(options: TrainingOptions) -> Pixels:
    """The drawn images (N, size, size, 3), memory-mapped."""
    size = options.recipe.size
    # Mode "c", changes stay in memory: torch warns of arrays that nobody may write to.
    pixels: Pixels = np.memmap(options.run / IMAGES_FILE, dtype=np.uint8, mode="c")
    return pixels.reshape(-1, size, size, 3)


class ImageSet:
    """The drawn images, on the device where they fit into half of its free memory.

    Attributes:
        count: how many there are.
    """

    def __init__(self, options: TrainingOptions) -> None:
        self.options = options
        pixels = load_images(options)
        self.count = len(pixels)
        self.pixels = torch.from_numpy(pixels)
        if options.device_type == "cuda" and pixels.nbytes < torch.cuda.mem_get_info()[0] / 2:
            self.pixels = self.pixels.to(options.device)

    def batch(self, index: Tensor, crop: int | None = None, at: tuple[int, int] = (0, 0)) -> Tensor:
        """Images (B, 3, crop, crop) float32 in [-1, 1], channels-last in memory.

        Args:
            index: (B,) of the images, on the CPU.
            crop: pixels a side of the window that is taken of each; None for all of it.
            at: row and column of the window's corner.
        """
        size = self.options.recipe.size if crop is None else crop
        window = self.pixels[:, at[0] : at[0] + size, at[1] : at[1] + size]
        if self.pixels.is_cuda:
            index = index.pin_memory().to(self.pixels.device, non_blocking=True)
        return to_tensor(window[index], self.options.device)


def to_tensor(pixels: Tensor, device: str = "cpu") -> Tensor:
    """Images uint8 (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1], channels-last in memory."""
    return pixels.permute(0, 3, 1, 2).to(device, non_blocking=True).float() / 127.5 - 1


def load_latents(options: TrainingOptions) -> Tensor:
    """The images' latents (N, C, h, w) float16: on the GPU, or memory-mapped."""
    file = options.run / LATENTS_FILE
    latents: Tensor = torch.load(file, mmap=True, weights_only=True)["latents"]
    return latents.to(options.device)


def step_generator(options: TrainingOptions, stage: str, step: int) -> np.random.Generator:
    """Random numbers for a training step, the same in every process."""
    stage_number = int.from_bytes(stage.encode()[:6], "little")
    return np.random.default_rng([options.seed, stage_number, step])


def device_generator(options: TrainingOptions, rng: np.random.Generator) -> torch.Generator:
    """Random numbers that are drawn on the device, from a seed that ``rng`` draws."""
    return torch.Generator(options.device).manual_seed(int(rng.integers(2**62)))


# --- captions -------------------------------------------------------------------------------------


def vocabulary(options: TrainingOptions) -> None:
    """Learn byte-pair merges from captions and write them in CLIP's file format."""
    path = options.run / MERGES_FILE
    if path.exists():
        return
    clock = Clock(options, "vocabulary")
    captions = [options.recipe.scenes.caption_at(i, options.seed) for i in range(MERGE_CAPTIONS)]
    vocab_size = options.recipe.variant.text_encoder.vocab_size
    merges = learn_merges(captions, vocab_size - CLIPTokenizer(()).vocab_size)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    Log(options, "vocabulary")(f"{len(merges)} merges")
    clock.save()


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


def load_tokenizer(options: TrainingOptions) -> CLIPTokenizer:
    """The tokenizer with the merges that were learned in the run."""
    return CLIPTokenizer.from_file(
        options.run / MERGES_FILE, vocab_size=options.recipe.variant.text_encoder.vocab_size
    )


def tokenize(
    tokenizer: CLIPTokenizer, captions: Sequence[str], config: CLIPTextConfig
) -> npt.NDArray[np.int64]:
    """Token ids (B, T): start, the caption's tokens, and the end up to the full length."""
    length = config.max_position_embeddings
    ids: npt.NDArray[np.int64] = np.full((len(captions), length), tokenizer.end_id, np.int64)
    ids[:, 0] = tokenizer.start_id
    for row, caption in zip(ids, captions, strict=True):
        tokens = tokenizer.encode(caption)[: length - 2]
        row[1 : 1 + len(tokens)] = tokens
    return ids


def tokenize_captions(options: TrainingOptions) -> None:
    """Tokenise ``options.versions`` captions of every image into ``captions.npy``.

    The array is (N, versions, L) int16; L is the length of the longest caption, and what is
    missing up to the full length is the end token.
    """
    path = options.run / CAPTIONS_FILE
    if path.exists():
        return
    log, clock = Log(options, "captions"), Clock(options, "captions")
    count = len(load_images(options))
    jobs = [(options, list(part)) for part in _parts(range(count), 512)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        parts = pool.map(_tokenize_part, jobs, chunksize=1)
    longest = max(part.shape[-1] for part in parts)
    end = load_tokenizer(options).end_id
    ids = np.full((count, options.versions, longest), end, np.int16)
    start = 0
    for part in parts:
        ids[start : start + len(part), :, : part.shape[-1]] = part
        start += len(part)
    partial = path.with_suffix(".part.npy")
    np.save(partial, ids)
    partial.rename(path)
    log(f"{options.versions} captions of {count} images, at most {longest} tokens")
    clock.save()


def _parts(numbers: range, size: int) -> Iterator[range]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _tokenize_part(job: tuple[TrainingOptions, list[int]]) -> npt.NDArray[np.int16]:
    """Token ids (images, versions, L) of the captions of some images, as short as possible."""
    options, indices = job
    tokenizer = load_tokenizer(options)
    config = options.recipe.variant.text_encoder
    captions = [
        options.recipe.scenes.caption_at(index, options.seed, version=version)
        for index in indices
        for version in range(options.versions)
    ]
    ids = tokenize(tokenizer, captions, config).astype(np.int16)
    longest = int((ids != tokenizer.end_id).sum(axis=1).max()) + 1
    return ids[:, :longest].reshape(len(indices), options.versions, -1)


class CaptionSet:
    """The tokenised captions of all images, on the device."""

    def __init__(self, options: TrainingOptions) -> None:
        self.options = options
        self.length = options.recipe.variant.text_encoder.max_position_embeddings
        tokenizer = load_tokenizer(options)
        self.end_id = tokenizer.end_id
        ids = torch.from_numpy(np.load(options.run / CAPTIONS_FILE))
        self.ids = ids.to(options.device)
        self.empty = torch.full((self.length,), self.end_id, device=options.device)
        self.empty[0] = tokenizer.start_id

    def draw(self, index: Tensor, generator: torch.Generator, empty: float = 0.0) -> Tensor:
        """Token ids (B, T) of a caption of each image, a share ``empty`` of them without words.

        Args:
            index: (B,) of the images, on the device.
            generator: of the device, which draws the versions.
            empty: chance of an empty caption.
        """
        device = index.device
        versions = torch.randint(self.ids.shape[1], index.shape, generator=generator, device=device)
        ids = self.empty.repeat(len(index), 1)
        ids[:, self.ids.shape[2] :] = self.end_id
        ids[:, : self.ids.shape[2]] = self.ids[index, versions].long()
        silent = torch.rand(index.shape, generator=generator, device=device) < empty
        return torch.where(silent[:, None], self.empty, ids)
