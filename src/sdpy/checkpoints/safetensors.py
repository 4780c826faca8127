""".safetensors: the format of Hugging Face's library of that name (its README gives the layout)."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sdpy.checkpoints.base import (
    Checkpoint,
    LazyTensors,
    map_file,
    mapped_piece,
    printable,
    reading,
    storable,
    tensor_bytes,
)
from sdpy.checkpoints.limits import check_numbers, check_shape
from sdpy.checkpoints.probe import Probe
from sdpy.errors import WeightsError
from sdpy.files import atomic_write, open_input

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# Read, but not written: no model of ours takes them, and the strict check then names them.
DTYPES: dict[str, torch.dtype] = {
    **{name: dtype for dtype, name in DTYPE_NAMES.items()},
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
}
MAX_HEADER_BYTES = 100_000_000
_OTHER_DTYPE = re.compile("[A-Z][A-Z0-9_]{1,15}")


class SafetensorsFormat:
    """Reader and writer of single ``.safetensors`` files."""

    name = "safetensors"
    suffixes: tuple[str, ...] = (".safetensors",)

    def matches(self, probe: Probe) -> bool:
        """See `CheckpointFormat.matches`."""
        if len(probe.head) < 9:
            return False
        (header_bytes,) = struct.unpack("<Q", probe.head[:8])
        return 2 <= header_bytes <= MAX_HEADER_BYTES and probe.head[8:].lstrip().startswith(b"{")

    def read(self, path: Path) -> Checkpoint:
        """See `CheckpointFormat.read`."""
        if not _is_utf8(path):
            raise WeightsError(
                f"{printable(str(path))}: the name of this file is not UTF-8, and the safetensors "
                "library opens no others; rename it"
            )
        with reading(path, ".safetensors"), open_input(path) as file:
            size = os.fstat(file.fileno()).st_size
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if 8 + header_bytes > size:
                raise ValueError(f"it ends after {size} of {8 + header_bytes} bytes")
            header = _object(json.loads(file.read(header_bytes)), "its header")
            metadata = _metadata(header.pop("__metadata__", None))
            _refuse_other_dtypes(path, header)
            places = {name: _Place.of(name, entry) for name, entry in header.items()}
            end = 8 + header_bytes + max((place.end for place in places.values()), default=0)
            if end > size:
                raise ValueError(f"it ends after {size} of {end} bytes")
            with safe_open(path, framework="pt"):
                pass  # The library checks the header. Its tensors would be read at once.
            mapping = map_file(file)
            makers = {
                n: partial(p.tensor, mapping.storage, 8 + header_bytes) for n, p in places.items()
            }
            outline = {
                n: torch.empty(p.shape, dtype=p.dtype, device="meta") for n, p in places.items()
            }
            tensors = LazyTensors(makers, outline)
            aligned = all(
                (8 + header_bytes + p.start) % p.dtype.itemsize == 0 for p in places.values()
            )
            return Checkpoint(path, self.name, tensors, outline, metadata, (mapping,), aligned)

    def write(
        self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write tensors one at a time; the library's own writer first copies them all.

        Raises:
            WeightsError: a dtype that the format cannot hold.
            OutputError: the file could not be written.
        """
        # The widest first, as the library does: then every tensor starts at a multiple of its
        # own item size.
        outline = storable(tensors, DTYPE_NAMES)
        names = sorted(outline, key=lambda name: (-outline[name].dtype.itemsize, name))
        # transformers refuses files that do not say "pt".
        header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        end = 0
        for name in names:
            tensor = outline[name]
            start, end = end, end + tensor.numel() * tensor.dtype.itemsize
            header[name] = {
                "dtype": DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with atomic_write(path) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                file.write(tensor_bytes(tensors[name]))


@dataclass(frozen=True)
class _Place:
    """A header's entry: what a tensor is, and its bytes, counted from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def of(cls, name: str, entry: Any) -> _Place:
        entry = _object(entry, f"the entry of {name}")
        shape = check_shape(entry.get("shape"))
        offsets = check_numbers(entry.get("data_offsets"))
        if len(offsets) != 2 or entry.get("dtype") not in DTYPES:
            raise ValueError(f"the entry of {name} makes no sense")
        place = cls(DTYPES[entry["dtype"]], shape, *offsets)
        if math.prod(shape) * place.dtype.itemsize != place.end - place.start:
            raise ValueError(f"the shape of {name} does not fit its place")
        return place

    def tensor(self, mapping: torch.UntypedStorage, base: int) -> Tensor:
        """A view of the mapped file; a copy if the header's length is odd, as in old files."""
        start, end = base + self.start, base + self.end
        piece = mapped_piece(mapping, start, end, self.dtype.itemsize)
        return torch.empty(0, dtype=self.dtype).set_(piece).reshape(self.shape)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no JSON object")
    return value


def _is_utf8(path: Path) -> bool:
    """Whether a path is text; bytes that are none arrive as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def _metadata(value: Any) -> dict[str, str]:
    found = {} if value is None else _object(value, "its metadata")
    if not all(isinstance(text, str) for text in found.values()):
        raise ValueError("its metadata is not made of texts")
    return found


def _refuse_other_dtypes(path: Path, header: Mapping[str, Any]) -> None:
    """A kind of numbers that the format has and torch has not."""
    for entry in header.values():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if isinstance(dtype, str) and dtype not in DTYPES and _OTHER_DTYPE.fullmatch(dtype):
            raise WeightsError(
                f"{path} holds numbers of kind {dtype}, which sdpy does not read; take the fp16 or "
                "fp32 version"
            )
