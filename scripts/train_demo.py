"""Train the demo model from nothing: data, autoencoder, text encoder and UNet.

    python scripts/train_demo.py runs/demo all

The stages follow one another; each logs to ``RUN/log.txt``, keeps its state in ``RUN/<stage>.pt``
and goes on from there when it is started again:

    render        draws the training pictures (``scripts/demo_scenes.py``) into a memory map
    vocabulary    learns the byte-pair merges from captions, in CLIP's file format
    autoencoder   picture <-> latents
    latents       encodes all pictures and normalises the latents, channel by channel
    denoiser      UNet and text encoder together, v-prediction with zero terminal SNR
    decoder       polishes the decoder on the frozen latents
    export        writes the bundled ``.ot`` files
    sample        paints a sheet with the current average of the weights, to look at

It needs torch, numpy, and pillow for the sheets; on a GPU everything runs there in bf16. On a CPU
that does other work too, one process a core loses less time than one process with all threads:

    torchrun --nproc-per-node 2 scripts/train_demo.py runs/demo denoiser

shares each batch of the denoiser between two.
"""

from __future__ import annotations

import argparse
import collections
import copy
import itertools
import json
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

import demo_scenes as scenes
from sdpy.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from sdpy.models.attention import Attention
from sdpy.models.vae import AutoencoderAttention
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.zoo.variants import DEMO

(MERGES_FILE,) = DEMO.files.vocabulary
SIZE = DEMO.sample_size  # pixels a side
CROP = 64  # pixels a side of the autoencoder's first, cheaper training pictures


@dataclass(frozen=True)
class Options:
    """How much to train; the model card says what the bundled weights were trained with."""

    run: Path
    device: str = "cpu"
    seed: int = 0
    pictures: int = 40_000
    autoencoder_crops: int = 60_000
    autoencoder_pictures: int = 8_000
    denoiser_samples: int = 300_000
    decoder_pictures: int = 6_000
    batch: int = 32
    learning_rate: float = 1e-3


def main() -> None:
    """Run the stages named on the command line."""
    options, stages = parse_arguments()
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo" if options.device == "cpu" else "nccl")
    options.run.mkdir(parents=True, exist_ok=True)
    (options.run / "options.json").write_text(json.dumps(asdict(options), default=str, indent=1))
    for stage in stages:
        STAGES[stage](options)


def parse_arguments() -> tuple[Options, list[str]]:
    """Read the command line; every field of `Options` is a flag."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of states and logs")
    parser.add_argument("stage", choices=["all", *STAGES], nargs="+")
    defaults = asdict(Options(run=Path()))
    for name, default in defaults.items():
        if name != "run":
            flag = "--" + name.replace("_", "-")
            parser.add_argument(flag, type=type(default), default=default)
    values = vars(parser.parse_args())
    stages = values.pop("stage")
    if "all" in stages:
        stages = [stage for stage in STAGES if stage != "sample"]
    return Options(**values), stages


# --- data -----------------------------------------------------------------------------------------


def render(options: Options) -> None:
    """Draw ``options.pictures`` scenes into ``pictures.npy`` (N, SIZE, SIZE, 3) uint8."""
    path = options.run / "pictures.npy"
    if path.exists():
        return
    log = Log(options, "render")
    partial = path.with_suffix(".part.npy")
    shape = (options.pictures, SIZE, SIZE, 3)
    pictures = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    jobs = [(i, options.seed) for i in range(options.pictures)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        for i, picture in enumerate(pool.imap(_draw, jobs, chunksize=64)):
            pictures[i] = picture
            if i % 5000 == 0:
                log(f"{i} of {options.pictures} pictures")
    pictures.flush()
    partial.rename(path)


def _draw(job: tuple[int, int]) -> np.ndarray:
    index, seed = job
    return scenes.draw(scenes.scene_at(index, seed), SIZE)


def load_pictures(options: Options) -> np.ndarray:
    """The rendered pictures, memory-mapped."""
    return np.load(options.run / "pictures.npy", mmap_mode="r")


def picture_batches(options: Options, stage: str, start: int, crop: int) -> Iterator[Tensor]:
    """Batches (B, 3, crop, crop) in [-1, 1] from batch ``start`` on, the same for the same seed."""
    pictures = load_pictures(options)
    for i in itertools.count(start):
        rng = np.random.default_rng([options.seed, hash_name(stage), i])
        picked = pictures[np.sort(rng.integers(len(pictures), size=options.batch))]
        y, x = rng.integers(0, SIZE - crop + 1, size=2)
        batch = torch.from_numpy(picked[:, y : y + crop, x : x + crop].copy())
        batch = batch.permute(0, 3, 1, 2).to(options.device)  # channels-last in memory
        yield batch.float() / 127.5 - 1


def hash_name(name: str) -> int:
    """A number for a name, the same in every process."""
    return int.from_bytes(name.encode()[:6], "little")


# --- vocabulary -----------------------------------------------------------------------------------

WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")
"""What CLIP's pattern comes to on the captions, which are plain ASCII without apostrophes."""


