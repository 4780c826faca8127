"""What every checkpoint format has in common."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from sdpy.checkpoints.probe import Probe
from sdpy.errors import SdpyError, ShortageError, WeightsError, is_shortage

DTYPES_BY_NAME: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""The dtypes in which models are stored and run, by what users call them."""

READ_AHEAD = 128 * 1024
"""Bytes; Linux reads at least so many ahead, of a file on any disk."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file, for reading.

    Attributes:
        path: the file.
        format: key of the format in ``sdpy.checkpoints.FORMATS``.
        tensors: name to tensor, on the CPU, in the file's dtypes and the file's order. They lie in
            a private mapping of the file: nothing is read before it is used, and writing to one
            never changes the file. They stay valid when this object is gone. Where the file does
            not allow mapping, a tensor is read each time that it is asked for.
        outline: the same names with tensors of the same shapes and dtypes whose values do not
            count; asking for them reads nothing.
        metadata: the file's own text entries, if its format has any.
        mappings: in which the tensors lie; several where the weights are in several files.
        is_mapped: whether all tensors lie there. Those of a compressed archive do not, nor those of
            old files that begin at odd addresses.
    """

    path: Path
    format: str
    tensors: Mapping[str, Tensor]
    outline: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    mappings: tuple[MappedFile, ...] = ()
    is_mapped: bool = True

    def forget(self, tensor: Tensor | None = None) -> None:
        """Give back the memory of what was read so far, or of one tensor; it is read again.

        Values written into mapped tensors are lost.
        """
        for mapping in self.mappings:
            if tensor is None or (tensor.numel() and mapping.holds(tensor)):
                mapping.forget(tensor)


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for, each by its own function.

    Attributes:
        outline: the same names with tensors on the meta device, of the same shapes and dtypes.
    """

    def __init__(
        self, makers: Mapping[str, Callable[[], Tensor]], outline: Mapping[str, Tensor]
    ) -> None:
        self._makers = makers
        self.outline = outline

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class CheckpointFormat(Protocol):
    """One file format. To add one: a module with such a class, and a line in the registry."""

    name: str
    suffixes: tuple[str, ...]
    """Extensions that choose this format for writing. Reading goes by content."""

    def matches(self, probe: Probe) -> bool:
        """Whether a file with these first bytes and members is of this format."""
        ...

    def read(self, path: Path) -> Checkpoint:
        """Open a file of this format. Raises ``WeightsError``."""
        ...

    def write(
        self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write a file atomically. Raises ``WeightsError`` and ``OutputError``."""
        ...


@dataclass(frozen=True)
class MappedFile:
    """A whole file as one storage, copy-on-write: pages are read when they are touched."""

    storage: torch.UntypedStorage
    mapping: mmap.mmap
    path: str
    descriptor: int
    state: tuple[int, int]

    def check_unchanged(self) -> None:
        """Find out whether the file still has the size and time of change that it was mapped with.

        A file that was cut short in its place ends the process when a page of it is touched that
        is no longer there; one that was overwritten gives other numbers. Another file that took
        its name does no harm.

        Raises:
            WeightsError: it has others.
        """
        if _state(self.descriptor) != self.state:
            raise WeightsError(
                f"{self.path} was changed while it was in use; run the command again, and leave "
                "the file alone meanwhile"
            )

    def forget(self, tensor: Tensor | None = None) -> None:
        """Give back all pages, or a tensor's, where the system can; they are read when touched."""
        if hasattr(mmap, "MADV_DONTNEED"):
            pages = range(len(self.mapping)) if tensor is None else self._pages(tensor)
            self.mapping.madvise(mmap.MADV_DONTNEED, pages.start, len(pages))

    def expect(self, tensor: Tensor) -> None:
        """Have the system begin to read a tensor's pages, where it can, without waiting."""
        if hasattr(mmap, "MADV_WILLNEED"):
            # It reads no more of a piece than is its habit, hence the small ones.
            for start in self._pages(tensor)[::READ_AHEAD]:
                length = min(READ_AHEAD, len(self.mapping) - start)
                self.mapping.madvise(mmap.MADV_WILLNEED, start, length)

    def holds(self, *tensors: Tensor) -> bool:
        """Whether all these tensors lie here."""
        begin = self.storage.data_ptr()
        end = begin + self.storage.nbytes()
        return all(begin <= tensor.data_ptr() < end for tensor in tensors if tensor.numel())

    def _pages(self, tensor: Tensor) -> range:
        """The bytes of the pages that a tensor, dense and of this mapping, lies on."""
        start = tensor.data_ptr() - self.storage.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        return range(start - start % mmap.PAGESIZE, end)


