"""The files of TAESD, the tiny autoencoder, as its author publishes them and ComfyUI takes them.

There, encoder and decoder are a file each, in which layers are numbered without any prefix. These
are read as one checkpoint, under prefixes that ComfyUI has for them in one file. The decoder begins
with a layer that has no weights and that diffusers does not count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from functools import partial
from pathlib import Path

from sdpy.checkpoints.base import Checkpoint, LazyTensors

PREFIXES = {"encoder": "taesd_encoder.", "decoder": "taesd_decoder."}
_UNCOUNTED = {"encoder": 0, "decoder": 1}
_MATES = {"encoder": "decoder", "decoder": "encoder"}
_NAME = re.compile(r"(\d{1,3})\.((?:conv\.\d\.|skip\.)?(?:weight|bias))")
BETWEEN = ","
"""Between the paths of the two files, where both are named."""


def halves(path: Path) -> tuple[Path, ...]:
    """The files that a path may mean: both that it names, or it and its mate, if there is one.

    The mate of ``taesd_decoder.safetensors`` is ``taesd_encoder.safetensors`` beside it.
    """
    if not os.path.exists(path) and BETWEEN in str(path):
        named = tuple(Path(one) for one in str(path).split(BETWEEN))
        return named if len(named) == len(PREFIXES) else (path,)
    for half, other in _MATES.items():
        mate = path.with_name(path.name.replace(half, other)) if half in path.name else path
        if mate != path and os.path.isfile(mate):
            return path, mate
    return (path,)


def half_of(names: Collection[str]) -> str | None:
    """Which half of a tiny autoencoder a file holds by its author's names; None for neither."""
    if not names or not all(_NAME.fullmatch(name) for name in names):
        return None
    if {"0.weight", "1.conv.0.weight"} <= set(names):
        return "encoder"
    return "decoder" if {"1.weight", "3.conv.0.weight"} <= set(names) else None


def other_half(half: str, names: Collection[str]) -> bool:
    """Whether names, with their prefix, are those of the other half."""
    return bool(names) and all(name.startswith(PREFIXES[_MATES[half]]) for name in names)


def with_prefix(checkpoint: Checkpoint, half: str) -> Checkpoint:
    """A half with its prefix before all names."""
    names = {f"{PREFIXES[half]}{name}": name for name in checkpoint.outline}
    outline = {ours: checkpoint.outline[name] for ours, name in names.items()}
    makers = {ours: partial(checkpoint.tensors.__getitem__, name) for ours, name in names.items()}
    return Checkpoint(
        checkpoint.path,
        checkpoint.format,
        LazyTensors(makers, outline),
        outline,
        checkpoint.metadata,
        checkpoint.mappings,
        checkpoint.is_mapped,
    )


def joined(first: Checkpoint, second: Checkpoint) -> Checkpoint:
    """Both halves, each with its prefix, under the path of the first."""
    outline = {**first.outline, **second.outline}
    makers = {
        name: partial(one.tensors.__getitem__, name)
        for one in (first, second)
        for name in one.outline
    }
    return Checkpoint(
        first.path,
        first.format,
        LazyTensors(makers, outline),
        outline,
        first.metadata,
        (*first.mappings, *second.mappings),
        first.is_mapped and second.is_mapped,
    )


def our_name(name: str) -> str | None:
    """Our name for one of a half's with its prefix; None for a name that it does not have."""
    for half, prefix in PREFIXES.items():
        found = _NAME.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if found is not None and int(found[1]) >= _UNCOUNTED[half]:
            return f"{half}.layers.{int(found[1]) - _UNCOUNTED[half]}.{found[2]}"
    return None
