"""The formats that sdpy knows, and reading and writing in whichever of them fits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from torch import Tensor

from sdpy.checkpoints import taesd
from sdpy.checkpoints.base import Checkpoint, CheckpointFormat, reading
from sdpy.checkpoints.folders import (
    SHARD_MARK,
    find_weights,
    is_model_folder,
    is_shard_index,
    read_shards,
    shard_files,
)
from sdpy.checkpoints.limits import check_growth, check_names
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


class FileState(NamedTuple):
    """What tells whether a file is still the one that was read.

    Attributes:
        path: as it was given.
        size: in bytes.
        mtime_ns: time of the last change to its content, in nanoseconds.
        inode: number of the file in its file system, which a file that replaces it does not have.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int


def fingerprint(path: str | os.PathLike[str]) -> tuple[FileState, ...]:
    """What identifies the weights at a path: the state of all files that they are in.

    The folder of one component stands for its weights file; the index of weights in several files
    brings all of these with it, a half of TAESD the other half. Opens no weights.

    Raises:
        WeightsError: a file is missing, or an index cannot be read.
    """
    file = Path(path)
    if os.path.isdir(file) and not is_model_folder(file):
        file = find_weights(file)
    files = list(taesd.halves(file))
    if SHARD_MARK in file.name and os.path.isfile(file) and is_shard_index(probe(file)):
        files += shard_files(file)
    return tuple(file_state(one) for one in files)


def file_state(path: Path) -> FileState:
    """The state that a file is in now.

    Raises:
        WeightsError: it is missing.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        probe(path)  # says in one line what is wrong
        raise
    return FileState(str(path), status.st_size, status.st_mtime_ns, status.st_ino)


_open: WeakValueDictionary[tuple[FileState, ...], Checkpoint] = WeakValueDictionary()


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a weights file of any known format; its content decides which, not its name.

    The folder of one component, and the index of weights in several files, will do too. Reads
    names, shapes and dtypes; the numbers are mapped, and read when they are used. While somebody
    holds the result, the same files are not opened again: everyone gets the same object, until
    their `fingerprint` changes.

    Raises:
        WeightsError: the file is missing, cannot be read, is damaged or no weights file.
    """
    files = fingerprint(path)
    checkpoint = _open.get(files)
    if checkpoint is None:
        checkpoint = _open[files] = _read(*(Path(file.path) for file in files))
    return checkpoint


def _read(path: Path, *others: Path) -> Checkpoint:
    """A file, with those of the others that belong to it."""
    found = probe(path)
    if is_shard_index(found):
        return read_shards(found.path, read_checkpoint)
    for form in FORMATS.values():
        if form.matches(found):
            checkpoint = form.read(found.path)
            with reading(path, form.name):
                check_names(checkpoint.outline)
                check_growth(checkpoint.outline.values(), found.size)
            half = taesd.half_of(checkpoint.outline)
            return checkpoint if half is None else _with_mate(checkpoint, half, others)
    raise WeightsError(f"{path} {looks_like(found)}")


def _with_mate(checkpoint: Checkpoint, half: str, others: Iterable[Path]) -> Checkpoint:
    """A half of TAESD with the other half, if it is there."""
    one = taesd.with_prefix(checkpoint, half)
    for path in others:
        other = _read(path)
        if taesd.other_half(half, other.outline):
            return taesd.joined(one, other)
    return one


def write_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors in the format that the file's extension names, atomically.

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