def map_file(file: BinaryIO) -> MappedFile:
    """Map a file that is open for reading."""
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    storage = torch.frombuffer(mapping, dtype=torch.uint8).untyped_storage()
    descriptor = os.dup(file.fileno())
    mapped = MappedFile(storage, mapping, str(file.name), descriptor, _state(descriptor))
    weakref.finalize(mapped, os.close, descriptor)
    return mapped


def _state(descriptor: int) -> tuple[int, int]:
    """Size and time of change of an open file."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def mapped_piece(
    mapping: torch.UntypedStorage, start: int, end: int, itemsize: int
) -> torch.UntypedStorage:
    """Bytes ``start`` to ``end`` of a mapping, copied only if they lie at an odd address."""
    if not 0 <= start <= end <= mapping.nbytes():
        raise ValueError("its tensors reach beyond its end")
    piece: torch.UntypedStorage = mapping[start:end]
    if start % itemsize == 0:
        return piece
    return torch.empty(0, dtype=torch.uint8).set_(piece).clone().untyped_storage()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor in row-major order as little-endian bytes.

    Copies only what is not already contiguous in main memory, and only this one tensor.
    """
    flat = tensor.detach().cpu().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def storable(
    tensors: Mapping[str, Tensor], dtypes: Mapping[torch.dtype, str]
) -> Mapping[str, Tensor]:
    """The outline of tensors that a format with these dtypes can hold.

    Raises:
        WeightsError: it cannot hold one of them.
    """
    lazy = isinstance(tensors, LazyTensors)
    outline = tensors.outline if isinstance(tensors, LazyTensors) else tensors
    for name, tensor in outline.items():
        if tensor.layout != torch.strided or tensor.is_quantized or (tensor.is_meta and not lazy):
            raise WeightsError(
                f"cannot store {printable(name)}: it is not an ordinary dense tensor"
            )
        if tensor.dtype not in dtypes:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise WeightsError(
                f"cannot store {printable(name)}: its dtype is "
                f"{str(tensor.dtype).removeprefix('torch.')}; this format holds {known}"
            )
    return outline


# What the standard library's, safetensors' and our own parsers raise for bytes that make no sense.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is parsed into one line.

    Raises:
        WeightsError: the file cannot be read, or makes no sense.
        ShortageError: memory does not suffice.
    """
    try:
        yield
    except SdpyError:
        raise
    except (OSError, MemoryError, *_FAULTS) as error:
        if is_shortage(error):
            raise ShortageError(
                f"not enough memory to open {path}: close other programs, or raise this one's limit"
            ) from error
        if not isinstance(error, OSError):
            raise _damaged(path, kind, str(error) or type(error).__name__) from error
        if error.errno != errno.EINVAL:
            raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
        # The file sent us to a place that cannot be.
        raise _damaged(path, kind, "it points outside itself") from error


def _damaged(path: Path, kind: str, reason: str) -> WeightsError:
    return WeightsError(
        f"{path} is damaged or not a proper {kind} file ({printable(reason, limit=200)}); "
        "download or write it again"
    )


def printable(text: str, limit: int = 100) -> str:
    """Text from a file, fit for a line on a terminal: no control characters, not too long."""
    plain = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii")
        for c in text[: limit + 1]
    )
    return plain if len(plain) <= limit else plain[:limit] + "..."
