"""How much to train, and the command line that says so."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed

from sdpy.zoo.variants import DEMO


@dataclass(frozen=True)
class TrainingOptions:
    """How much to train; the model card says what the bundled weights were trained with.

    Attributes:
        run: folder of states and logs.
        device: where everything is computed.
        seed: of the scenes, their captions, the weights and the noise.
        images: number of scenes that are drawn.
        autoencoder_crops: crops that the autoencoder is trained on first.
        autoencoder_images: whole images that it is trained on then.
        denoiser_samples: latents that the denoiser is trained on.
        decoder_images: images that the decoder is trained on in the end.
        batch: samples of a training step.
        learning_rate: greatest learning rate of the optimiser.
        bundle: folder that ``export`` writes the finished weights to.
    """

    run: Path
    device: str = "cpu"
    seed: int = 0
    images: int = 40_000
    autoencoder_crops: int = 60_000
    autoencoder_images: int = 8_000
    denoiser_samples: int = 300_000
    decoder_images: int = 6_000
    batch: int = 32
    learning_rate: float = 1e-3
    bundle: Path | None = DEMO.bundled


OptionsType = TypeVar("OptionsType", bound=TrainingOptions)


def parse_arguments(
    description: str,
    options_class: type[OptionsType],
    names: Sequence[str],
    stages: Sequence[str],
    arguments: Sequence[str] | None = None,
) -> tuple[OptionsType, list[str]]:
    """Read the run's folder, the stages to run, and a flag for each of the named options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, help="folder of states and logs")
    parser.add_argument("stage", choices=stages, nargs="+")
    defaults: Mapping[str, Any] = {f.name: f.default for f in fields(options_class)}
    for name in names:
        default = defaults[name]
        kind = type(default) if isinstance(default, int | float | str) else Path
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=default)
    values = vars(parser.parse_args(arguments))
    chosen = values.pop("stage")
    return options_class(**values), chosen


def join_workers(options: TrainingOptions) -> None:
    """Connect the processes that ``torchrun`` has started, if it has."""
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo" if options.device == "cpu" else "nccl")