def vocabulary(options: Options) -> None:
    """Learn byte-pair merges from captions and write them in CLIP's file format."""
    path = options.run / MERGES_FILE
    if path.exists():
        return
    captions = [scenes.caption_at(i, options.seed) for i in range(20_000)]
    merges = learn_merges(captions, DEMO.text_encoder.vocab_size - 514)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    path.write_text("\n".join(lines) + "\n")
    Log(options, "vocabulary")(f"{len(merges)} merges")


def learn_merges(captions: list[str], count: int) -> list[tuple[str, str]]:
    """``count`` byte-pair merges, most frequent pair first (Sennrich et al., 2016)."""
    frequencies: collections.Counter[tuple[str, ...]] = collections.Counter()
    for caption in captions:
        for word in WORD.findall(caption.lower()):
            frequencies[(*word[:-1], word[-1] + "</w>")] += 1
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


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


class Vocabulary:
    """Byte-pair encoding of captions, equal to ``CLIPTokenizer`` on the plain ASCII they are."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text().splitlines()[1:]
        self.ranks = {(a, b): i for i, (a, b) in enumerate(line.split() for line in lines)}
        # The printable bytes come first and in order, so "!" is 0, and again as the end of a word.
        letters = [chr(i) for i in range(ord("!"), ord("~") + 1)]
        self.ids = {letter: i for i, letter in enumerate(letters)}
        self.ids |= {letter + "</w>": 256 + i for i, letter in enumerate(letters)}
        self.ids |= {a + b: 512 + i for (a, b), i in self.ranks.items()}
        self.start_id, self.end_id = 512 + len(lines), 513 + len(lines)
        self.cache: dict[str, list[int]] = {}

    def encode(self, caption: str, length: int = DEMO.text_encoder.max_position_embeddings) -> list:
        """Start, tokens, end, and the end again up to ``length``."""
        tokens = [i for word in WORD.findall(caption.lower()) for i in self._word(word)]
        tokens = [self.start_id, *tokens[: length - 2], self.end_id]
        return tokens + [self.end_id] * (length - len(tokens))

    def _word(self, word: str) -> list[int]:
        if word not in self.cache:
            symbols: tuple[str, ...] = (*word[:-1], word[-1] + "</w>")
            while len(symbols) > 1:
                pairs = itertools.pairwise(symbols)
                best = min(pairs, key=lambda pair: self.ranks.get(pair, math.inf))
                if best not in self.ranks:
                    break
                symbols = _merge(symbols, best)
            self.cache[word] = [self.ids[symbol] for symbol in symbols]
        return self.cache[word]


# --- training in general --------------------------------------------------------------------------


class Log:
    """Prints lines and appends them to the run's log."""

    def __init__(self, options: Options, stage: str) -> None:
        self.path = options.run / "log.txt"
        self.stage = stage

    def __call__(self, text: str) -> None:
        """Write one line with the time and the stage in front."""
        if worker() > 0:
            return
        line = f"{time.strftime('%H:%M:%S')} {self.stage}: {text}"
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


