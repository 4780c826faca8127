"""Tensors as torch pickles them: a view of a storage, which lies elsewhere in the archive.

The ground that ``.ot`` files and those of ``torch.save`` share, for reading and for writing.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from sdpy.checkpoints.archives import members_of, stored_range
from sdpy.checkpoints.base import MappedFile, map_file, mapped_piece, storable
from sdpy.checkpoints.limits import check_numbers, check_shape
from sdpy.checkpoints.pickles import Call, Global, Reference

STORAGE_CLASSES: dict[torch.dtype, str] = {
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.float64: "DoubleStorage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
}
MakePiece = Callable[[], Tensor]
DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in STORAGE_CLASSES.items()}
REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")


# ------------------------------------------------------------------------------------ reading


class Storages(Protocol):
    """Gives the storage that a pickle calls ``key``."""

    def get(self, key: str, itemsize: int) -> torch.UntypedStorage:
        """Its bytes, at an address that is a multiple of ``itemsize``.

        Raises:
            ValueError: it is missing, or not where it should be.
        """
        ...


class ArchiveStorages:
    """The archive's storages, each a piece of one mapping of the file, made when asked for."""

    def __init__(self, file: BinaryIO, archive: zipfile.ZipFile, folder: str) -> None:
        self.file = file
        self.archive = archive
        self.members = members_of(archive)
        self.folder = folder
        self.mapping: MappedFile = map_file(file)
        self.made: dict[tuple[str, int], torch.UntypedStorage] = {}

    def get(self, key: str, itemsize: int) -> torch.UntypedStorage:
        """The storage of that key, for numbers of so many bytes; made once."""
        if (key, itemsize) not in self.made:
            info = self.members.get(self.folder + key)
            if info is None:
                raise ValueError(f"storage {key} is missing")
            place = stored_range(self.file, self.archive, info)
            piece = mapped_piece(self.mapping.storage, place.start, place.stop, itemsize)
            self.made[key, itemsize] = piece
        return self.made[key, itemsize]


def rebuild_tensor(call: Call, storages: Storages) -> Tensor:
    """One tensor as a view of its storage, after checking that it lies within."""
    reference, offset, size, stride = call.arguments[:4]
    if not isinstance(reference, Reference):
        raise ValueError("a tensor has no storage")
    tag, storage_class, key, _device, numel = reference.id
    if tag != "storage" or not isinstance(storage_class, Global) or not isinstance(key, str):
        raise ValueError("a tensor has a storage of unknown kind")
    size, stride = check_shape(size), check_numbers(stride)
    numel, offset = check_numbers([numel, offset])
    if len(size) != len(stride):
        raise ValueError("a tensor has impossible sizes")
    dtype = DTYPES[storage_class.name]
    storage = storages.get(key, dtype.itemsize)
    if numel * dtype.itemsize > storage.nbytes():
        raise ValueError(f"storage {key} is shorter than its tensors need")
    if 0 not in size:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= numel:
            raise ValueError(f"a tensor reaches beyond its storage {key}")
    elif offset > numel:
        raise ValueError(f"a tensor starts beyond its storage {key}")
    return torch.empty(0, dtype=dtype).set_(storage, offset, size, stride)


# ------------------------------------------------------------------------------------ writing


@dataclass
class Stored:
    """A tensor on its way into an archive, and where its values will be.

    ``tensor`` is on the meta device if its values are made when they are written.
    """

    name: str
    tensor: Tensor
    key: int = -1
    offset: int = 0
    stride: tuple[int, ...] = ()
    numel: int = 0
    """Length of the storage, in elements."""

    @property
    def start(self) -> int:
        """Where the tensor begins in its storage, in numbers."""
        return int(self.tensor.storage_offset())

    @property
    def end(self) -> int:
        """One past the last element that the tensor uses in its storage."""
        if self.tensor.numel() == 0:
            return self.start
        steps = zip(self.tensor.shape, self.tensor.stride(), strict=True)
        return self.start + 1 + sum((n - 1) * step for n, step in steps)


