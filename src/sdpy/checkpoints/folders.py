"""Folders of weights as diffusers lays them out, and weights that are cut into several files.

::

    model_index.json                         which components there are, and their classes
    unet/config.json                         sizes
    unet/diffusion_pytorch_model.safetensors or .bin, of a variant .fp16.safetensors, in shards
                                             with an index
    text_encoder/config.json, model.safetensors; vae/...
    tokenizer/merges.txt or tokenizer.json   CLIP's vocabulary; tokenizer_2/ has the same
    scheduler/scheduler_config.json          noise, and what the UNet predicts
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from sdpy.checkpoints.base import Checkpoint, LazyTensors, printable, reading
from sdpy.checkpoints.probe import Probe
from sdpy.components import COMPONENTS, components_with_role, unknown_components
from sdpy.errors import UsageError, WeightsError
from sdpy.files import read_input

MODEL_INDEX = "model_index.json"
SHARD_MARK = ".index."
"""In the name of an index of weights that are in several files."""

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".ot", ".npz")
"""How the names of weights end; the first that exists is taken."""

VARIANTS = ("fp16", "bf16", "fp32")
"""Variants in the order in which they are taken where there are no weights without one."""

_VARIANT = re.compile(
    rf"(?:{'|'.join(STEMS)})"
    r"\.(?:(V)\.(?:safetensors|bin)(?:\.index\.json)?|(?:safetensors|bin)\.index\.(V)\.json)".replace(
        "V", r"(?:(?!-\d{5}-of-)[\w-])+"
    )  # no shard's number
)

MAX_JSON_BYTES = 64 * 2**20

UNFINISHED = (".part", ".incomplete", ".crdownload", ".aria2", ".tmp", ".download")
"""What programs append to the name of a file while they fetch it."""


@dataclass(frozen=True)
class ModelFolder:
    """A diffusers folder.

    Attributes:
        path: the folder.
        weights: component to its weights file.
        configs: component, or "scheduler", to what its JSON file says, unchecked; empty where there
            is none.
        vocabulary: CLIP's merges, which all text encoders share; None if the folder has none.
        pad_ids: text encoder to the token that fills up its prompts: 0, as in Stable Diffusion 2.x,
            or None for the end token. Only those whose tokenizer is there.
        index: what ``model_index.json`` says.
    """

    path: Path
    weights: Mapping[str, Path]
    configs: Mapping[str, Mapping[str, Any]]
    vocabulary: Path | None
    pad_ids: Mapping[str, int | None]
    index: Mapping[str, Any]


def is_model_folder(path: Path) -> bool:
    """Whether a path is a diffusers folder of a whole model."""
    return os.path.isfile(path / MODEL_INDEX)  # False also for a name that cannot be


def read_model_folder(path: Path, variant: str | None = None) -> ModelFolder:
    """What a diffusers folder holds. Opens no weights.

    Args:
        path: of the folder.
        variant: of the weights, such as "fp16"; components that do not have it have their usual
            ones. None for those of `find_weights`.

    Raises:
        UsageError: no component has that variant.
        WeightsError: a JSON file is broken, a component lacks its weights, or the folder holds
            something else than Stable Diffusion 1.x, 2.x or XL.
    """
    index = _read_json(path / MODEL_INDEX)
    if "unet" not in index or not index.keys().isdisjoint(unknown_components()):
        kind = printable(str(index.get("_class_name", "an unknown pipeline")))
        raise WeightsError(f"{path} holds a {kind}; sdpy runs Stable Diffusion 1.x, 2.x, XL")
    encoders = [row.name for row in components_with_role("text_encoder")]
    if _has(index, "image_encoder") and not any(_has(index, name) for name in encoders):
        raise WeightsError(
            f"{path} holds a model of image variations "
            f"({printable(str(index.get('_class_name')))}), whose UNet is told an image instead of "
            "a prompt; sdpy does not run it"
        )
    present = [name for name in COMPONENTS if os.path.isdir(path / name)]
    configs = {name: _read_optional(path / name / "config.json") for name in present}
    configs["scheduler"] = _read_optional(path / "scheduler" / "scheduler_config.json")
    tokenizers = {
        name: path / row.tokenizer for name, row in COMPONENTS.items() if row.tokenizer is not None
    }
    present_tokenizers = {
        name: folder for name, folder in tokenizers.items() if os.path.isdir(folder)
    }
    vocabularies = [vocabulary_in(folder) for folder in present_tokenizers.values()]
    return ModelFolder(
        path=path,
        weights=_find_all(path, present, variant),
        configs=configs,
        vocabulary=next((file for file in vocabularies if file is not None), None),
        pad_ids={name: _pad_id(folder) for name, folder in present_tokenizers.items()},
        index=index,
    )


def vocabulary_in(tokenizer: Path) -> Path | None:
    """The file with the byte-pair merges in a tokenizer's folder, of old or new transformers."""
    files = [tokenizer / "merges.txt", tokenizer / "tokenizer.json"]
    return next((file for file in files if file.is_file()), None)


def _pad_id(tokenizer: Path) -> int | None:
    """The token that a tokenizer fills up prompts with, if it is not the end token."""
    options = _read_optional(tokenizer / "tokenizer_config.json")
    pad = (options | _read_optional(tokenizer / "special_tokens_map.json")).get("pad_token")
    return 0 if (pad.get("content") if isinstance(pad, dict) else pad) == "!" else None


