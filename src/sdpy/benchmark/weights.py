"""Random weights of a variant's sizes, as good as trained ones for measuring."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdpy.checkpoints import LazyTensors, check_weights, is_model_folder, write_checkpoint
from sdpy.components import COMPONENTS
from sdpy.errors import OutputError
from sdpy.files import atomic_write
from sdpy.models import CLIPTextConfig
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.classes import class_names, config_json, make_model
from sdpy.zoo.config_files import model_index_json, scheduler_json
from sdpy.zoo.convert import tokenizer_files
from sdpy.zoo.files import ModelFiles
from sdpy.zoo.variants import ModelVariant


def write_random_model(folder: Path, variant: ModelVariant) -> None:
    """Write a diffusers folder with random weights, float32, and a made-up vocabulary.

    Each tensor has the scale that keeps activations near unit variance, none is at a value that
    makes its layer vanish, and the same variant always gets the same numbers. A folder that
    already holds a whole model is left as it is.

    Raises:
        WeightsError: the folder holds a model of other sizes.
        OutputError: the folder cannot be written, or the disk has too little room.
    """
    models = {name: make_model(name, config) for name, config in variant.configs.items()}
    files = model_files(folder, variant)
    if is_model_folder(folder):
        for name, model in models.items():
            check_weights(model, files.weights[name], component=name)
        return
    tokenizers = {name: str(COMPONENTS[name].tokenizer) for name in variant.text_encoders}
    try:
        for name in (*models, "scheduler", *tokenizers.values()):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
    _check_room(folder, models)
    for seed, (name, model) in enumerate(models.items()):
        write_checkpoint(files.weights[name], random_weights(model, seed))
        config = config_json(name, variant.configs[name], variant)
        _write_json(folder / name / "config.json", config)
    scheduler = scheduler_json(variant.noise, variant.timestep_spacing, variant.scheduler)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    for encoder, tokenizer in tokenizers.items():
        sizes = variant.text_encoders[encoder]
        for name, text in _tokenizer_files(sizes, variant.pad_ids.get(encoder)).items():
            _write(folder / tokenizer / name, text)
    # Last, so that a folder that was not finished is none.
    index = model_index_json(variant, class_names(variant.configs), has_tokenizer=True)
    _write_json(folder / "model_index.json", index)


def random_weights(model: nn.Module, seed: int = 0) -> LazyTensors:
    """Random numbers for every tensor of a model, each drawn when it is asked for."""
    outline = model.state_dict()
    makers = {
        name: partial(_random, name, tensor.shape, (seed << 32) + i)
        for i, (name, tensor) in enumerate(outline.items())
    }
    return LazyTensors(makers, {name: tensor.to("meta") for name, tensor in outline.items()})


def made_up_merges(count: int) -> Iterator[tuple[str, str]]:
    """So many byte-pair merges, each of two single bytes.

    Raises:
        ValueError: there are only 131,072 of them.
    """
    symbols = CLIPTokenizer(()).tokens[:512]  # the bytes, then the same at the end of a word
    if count > 256 * 512:
        raise ValueError(f"{count} merges of two bytes: there are only {256 * 512}")
    return itertools.islice(itertools.product(symbols[:256], symbols), count)


def model_files(folder: Path, variant: ModelVariant) -> ModelFiles:
    """The files of a folder that `write_random_model` has written."""
    weights = {
        name: folder / name / f"{COMPONENTS[name].folder_stems[0]}.safetensors"
        for name in variant.configs
    }
    tokenizer = str(COMPONENTS[next(iter(variant.text_encoders))].tokenizer)
    return ModelFiles(weights, vocabulary=folder / tokenizer / "merges.txt")


def _random(name: str, shape: torch.Size, seed: int) -> Tensor:
    # Evenly distributed numbers are drawn several times faster than normal ones.
    unit = torch.empty(shape).uniform_(
        -math.sqrt(3), math.sqrt(3), generator=torch.Generator().manual_seed(seed)
    )
    if name.endswith("bias"):
        return unit.mul_(0.1)
    if len(shape) == 1:  # the weight of a norm
        return unit.mul_(0.2).add_(1.0)
    return unit.div_(math.sqrt(shape[1:].numel()))


def _tokenizer_files(config: CLIPTextConfig, pad_id: int | None) -> dict[str, str]:
    merges = list(made_up_merges(config.vocab_size - CLIPTokenizer(()).vocab_size))
    length = config.max_position_embeddings
    return tokenizer_files(CLIPTokenizer(merges), merges, length=length, pad_id=pad_id)


def _check_room(folder: Path, models: dict[str, nn.Module]) -> None:
    needed = 4 * sum(p.numel() for model in models.values() for p in model.parameters())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"random weights take {needed / 1e9:.1f} GB, but {folder} has room for "
            f"{free / 1e9:.1f} GB; use a folder on another disk (the environment variable TMPDIR "
            "names the one of temporary files)"
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
