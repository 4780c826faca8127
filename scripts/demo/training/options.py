"""How much to train, and the command line that says so."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import distributed

from scripts.demo.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class TrainingOptions:
    """How much to train; the model card says what the bundled weights were trained with.

    Attributes:
        run: folder of states and logs.
        recipe: what is trained; its name on the command line.
        device: where everything is computed.
        precision: of the convolutions and products, ``bf16`` or ``fp32``; norms, softmax, the
            text encoder and the losses are always computed in fp32.
        compile: whether the networks are compiled first.
        minutes: time for all stages together, from the first on; None for as many samples as the
            options below say. A stage then trains for its share, whatever these say.
        seed: of the scenes, their captions, the weights and the noise.
        images: number of scenes that are drawn, at most.
        versions: captions of each scene.
        autoencoder_crops: crops that the autoencoder is trained on first.
        autoencoder_images: whole images that it is trained on then.
        denoiser_samples: latents that the denoiser is trained on.
        decoder_images: images that the decoder is trained on in the end.
        tiny_vae_images: images that the tiny autoencoder is trained on.
        consistency_samples: latents that the UNet for few steps is trained on.
        batch: samples of a training step.
        autoencoder_batch: images of a training step of the autoencoder; None for ``batch``.
        learning_rate: greatest learning rate of the optimiser.
        tiny_vae_learning_rate: the same for the tiny autoencoder.
        consistency_learning_rate: the same for the UNet for few steps.
        bundle: folder that ``export`` writes the finished weights to; None for ``files`` in the
            run's.
    """

    run: Path
    recipe: Recipe = RECIPES["demo"]
    device: str = "cpu"
    precision: str = "bf16"
    compile: bool = False
    minutes: float | None = None
    seed: int = 0
    images: int = 40_000
    versions: int = 32
    autoencoder_crops: int = 60_000
    autoencoder_images: int = 8_000
    denoiser_samples: int = 300_000
    decoder_images: int = 6_000
    tiny_vae_images: int = 24_000
    consistency_samples: int = 32_000
    batch: int = 32
    autoencoder_batch: int | None = None
    learning_rate: float = 1e-3
    tiny_vae_learning_rate: float = 1e-3
    consistency_learning_rate: float = 2e-4
    bundle: Path | None = None

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.device.split(":")[0]

    @property
    def draws_beside_training(self) -> bool:
        """Whether drawing goes on while the GPU already trains: where time is short."""
        return self.minutes is not None and self.device_type != "cpu"

    @property
    def bundle_folder(self) -> Path:
        """Where ``export`` writes to."""
        return self.run / "files" if self.bundle is None else self.bundle

    @property
    def images_a_step(self) -> int:
        """Images of a training step of the autoencoder."""
        return self.batch if self.autoencoder_batch is None else self.autoencoder_batch


OPTIONAL_NUMBERS: Mapping[str, type] = {"minutes": float, "autoencoder_batch": int}
"""Options whose default says nothing about their type."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser a flag for each field of `TrainingOptions` but ``run``."""
    for field in fields(TrainingOptions):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        if field.name == "run":
            continue
        if field.name == "recipe":
            parser.add_argument(flag, choices=list(RECIPES), default="demo")
        elif field.name == "precision":
            parser.add_argument(flag, choices=("bf16", "fp32"), default=default)
        elif isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            kind = type(default) if isinstance(default, int | float | str) else Path
            kind = OPTIONAL_NUMBERS.get(field.name, kind)
            parser.add_argument(flag, type=kind, default=default)


def options_of(values: Mapping[str, Any]) -> TrainingOptions:
    """The options among the values that a parser with `add_flags` has read."""
    named = {field.name: values[field.name] for field in fields(TrainingOptions)}
    return TrainingOptions(**{**named, "recipe": RECIPES[values["recipe"]]})


def join_workers(options: TrainingOptions) -> None:
    """Connect the processes that ``torchrun`` has started, if it has."""
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo" if options.device == "cpu" else "nccl")
