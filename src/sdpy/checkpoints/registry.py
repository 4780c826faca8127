"""The formats that sdpy knows, and reading and writing in whichever of them fits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sdpy.checkpoints.base import Checkpoint, CheckpointFormat
from sdpy.checkpoints.folders import (
    find_weights,
    is_model_folder,
    is_shard_index,
    read_shards,
)
from sdpy.checkpoints.npz import NpzFormat
from sdpy.checkpoints.ot import OtFormat
from sdpy.checkpoints.probe import looks_like, probe
from sdpy.checkpoints.pytorch import TorchFormat
from sdpy.checkpoints.safetensors import SafetensorsFormat
from sdpy.errors import UsageError, WeightsError

FORMATS: dict[str, CheckpointFormat] = {
    "ot": OtFormat(),
    "safetensors": SafetensorsFormat(),
    "npz": NpzFormat(),
    "torch": TorchFormat(),
}


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a weights file of any known format; its content decides which, not its name.

    The folder of one component, and the index of weights in several files, will do too. Reads
    names, shapes and dtypes; the numbers are mapped, and read when they are used.

    Raises:
        WeightsError: the file is missing, cannot be read, is damaged or no weights file.
    """
    found = probe(Path(path))
    if found.folder and not is_model_folder(found.path):
        found = probe(find_weights(found.path))
    if is_shard_index(found):
        return read_shards(found.path, read_checkpoint)
    for form in FORMATS.values():
        if form.matches(found):
            return form.read(found.path)
    raise WeightsError(f"{path} {looks_like(found)}")


def write_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors in the format that the file's extension names, whole or not at all.

    Tensors may be on any device and of any layout in memory; they are written one at a time.

    Raises:
        UsageError: no format has this extension.
        WeightsError: the format cannot hold one of the tensors.
        OutputError: the file could not be written.
    """
    target = Path(path)
    for form in FORMATS.values():
        if target.suffix.lower() in form.suffixes:
            form.write(target, tensors, metadata)
            return
    known = ", ".join(suffix for form in FORMATS.values() for suffix in form.suffixes)
    raise UsageError(f"cannot write weights to {path}: end its name in one of {known}")
