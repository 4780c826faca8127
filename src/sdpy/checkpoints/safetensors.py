""".safetensors: the format of Hugging Face's library of that name (its README gives the layout)."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdpy.checkpoints.base import Checkpoint, check_storable, reading, tensor_bytes
from sdpy.checkpoints.probe import Probe
from sdpy.files import atomic_write

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
MAX_HEADER_BYTES = 100_000_000


class SafetensorsFormat:
    """Reader and writer of single ``.safetensors`` files."""

    name = "safetensors"
    suffixes: tuple[str, ...] = (".safetensors",)

    def matches(self, probe: Probe) -> bool:
        if len(probe.head) < 9:
            return False
        (header_bytes,) = struct.unpack("<Q", probe.head[:8])
        return 2 <= header_bytes <= MAX_HEADER_BYTES and probe.head[8:9] == b"{"

    def read(self, path: Path) -> Checkpoint:
        with reading(path, ".safetensors", faults=(SafetensorError, ValueError, RuntimeError)):
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                return Checkpoint(path, self.name, tensors, file.metadata() or {})

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
        names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
        # transformers refuses files that do not say "pt".
        header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        end = 0
        for name in names:
            tensor = tensors[name]
            check_storable(name, tensor, DTYPE_NAMES)
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