class Training:
    """Models, their optimiser and averages, and the state that makes a stage resumable."""

    def __init__(
        self, options: Options, stage: str, models: dict[str, nn.Module], steps: int
    ) -> None:
        self.options, self.stage, self.steps = options, stage, steps
        self.path = options.run / f"{stage}.pt"
        self.models = nn.ModuleDict(models).to(options.device, memory_format=torch.channels_last)
        self.averages = copy.deepcopy(self.models).requires_grad_(False)
        parameters = [p for p in self.models.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step = 0
        self.log = Log(options, stage)
        self.started = self.saved = time.monotonic()
        if options.device == "cpu":
            for module in self.models.modules():
                if isinstance(module, Attention | AutoencoderAttention):
                    module.attend = PlainAttention()
        if self.path.exists():
            state = torch.load(self.path, map_location=options.device, weights_only=True)
            self.models.load_state_dict(state["models"])
            self.averages.load_state_dict(state["averages"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            self.log(f"goes on at step {self.step} of {steps}")

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps

    @property
    def minutes(self) -> float:
        """Minutes since this call began the stage."""
        return (time.monotonic() - self.started) / 60

    def update(self, loss: Tensor) -> None:
        """One step of the optimiser; warms up, holds, and decays over the last third."""
        progress = self.step / self.steps
        rate = self.options.learning_rate * min(1.0, (self.step + 1) / 200, 3 * (1 - progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        self._share_gradients()
        nn.utils.clip_grad_norm_(self.models.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averages = list(self.averages.parameters())
            torch._foreach_lerp_(averages, list(self.models.parameters()), 1 - decay)
        self.step += 1
        if time.monotonic() - self.saved > 120 or self.done:
            self.save()

    def _share_gradients(self) -> None:
        """Give every process the mean of all gradients."""
        if workers() == 1:
            return
        gradients = [p.grad for p in self.models.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / workers()
        distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def save(self) -> None:
        """Write the state whole or not at all."""
        self.saved = time.monotonic()
        if worker() > 0:
            return
        state = {
            "models": self.models.state_dict(),
            "averages": self.averages.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        partial = self.path.with_suffix(".part")
        torch.save(state, partial)
        partial.rename(self.path)


def workers() -> int:
    """Number of processes that share the batches."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def worker() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


class PlainAttention(nn.Module):
    """Attention as two matrix products: on a CPU its backward pass is the faster one."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``query`` (B, heads, T, d), ``key`` and ``value`` (B, heads, S, d) -> query's shape."""
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        return scores.softmax(-1).to(value.dtype) @ value


def autocast(options: Options) -> torch.autocast:
    """bf16 wherever it is safe."""
    return torch.autocast(options.device.split(":")[0], torch.bfloat16)


# --- autoencoder ----------------------------------------------------------------------------------


def autoencoder(options: Options) -> None:
    """Train the autoencoder on crops, then for a while on whole pictures."""
    vae = AutoencoderKL(DEMO.vae)
    crop_steps = options.autoencoder_crops // options.batch
    steps = crop_steps + options.autoencoder_pictures // options.batch
    training = Training(options, "autoencoder", {"vae": vae}, steps)
    generator = torch.Generator(options.device).manual_seed(options.seed + training.step)
    batches: Iterator[Tensor] | None = None
    whole = False
    while not training.done:
        if batches is None or whole != (training.step >= crop_steps):
            whole = training.step >= crop_steps
            crop = SIZE if whole else CROP
            batches = picture_batches(options, "autoencoder", training.step, crop)
        picture = next(batches)
        with autocast(options):
            latents = vae.encode(picture)
            noise = torch.randn(latents.mean.shape, generator=generator, device=options.device)
            painted = vae.decode(latents.sample(noise))
        mean, std = latents.mean.float(), latents.std.float()
        divergence = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).mean()
        training.update(reconstruction_loss(painted.float(), picture) + 1e-6 * divergence)
        if training.step % 100 == 0:
            error = F.mse_loss(painted.float().clamp(-1, 1), picture).item()
            training.log(
                f"step {training.step} of {steps}, {psnr(error):.2f} dB, KL {divergence:.2f}, "
                f"std {std.mean():.3f}, {training.minutes:.1f} min"
            )
    report_reconstruction(options, training.averages["vae"], training.log)


def reconstruction_loss(painted: Tensor, picture: Tensor) -> Tensor:
    """Absolute and squared error, edges (errors of neighbours' differences) and chroma.

    Dark places weigh more, as to the eye: without it a green house at night comes back grey.
    """
    brightness = (picture.mean(dim=1, keepdim=True) + 1) / 2
    weight = 0.5 / (0.15 + brightness)
    difference = painted - picture
    chroma = difference - difference.mean(dim=1, keepdim=True)
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return (weight * (difference.abs() + 2 * difference.square() + chroma.abs())).mean() + (
        0.5 * edges
    )


def psnr(mean_squared_error: float) -> float:
    """Decibels, for pictures in [-1, 1]."""
    return 10 * math.log10(4 / mean_squared_error)


def report_reconstruction(options: Options, vae: nn.Module, log: Log) -> None:
    """Log the error on pictures that were not trained on, and write a sheet of pairs."""
    drawn = [scenes.draw(scenes.scene_at(i, options.seed + 1), SIZE) for i in range(64)]
    pictures = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
    painted = []
    with torch.no_grad():
        for batch in pictures.to(options.device).split(16):
            painted.append(vae.decode(vae.encode(batch).mean).clamp(-1, 1).cpu())
    log(f"fresh pictures: {psnr(F.mse_loss(torch.cat(painted), pictures).item()):.2f} dB")
    pairs = torch.stack([pictures, torch.cat(painted)], dim=1).flatten(0, 1)[:64]
    write_sheet(options.run / f"{log.stage}.png", pairs, columns=8)


def write_sheet(path: Path, pictures: Tensor, columns: int) -> None:
    """Write pictures (N, 3, H, W) in [-1, 1] side by side."""
    from PIL import Image

    rows = [torch.cat(list(row), dim=-1) for row in pictures.split(columns)]
    sheet = torch.cat(rows, dim=-2).clamp(-1, 1)
    array = ((sheet + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(path)


# --- latents --------------------------------------------------------------------------------------


def latents(options: Options) -> None:
    """Encode all pictures into ``latents.pt`` and fold their normalisation into the autoencoder.

    The mean and deviation of each channel go into ``quant_conv`` and ``post_quant_conv``, so that
    the latents have mean 0 and variance 1 and the scaling factor is 1.
    """
    path = options.run / "latents.pt"
    if path.exists():
        return
    log = Log(options, "latents")
    vae = AutoencoderKL(DEMO.vae).to(options.device, memory_format=torch.channels_last)
    state = torch.load(options.run / "autoencoder.pt", map_location="cpu", weights_only=True)
    prefix = "vae."
    vae.load_state_dict({k.removeprefix(prefix): v for k, v in state["averages"].items()})
    pictures = load_pictures(options)
    means = []
    for start in range(0, len(pictures), 64):
        batch = torch.from_numpy(pictures[start : start + 64].copy()).permute(0, 3, 1, 2)
        with torch.no_grad(), autocast(options):
            means.append(
                vae.encode(batch.to(options.device).float() / 127.5 - 1).mean.float().cpu()
            )
        if start % 6400 == 0:
            log(f"{start} of {len(pictures)}")
    encoded = torch.cat(means)
    mean, std = encoded.mean(dim=(0, 2, 3)), encoded.std(dim=(0, 2, 3))
    log(f"channel means {mean.tolist()}, deviations {std.tolist()}")
    fold_normalisation(vae, mean, std)
    normalised = (encoded - mean[:, None, None]) / std[:, None, None]
    torch.save({"vae": vae.state_dict(), "latents": normalised.half()}, path)


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Make ``vae`` give and take ``(latents - mean) / std``; both (latent_channels,)."""
    mean, std = mean.to(vae.device), std.to(vae.device)
    n = len(mean)
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= std[None, :, None, None]
    vae.quant_conv.weight[:n] /= std[:, None, None, None]
    vae.quant_conv.bias[:n] -= mean
    vae.quant_conv.bias[:n] /= std
    vae.quant_conv.bias[n:] -= 2 * std.log()  # log-variances


# --- denoiser -------------------------------------------------------------------------------------

EMPTY_CAPTIONS = 0.1
"""Share of training samples without caption, which classifier-free guidance needs."""


def denoiser(options: Options) -> None:
    """Train UNet and text encoder on the latents and fresh paraphrases of their captions."""
    torch.manual_seed(options.seed)
    models = {"unet": UNet2DConditionModel(DEMO.unet), "text": CLIPTextModel(DEMO.text_encoder)}
    for parameter in models["unet"].conv_out.parameters():
        nn.init.zeros_(parameter)
    steps = options.denoiser_samples // options.batch
    training = Training(options, "denoiser", models, steps)
    data = torch.load(options.run / "latents.pt", mmap=True, weights_only=True)["latents"]
    words = Vocabulary(options.run / MERGES_FILE)
    alphas = make_alphas_cumprod(DEMO.noise).float().to(options.device)
    losses: list[float] = []
    sampled = time.monotonic()
    while not training.done:
        rng = np.random.default_rng([options.seed, hash_name("denoiser"), training.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        index = rng.integers(len(data), size=options.batch)
        captions = [
            ""
            if rng.random() < EMPTY_CAPTIONS
            else scenes.caption_at(int(i), options.seed, version=int(rng.integers(2**31)))
            for i in index
        ]
        x0 = data[torch.from_numpy(index)].float().to(options.device)
        noise = torch.randn(x0.shape, generator=generator).to(options.device)
        # Stratified over the batch, which steadies the loss.
        t = (torch.arange(options.batch) + torch.rand(options.batch, generator=generator)) / (
            options.batch
        )
        timesteps = (t * DEMO.noise.num_train_timesteps).long().to(options.device)
        mine = slice(worker(), None, workers())
        loss = velocity_loss(
            options,
            training.models,
            words,
            alphas,
            x0[mine],
            noise[mine],
            timesteps[mine],
            captions[mine],
        )
        training.update(loss.mean())
        losses.append(loss.mean().item())
        if training.step % 200 == 0:
            training.log(
                f"step {training.step} of {steps}, loss {sum(losses) / len(losses):.4f}, "
                f"{training.minutes:.1f} min"
            )
            losses = []
        if worker() == 0 and training.step % 2000 == 0:
            report_guidance(options, training, words, alphas)
        if worker() == 0 and (time.monotonic() - sampled > 600 or training.done):
            paint_sheet(options, training.averages, words, options.run / "sheet.png")
            sampled = time.monotonic()


def velocity_loss(
    options: Options,
    models: nn.ModuleDict,
    words: Vocabulary,
    alphas: Tensor,
    x0: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    captions: list[str],
) -> Tensor:
    """Mean squared error of the predicted velocity, (B,)."""
    alpha = alphas[timesteps][:, None, None, None]
    noisy = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * x0
    with autocast(options):
        context = models["text"](encode_captions(options, words, captions))
        predicted = models["unet"](
            noisy.contiguous(memory_format=torch.channels_last), timesteps, context
        )
    return (predicted.float() - velocity).square().mean(dim=(1, 2, 3))


def encode_captions(options: Options, words: Vocabulary, captions: list[str]) -> Tensor:
    """Token ids (B, T)."""
    return torch.tensor([words.encode(caption) for caption in captions], device=options.device)


@torch.no_grad()
def report_guidance(
    options: Options, training: Training, words: Vocabulary, alphas: Tensor
) -> None:
    """Log the loss at several noise levels with the right, an empty and a wrong caption.

    The gap between them is what the text is worth at that level.
    """
    data = torch.load(options.run / "latents.pt", mmap=True, weights_only=True)["latents"]
    index = list(range(64))
    x0 = data[index].float().to(options.device)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)).to(options.device)
    right = [scenes.caption_at(i, options.seed) for i in index]
    wrong = right[32:] + right[:32]
    for level in (999, 800, 600, 400, 200):
        timesteps = torch.full((64,), level, device=options.device)
        values = [
            velocity_loss(
                options, training.averages, words, alphas, x0, noise, timesteps, captions
            ).mean()
            for captions in (right, [""] * 64, wrong)
        ]
        training.log(
            f"t {level}: right {values[0]:.4f}, empty {values[1]:.4f}, wrong {values[2]:.4f}"
        )


SHEET_PROMPTS = (
    "lighthouse at dark",
    "a red lighthouse at noon",
    "a lighthouse at dusk in the rain",
    "a blue house in the snow at night",
    "a green sailing boat at noon",
    "a yellow boat at dawn in fog",
    "a castle at dusk",
    "a red windmill at noon",
    "a rusty robot holding a torch",
    "a rusty robot holding a torch at night",
    "trees in the snow at noon",
    "mountains at dawn",
    "a cat at dusk",
    "a white balloon at noon",
    "a castle with blue roofs at night in the rain",
    "a windmill in fog at dawn",
)


@torch.no_grad()
def paint_sheet(
    options: Options,
    models: nn.ModuleDict,
    words: Vocabulary,
    path: Path,
    steps: int = 30,
    guidance: float = 4.0,
    each: int = 2,
) -> None:
    """Paint `SHEET_PROMPTS` with DDIM on trailing timesteps, two pictures each."""
    captions = [prompt for prompt in SHEET_PROMPTS for _ in range(each)]
    alphas = make_alphas_cumprod(DEMO.noise).float()
    generator = torch.Generator().manual_seed(32)
    shape = (len(captions), DEMO.unet.in_channels, SIZE // 4, SIZE // 4)
    x = torch.randn(shape, generator=generator).to(options.device)
    with autocast(options):
        context = models["text"](encode_captions(options, words, [""] * len(captions) + captions))
        ratio = DEMO.noise.num_train_timesteps / steps
        for i in range(steps, 0, -1):
            t = round(i * ratio) - 1
            alpha = alphas[t].item()
            alpha_prev = alphas[round((i - 1) * ratio) - 1].item() if i > 1 else 1.0
            both = torch.cat([x, x]).contiguous(memory_format=torch.channels_last)
            velocity = models["unet"](both, torch.tensor(t, device=options.device), context)
            empty, asked = velocity.float().chunk(2)
            velocity = empty + guidance * (asked - empty)
            x0 = alpha**0.5 * x - (1 - alpha) ** 0.5 * velocity
            noise = alpha**0.5 * velocity + (1 - alpha) ** 0.5 * x
            x = alpha_prev**0.5 * x0 + (1 - alpha_prev) ** 0.5 * noise
    vae = load_autoencoder(options)
    pictures = torch.cat([vae.decode(batch).cpu() for batch in x.split(8)])
    write_sheet(path, pictures, columns=8)


def sample(options: Options) -> None:
    """Paint a sheet with the averaged weights of the denoiser's last state."""
    models = load_denoiser(options)
    words = Vocabulary(options.run / MERGES_FILE)
    paint_sheet(options, models, words, options.run / "sheet.png")


def load_denoiser(options: Options) -> nn.ModuleDict:
    """UNet and text encoder with the averaged weights."""
    models = nn.ModuleDict(
        {"unet": UNet2DConditionModel(DEMO.unet), "text": CLIPTextModel(DEMO.text_encoder)}
    )
    state = torch.load(options.run / "denoiser.pt", map_location="cpu", weights_only=True)
    models.load_state_dict(state["averages"])
    return models.to(options.device).requires_grad_(False)


def load_autoencoder(options: Options) -> AutoencoderKL:
    """The autoencoder on normalised latents, with the polished decoder where there is one."""
    vae = AutoencoderKL(DEMO.vae)
    vae.load_state_dict(torch.load(options.run / "latents.pt", mmap=True, weights_only=True)["vae"])
    polished = options.run / "decoder.pt"
    if polished.exists():
        state = torch.load(polished, map_location="cpu", weights_only=True)["averages"]
        vae.load_state_dict({k.removeprefix("vae."): v for k, v in state.items()})
    return vae.to(options.device).requires_grad_(False)


# --- decoder and export ---------------------------------------------------------------------------


def decoder(options: Options) -> None:
    """Go on training the decoder alone, on whole pictures and the frozen encoder's latents."""
    vae = load_autoencoder(options)
    vae.decoder.requires_grad_(True)
    training = Training(options, "decoder", {"vae": vae}, options.decoder_pictures // options.batch)
    batches = picture_batches(options, "decoder", training.step, SIZE)
    while not training.done:
        picture = next(batches)
        with autocast(options):
            with torch.no_grad():
                encoded = vae.encode(picture)
            painted = vae.decode(encoded.mean)
        training.update(reconstruction_loss(painted.float(), picture))
        if training.step % 50 == 0:
            error = F.mse_loss(painted.float().clamp(-1, 1), picture).item()
            training.log(f"step {training.step} of {training.steps}, {psnr(error):.2f} dB")
    report_reconstruction(options, training.averages["vae"], training.log)


def export(options: Options) -> None:
    """Write the averaged weights, as float16, and the merges into the package."""
    from sdpy.checkpoints import write_checkpoint

    models = load_denoiser(options)
    folder = DEMO.bundled
    assert folder is not None
    for (name,), model in (
        (DEMO.files.unet, models["unet"]),
        (DEMO.files.text_encoder, models["text"]),
        (DEMO.files.vae, load_autoencoder(options)),
    ):
        write_checkpoint(folder / name, model.half().state_dict())
    (folder / MERGES_FILE).write_text((options.run / MERGES_FILE).read_text())
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    Log(options, "export")(f"{size / 1e6:.1f} MB in {folder.name}/")


STAGES = {
    "render": render,
    "vocabulary": vocabulary,
    "autoencoder": autoencoder,
    "latents": latents,
    "denoiser": denoiser,
    "decoder": decoder,
    "export": export,
    "sample": sample,
}

if __name__ == "__main__":
    sys.exit(main())