def place_tensors(tensors: Mapping[str, Tensor]) -> tuple[list[Stored], list[MakePiece]]:
    """Decide which tensors share a storage of the archive.

    Tensors that overlap in memory share one; a view of something larger takes only its own values
    along.

    Returns:
        The tensors in their order, and what makes the storages' contents, by key.

    Raises:
        WeightsError: a tensor that such an archive cannot hold.
    """
    outline = storable(tensors, STORAGE_CLASSES)
    stored = [Stored(name, tensor.detach()) for name, tensor in outline.items()]
    pieces: list[MakePiece] = []
    for cluster in _overlapping(stored):
        start, end = cluster[0].start, max(one.end for one in cluster)
        if end - start <= sum(one.tensor.numel() for one in cluster):
            first = cluster[0]
            pieces.append(
                partial(tensors.__getitem__, first.name)
                if first.tensor.is_meta
                else partial(first.tensor.as_strided, (end - start,), (1,), start)
            )
            for one in cluster:
                one.key, one.numel = len(pieces) - 1, end - start
                one.offset, one.stride = one.start - start, one.tensor.stride()
            continue
        # Views with gaps: together they would drag along more than they hold.
        for one in cluster:
            pieces.append(partial(tensors.__getitem__, one.name))
            one.key, one.numel = len(pieces) - 1, one.tensor.numel()
            one.stride = torch.empty(one.tensor.shape, device="meta").stride()
    return stored, pieces


def _overlapping(stored: list[Stored]) -> list[list[Stored]]:
    """Tensors grouped by overlap in memory, each group from its lowest address up."""
    by_storage: dict[Any, list[Stored]] = {}
    for index, one in enumerate(stored):
        storage = one.tensor.untyped_storage()
        place = (one.tensor.device, storage.data_ptr(), storage.nbytes(), one.tensor.dtype)
        alone = one.tensor.numel() == 0 or one.tensor.is_neg() or one.tensor.is_meta
        by_storage.setdefault(index if alone else place, []).append(one)
    groups: list[list[Stored]] = []
    for sharing in by_storage.values():
        end = -1
        for one in sorted(sharing, key=lambda one: one.start):
            if one.start >= end:
                groups.append([])
            groups[-1].append(one)
            end = max(end, one.end)
    return groups


def pickled_tensors(stored: Iterable[Stored], names: Mapping[str, str]) -> bytes:
    """The items of a dict from name to tensor, in those instructions that libtorch reads.

    Args:
        stored: the tensors, placed.
        names: what each is called in the archive.
    """
    parts: list[bytes] = []
    known: set[int] = set()
    for one in stored:
        parts += [pickled_text(names[one.name])]
        parts += [pickled_global("torch._utils", "_rebuild_tensor_v2"), b"("]
        if one.key in known:
            parts.append(b"j" + struct.pack("<I", one.key))
        else:
            # In the memo under its key: libtorch shares a storage only if it is read back, not
            # if it is named twice.
            storage_class = pickled_global("torch", STORAGE_CLASSES[one.tensor.dtype])
            where = [pickled_text("storage"), storage_class, pickled_text(str(one.key))]
            parts += [b"(", *where, pickled_text("cpu"), pickled_int(one.numel)]
            parts += [b"tQr" + struct.pack("<I", one.key)]
            known.add(one.key)
        parts += [pickled_int(one.offset), pickled_ints(one.tensor.shape)]
        parts += [pickled_ints(one.stride), b"\x89"]
        parts += [pickled_global("collections", "OrderedDict"), b")RtR"]
    return b"".join(parts)


def pickled_global(module: str, name: str) -> bytes:
    """The instruction that names a class or function."""
    return f"c{module}\n{name}\n".encode()


def pickled_text(text: str) -> bytes:
    """Text."""
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def pickled_int(number: int) -> bytes:
    """A whole number, of any size up to 63 bits."""
    if 0 <= number < 2**8:
        return b"K" + struct.pack("<B", number)
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def pickled_ints(numbers: Iterable[int]) -> bytes:
    """A tuple of whole numbers."""
    return b"(" + b"".join(pickled_int(number) for number in numbers) + b"t"
