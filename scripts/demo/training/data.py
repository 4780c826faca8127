"""The training data: drawn images, and captions as token ids."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.demo.recipes import Recipe
from scripts.demo.scenes import Pixels
from scripts.demo.training.clock import Clock
from scripts.demo.training.log import Log
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.renderer import Renderer, RenderError, RenderJob
from sdpy.text.tokenizer import WORD_END, CLIPTokenizer
from sdpy.zoo.variants import DEMO

(MERGES_FILE,) = DEMO.files.vocabulary
IMAGES_FILE, CAPTIONS_FILE, LATENTS_FILE = "images.raw", "captions.raw", "latents.pt"

FIRST_IMAGES = 4000
"""Images that the autoencoder begins with where more are drawn beside its training."""

MERGE_CAPTIONS = 20_000
"""Captions from which the byte-pair merges are learned."""

EMPTY_CAPTIONS = 0.1
"""Share of training samples without caption, which classifier-free guidance needs."""


# --- images ---------------------------------------------------------------------------------------


def render_job(options: TrainingOptions) -> RenderJob:
    """What is drawn in a run, and where to."""
    encoder = options.recipe.variant.text_encoder
    return RenderJob(
        scenes=options.recipe.scenes,
        seed=options.seed,
        size=options.recipe.size,
        count=options.images,
        versions=options.versions,
        length=encoder.max_position_embeddings,
        merges=options.run / MERGES_FILE,
        vocab_size=encoder.vocab_size,
        images=options.run / IMAGES_FILE,
        captions=options.run / CAPTIONS_FILE,
    )


def render(options: TrainingOptions) -> None:
    """Draw ``options.images`` scenes, or as many as time allows, and tokenise their captions.

    On a GPU and in a given time, only the first scenes are waited for. The others are drawn while
    the autoencoder is trained, until `finish_drawing`.
    """
    job = render_job(options)
    if (options.run / LATENTS_FILE).exists() or job.drawn >= options.images:
        return
    if not job.merges.exists():
        raise RenderError("the captions need the merges: run the stage vocabulary first")
    log, clock = Log(options, "render"), Clock(options, "render")
    left = None if clock.limit is None else max(clock.limit - clock.elapsed, 0.0)
    renderer = Renderer(job)
    torch.empty(1, device=options.device)  # a GPU takes seconds for its first tensor
    beside = options.draws_beside_training
    drawn = renderer.wait(min(FIRST_IMAGES, job.count) if beside else job.count, left)
    if beside:
        _DRAWING[options.run] = renderer
    else:
        drawn = renderer.stop()
    size, what = options.recipe.size, ", and more beside the training" if beside else ""
    log(f"{drawn} images of {size}x{size} in {clock.elapsed:.0f} s{what}")
    clock.save()


_DRAWING: dict[Path, Renderer] = {}
"""What is drawn beside training, by the folder of the run."""


def finish_drawing(options: TrainingOptions) -> None:
    """Stop drawing beside the training; what has been drawn by now are the training images."""
    renderer = _DRAWING.pop(options.run, None)
    if renderer is not None:
        Log(options, "render")(f"{renderer.stop()} images in the end")


def load_images(options: TrainingOptions) -> Pixels:
    """The images drawn so far (N, size, size, 3), memory-mapped."""
    job = render_job(options)
    # Mode "c", changes stay in memory: torch warns of arrays that nobody may write to.
    pixels: Pixels = np.memmap(job.images, np.uint8, "c", shape=(job.drawn, job.size, job.size, 3))
    return pixels


class ImageSet:
    """The drawn images, on the device where they fit into half of its free memory.

    Attributes:
        count: how many there are.
    """

    def __init__(self, options: TrainingOptions) -> None:
        self.options = options
        self.count = 0
        self._on_device: Tensor | None = None
        job = render_job(options)
        room = job.image_bytes * max(job.drawn, job.count if options.draws_beside_training else 0)
        if options.device_type == "cuda" and room < torch.cuda.mem_get_info()[0] / 2:
            shape = (room // job.image_bytes, job.size, job.size, 3)
            self._on_device = torch.empty(shape, dtype=torch.uint8, device=options.device)
        self.extend()

    def extend(self) -> None:
        """Take in what has been drawn since."""
        pixels = torch.from_numpy(load_images(self.options))
        if self._on_device is None:
            self._pixels = pixels
        else:
            self._on_device[self.count : len(pixels)] = pixels[self.count :].to(self.options.device)
            self._pixels = self._on_device[: len(pixels)]
        self.count = len(pixels)

    def batch(self, index: Tensor, crop: int | None = None, at: tuple[int, int] = (0, 0)) -> Tensor:
        """Images (B, 3, crop, crop) float32 in [-1, 1], channels-last in memory.

        Args:
            index: (B,) of the images, on the CPU.
            crop: pixels a side of the window that is taken of each; None for all of it.
            at: row and column of the window's corner.
        """
        size = self.options.recipe.size if crop is None else crop
        window = self._pixels[:, at[0] : at[0] + size, at[1] : at[1] + size]
        if window.is_cuda:
            index = index.pin_memory().to(window.device, non_blocking=True)
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
    merges = merges_of(options.recipe, options.seed)
    path.write_text(merges, encoding="utf-8")
    Log(options, "vocabulary")(f"{merges.count(chr(10)) - 1} merges")
    clock.save()


def merges_of(recipe: Recipe, seed: int = 0) -> str:
    """The merges of a recipe's captions, as CLIP's file has them."""
    captions = [recipe.scenes.caption_at(i, seed) for i in range(MERGE_CAPTIONS)]
    vocab_size = recipe.variant.text_encoder.vocab_size
    merges = learn_merges(captions, vocab_size - CLIPTokenizer(()).vocab_size)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    return "\n".join(lines) + "\n"


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


class CaptionSet:
    """The tokenised captions of all images, on the device."""

    def __init__(self, options: TrainingOptions) -> None:
        job, tokenizer = render_job(options), load_tokenizer(options)
        shape = (job.drawn, job.versions, job.length)
        ids = torch.from_numpy(np.memmap(job.captions, np.int16, "c", shape=shape))
        self.ids = ids.to(options.device)
        self.empty = torch.full((job.length,), tokenizer.end_id, device=options.device)
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
        silent = torch.rand(index.shape, generator=generator, device=device) < empty
        return torch.where(silent[:, None], self.empty, self.ids[index, versions].long())
