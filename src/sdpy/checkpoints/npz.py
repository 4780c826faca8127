""".npz: NumPy's archives of arrays, one ``NAME.npy`` a tensor (format: numpy.lib.format)."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tokenize import TokenError

import torch
from numpy.lib import format as npy
from torch import Tensor

from sdpy.checkpoints.archives import add_member, members_of, stored_range
from sdpy.checkpoints.base import (
    Checkpoint,
    LazyTensors,
    map_file,
    mapped_piece,
    reading,
    storable,
    tensor_bytes,
)
from sdpy.checkpoints.limits import check_shape
from sdpy.checkpoints.probe import Probe
from sdpy.files import atomic_write, open_input

# NumPy has no bfloat16.
DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float32: "<f4",
    torch.float16: "<f2",
    torch.float64: "<f8",
    torch.int64: "<i8",
    torch.int32: "<i4",
    torch.int16: "<i2",
    torch.int8: "|i1",
    torch.uint8: "|u1",
    torch.bool: "|b1",
}
DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in DTYPE_NAMES.items()}
# As much of a member as can be header: numpy itself refuses headers of more than 10,000 bytes.
HEAD_BYTES = 12_000


class NpzFormat:
    """Reader and writer of ``.npz`` files. What ``numpy.savez_compressed`` wrote is read too."""

    name = "npz"
    suffixes: tuple[str, ...] = (".npz",)

    def matches(self, probe: Probe) -> bool:
        """See `CheckpointFormat.matches`."""
        return bool(probe.members) and all(name.endswith(".npy") for name in probe.members or ())

    def read(self, path: Path) -> Checkpoint:
        """See `CheckpointFormat.read`."""
        with reading(path, ".npz"), open_input(path) as file, zipfile.ZipFile(file) as archive:
            mapping = map_file(file)
            arrays: dict[str, _Array] = {}
            for member, info in members_of(archive).items():
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{member} is compressed in an unusual way")
                stored = info.compress_type == zipfile.ZIP_STORED
                start = stored_range(file, archive, info).start if stored else None
                with archive.open(info) as opened:
                    array = _Array.of(opened.read(HEAD_BYTES), path, member, start)
                if array.end > info.file_size:
                    raise ValueError(f"{member} is shorter than its array")
                arrays[member.removesuffix(".npy")] = array
        makers = {name: partial(array.tensor, mapping.storage) for name, array in arrays.items()}
        outline = {
            name: torch.empty(array.shape, dtype=array.dtype, device="meta")
            for name, array in arrays.items()
        }
        tensors = LazyTensors(makers, outline)
        mapped = all(array.is_mapped for array in arrays.values())
        return Checkpoint(path, self.name, tensors, outline, mappings=(mapping,), is_mapped=mapped)

    def write(
        self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write tensors, not compressed; the format has no place for ``metadata``."""
        outline = storable(tensors, DTYPE_NAMES)
        with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, tensor in outline.items():
                add_member(archive, f"{name}.npy", _header(tensor), tensor_bytes(tensors[name]))


def _header(tensor: Tensor) -> bytes:
    """What stands before the numbers; numpy pads it to a multiple of 64 bytes."""
    buffer = io.BytesIO()
    descr, shape = DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)
    npy.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@dataclass(frozen=True)
class _Array:
    """One member: what its header says, and where its numbers are.

    ``start`` is the member's place in the file, or None for one that has to be unpacked; ``offset``
    and ``end`` bound the numbers within the member.
    """

    path: Path
    member: str
    start: int | None
    dtype: torch.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int
    end: int

    @classmethod
    def of(cls, head: bytes, path: Path, member: str, start: int | None) -> _Array:
        stream = io.BytesIO(head)
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{member} has an unknown version of the format")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it tells of headers that Python 2 wrote
                shape, fortran_order, numpy_dtype = read(stream)
        # A header is a Python literal, whose parser has a stack of its own.
        except (SyntaxError, TokenError, MemoryError, RecursionError) as error:
            raise ValueError(f"{member} has a garbled header") from error
        dtype = DTYPES.get(numpy_dtype.str)
        if dtype is None:
            raise ValueError(f"{member} holds {numpy_dtype}, not plain little-endian numbers")
        shape = check_shape(shape)
        end = stream.tell() + math.prod(shape) * dtype.itemsize
        return cls(path, member, start, dtype, shape, fortran_order, stream.tell(), end)

    @property
    def is_mapped(self) -> bool:
        return self.start is not None and (self.start + self.offset) % self.dtype.itemsize == 0

    def tensor(self, mapping: torch.UntypedStorage) -> Tensor:
        if self.start is None:
            flat = self._unpacked()
        else:
            first, last = self.start + self.offset, self.start + self.end
            piece = mapped_piece(mapping, first, last, self.dtype.itemsize)
            flat = torch.empty(0, dtype=self.dtype).set_(piece)
        if self.fortran_order:
            return flat.reshape(self.shape[::-1]).permute(*reversed(range(len(self.shape))))
        return flat.reshape(self.shape)

    def _unpacked(self) -> Tensor:
        with (
            reading(self.path, ".npz"),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self.member) as opened,
        ):
            opened.read(self.offset)
            data = bytearray(opened.read(self.end - self.offset))
            if len(data) != self.end - self.offset:
                raise ValueError(f"{self.member} is shorter than its array")
        return (
            torch.frombuffer(data, dtype=self.dtype) if data else torch.empty(0, dtype=self.dtype)
        )