def _has(index: Mapping[str, Any], component: str) -> bool:
    """Whether a pipeline has such a component: its entry names a library and a class."""
    entry = index.get(component)
    return isinstance(entry, list) and any(entry)


def _find_all(path: Path, names: list[str], variant: str | None) -> dict[str, Path]:
    """The weights of these components of a folder."""
    known = {name: _variants_in(path / name) for name in names}
    if variant is not None and not any(variant in found for found in known.values()):
        others = sorted({one for found in known.values() for one in found})
        advice = f"use one of {', '.join(others)}" if others else "leave --variant out"
        raise UsageError(f"{path} has no weights of the variant '{printable(variant)}': {advice}")
    return {
        name: find_weights(path / name, variant if variant in known[name] else None)
        for name in names
    }


def find_weights(folder: Path, variant: str | None = None) -> Path:
    """The weights file of one component's folder.

    Args:
        folder: of the component.
        variant: such as "fp16"; None for the weights of no variant, or where there are none such,
            for the first of `VARIANTS`, or for the only one that there is.

    Raises:
        WeightsError: there is none, or only an unfinished download, or several variants of which
            none is better than the others.
    """
    if variant is None:
        plain = _first_of(folder, None)
        if plain is not None:
            return plain
        found = _variants_in(folder)
        known = [one for one in VARIANTS if one in found]
        if not known and len(found) > 1:
            raise WeightsError(
                f"{folder} holds the variants {', '.join(found)}; choose one with --variant"
            )
        variant = next(iter((*known, *found)), None)
    chosen = None if variant is None else _first_of(folder, variant)
    if chosen is not None:
        return chosen
    for file in sorted(folder.iterdir()):
        if file.name.startswith(STEMS) and file.suffix in UNFINISHED:
            raise WeightsError(f"{file} is an unfinished download; download it again")
    raise WeightsError(
        f"{folder} holds no weights: looked for {STEMS[0]}{ENDINGS[0]}, {STEMS[1]}{ENDINGS[0]} "
        "and the like"
    )


def _first_of(folder: Path, variant: str | None) -> Path | None:
    """The first that exists of the names of a variant's weights."""
    files = (folder / (stem + end) for end in _endings(variant) for stem in STEMS)
    return next((file for file in files if file.is_file()), None)


def _endings(variant: str | None) -> Iterator[str]:
    for ending in ENDINGS:
        if variant is None:
            yield ending
        else:
            yield f".{variant}{ending}"
            if ending.endswith(".json"):  # as diffusers wrote them first
                yield f"{ending.removesuffix('.json')}.{variant}.json"


def _variants_in(folder: Path) -> list[str]:
    """The variants of which a component's folder holds weights, in alphabetical order."""
    matches = (_VARIANT.fullmatch(file.name) for file in folder.iterdir())
    found = {next(filter(None, match.groups())) for match in matches if match}
    return sorted(found)


def config_beside(weights: Path) -> Mapping[str, Any]:
    """What ``config.json`` in the folder of a weights file says; empty if there is none.

    Raises:
        WeightsError: it is broken.
    """
    return _read_optional(weights.parent / "config.json")


def _read_optional(path: Path) -> dict[str, Any]:
    return _read_json(path) if os.path.isfile(path) else {}


def _read_json(path: Path) -> dict[str, Any]:
    with reading(path, "JSON"):
        found = json.loads(read_input(path, MAX_JSON_BYTES))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        return found


# -------------------------------------------------------------------------------------- shards


def is_shard_index(probe: Probe) -> bool:
    """Whether a file is the index of weights that are cut into several files."""
    return probe.head.lstrip().startswith(b"{") and SHARD_MARK in probe.path.name


def shard_files(path: Path) -> list[Path]:
    """The files that an index names, each once.

    Raises:
        WeightsError: the index is broken, or names files elsewhere.
    """
    with reading(path, "index of shards"):
        shards = list(dict.fromkeys(_read_json(path)["weight_map"].values()))
        for shard in shards:
            if PurePath(shard).name != shard:
                raise ValueError(f"it names the file {shard}, which is not beside it")
        return [path.parent / shard for shard in shards]


def read_shards(path: Path, read: Callable[[Path], Checkpoint]) -> Checkpoint:
    """All shards of an index as one checkpoint.

    Args:
        path: of the index.
        read: opens a shard.

    Raises:
        WeightsError: the index or a shard is missing or broken, or they do not fit together.
    """
    with reading(path, "index of shards"):
        weight_map = _read_json(path)["weight_map"]
        shards = {file.name: read(file) for file in shard_files(path)}
        outline: dict[str, Tensor] = {}
        for name, shard in weight_map.items():
            if name not in shards[shard].outline:
                raise ValueError(f"{shard} does not hold {name}")
            outline[name] = shards[shard].outline[name]
        unlisted = sum(len(one.outline) for one in shards.values()) - len(outline)
        if unlisted:
            raise ValueError(f"the shards hold {unlisted} more tensors than it lists")

    makers = {
        name: partial(shards[shard].tensors.__getitem__, name) for name, shard in weight_map.items()
    }
    form = next(iter(shards.values())).format if shards else "safetensors"
    return Checkpoint(
        path,
        form,
        LazyTensors(makers, outline),
        outline,
        mappings=tuple(mapping for one in shards.values() for mapping in one.mappings),
        is_mapped=all(one.is_mapped for one in shards.values()),
    )
