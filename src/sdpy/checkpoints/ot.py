""".ot: the archives of libtorch's ``torch::serialize::OutputArchive`` and of ``torch.jit.save``.

A zip archive whose members lie in one folder, all stored (not compressed) and 64-byte aligned:

====================== ==================================================================
``data/0 ... data/N``  storages: raw little-endian numbers
``data.pkl``           a pickled module: attribute name to tensor (storage, offset, sizes, strides)
``code/__torch__...``  TorchScript source that declares the attributes; not needed for reading
``constants.pkl``      a pickled empty tuple; tells these archives from those of ``torch.save``
``version``            ``3``
====================== ==================================================================

The Rust crate ``tch`` and ``ocaml-torch`` write one module with every tensor a parameter, named
with ``|`` for every dot, since a TorchScript attribute name cannot hold a dot.
``torch.jit.script(module).save`` writes the tree of submodules, with other attributes in between.
Both are read; the first kind is written.
"""

from __future__ import annotations

import keyword
import math
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sdpy.checkpoints.archives import add_member, members_of, read_small, stored_range
from sdpy.checkpoints.base import (
    Checkpoint,
    check_storable,
    map_file,
    mapped_piece,
    printable,
    reading,
    tensor_bytes,
)
from sdpy.checkpoints.pickles import Call, Global, Instance, Reference, load_inert
from sdpy.checkpoints.probe import Probe
from sdpy.errors import WeightsError
from sdpy.files import atomic_write

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
DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in STORAGE_CLASSES.items()}

REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
ALLOWED_GLOBALS: frozenset[tuple[str, str]] = frozenset(
    {
        ("torch._utils", "_rebuild_tensor_v2"),
        ("collections", "OrderedDict"),
        ("torch.jit._pickle", "build_intlist"),
        ("torch.jit._pickle", "build_doublelist"),
        ("torch.jit._pickle", "build_boollist"),
        ("torch.jit._pickle", "build_tensorlist"),
        ("torch.jit._pickle", "restore_type_tag"),
    }
    | {("torch", name) for name in DTYPES}
)

# Far above any real file (Stable Diffusion's UNet has 686 tensors), far below any harm.
MAX_ENTRIES = 200_000
MAX_NAME_LENGTH = 1000
MAX_DIMENSIONS = 25


class OtFormat:
    """Reader and writer of ``.ot`` files; see the module's text."""

    name = "ot"
    suffixes: tuple[str, ...] = (".ot",)

    def matches(self, probe: Probe) -> bool:
        names = {member.rpartition("/")[2] for member in probe.members or ()}
        return {"data.pkl", "constants.pkl"} <= names

    def read(self, path: Path) -> Checkpoint:
        return read_ot(path)

    def write(
        self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write tensors; the format has no place for ``metadata``, which is left out."""
        write_ot(path, tensors)


def decode_name(name: str) -> str:
    """The tensor's name for an attribute name in the archive: ``|`` stands for ``.``."""
    return name.replace("|", ".")


def encode_name(name: str) -> str:
    """The attribute name for a tensor's name.

    Raises:
        WeightsError: for a name that would not come back: one with a bar of its own, or with a
            character that TorchScript's source text cannot hold.
    """
    if not name or "|" in name or '"' in name or "\\" in name or not name.isprintable():
        raise WeightsError(
            f"a .ot file cannot hold a tensor named '{printable(name)}'; rename it "
            "(no bars, double quotes, backslashes or control characters)"
        )
    return name.replace(".", "|")


# ------------------------------------------------------------------------------------ reading


def read_ot(path: Path) -> Checkpoint:
    """Open a libtorch archive without copying its tensors or executing anything from it.

    Names come with dots. Where the archive gives one attribute twice, the last counts, as in
    libtorch. Attributes that are no tensors are left out.

    Raises:
        WeightsError: the file cannot be read, is damaged or no such archive.
    """
    with reading(path, ".ot"), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = members_of(archive)
        root = _root(members)
        order = members.get(root + "byteorder")
        if order is not None and read_small(archive, order) != b"little":
            raise ValueError("its numbers are big-endian")
        module = load_inert(read_small(archive, members[root + "data.pkl"]), _is_allowed)
        storages = _Storages(file, archive, root + "data/")
        tensors = _named_tensors(module, storages)
        return Checkpoint(path, OtFormat.name, tensors, outline=tensors)


def _is_allowed(module: str, name: str) -> bool:
    is_script_class = module == "__torch__" or module.startswith("__torch__.")
    return is_script_class or (module, name) in ALLOWED_GLOBALS


def _root(members: Mapping[str, zipfile.ZipInfo]) -> str:
    """The folder of all members, with its slash."""
    roots = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1]
    roots = [root for root in roots if root.endswith("/") and root + "constants.pkl" in members]
    if len(roots) != 1:
        raise ValueError(f"it has {len(roots)} modules instead of one")
    return roots[0]


class _Storages:
    """The archive's storages, each a piece of one mapping of the file, made when asked for."""

    def __init__(self, file: BinaryIO, archive: zipfile.ZipFile, folder: str) -> None:
        self.file = file
        self.archive = archive
        self.members = members_of(archive)
        self.folder = folder
        self.mapping = map_file(file)
        self.made: dict[tuple[str, int], torch.UntypedStorage] = {}

    def get(self, key: str, itemsize: int) -> torch.UntypedStorage:
        if (key, itemsize) not in self.made:
            info = self.members.get(self.folder + key)
            if info is None:
                raise ValueError(f"storage {key} is missing")
            place = stored_range(self.file, self.archive, info)
            piece = mapped_piece(self.mapping, place.start, place.stop, itemsize)
            self.made[key, itemsize] = piece
        return self.made[key, itemsize]


def _named_tensors(module: Any, storages: _Storages) -> dict[str, Tensor]:
    """The tensors of a module and its submodules by dotted name, in the archive's order."""
    if not isinstance(module, Instance) or not module.cls.module.startswith("__torch__"):
        raise ValueError("it holds no module")
    tensors: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", module)]
    for _ in range(MAX_ENTRIES):
        if not waiting:
            return tensors
        name, value = waiting.pop()
        if isinstance(value, Instance) and isinstance(value.state, dict):
            prefix = f"{name}." if name else ""
            waiting += reversed([(f"{prefix}{key}", v) for key, v in value.state.items()])
        elif isinstance(value, Call) and value.function == REBUILD_TENSOR:
            decoded = decode_name(name)
            if decoded in tensors:
                raise ValueError(f"two tensors are called {decoded}")
            tensors[decoded] = _tensor(value, storages)
        if len(waiting) > MAX_ENTRIES or len(name) > MAX_NAME_LENGTH:
            break
    raise ValueError("its modules are nested without end")


def _tensor(call: Call, storages: _Storages) -> Tensor:
    """One tensor as a view of its storage, after checking that it lies within."""
    reference, offset, size, stride = call.arguments[:4]
    if not isinstance(reference, Reference):
        raise ValueError("a tensor has no storage")
    tag, storage_class, key, _device, numel = reference.id
    if tag != "storage" or not isinstance(storage_class, Global) or not isinstance(key, str):
        raise ValueError("a tensor has a storage of unknown kind")
    numbers = (numel, offset, *size, *stride)
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers) or len(size) != len(stride):
        raise ValueError("a tensor has impossible sizes")
    if len(size) > MAX_DIMENSIONS or math.prod(size) >= 2**48:
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


def write_ot(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one module with every tensor a parameter, as ``tch`` does.

    Storages are streamed, one tensor at a time. Tensors that overlap in memory share one storage;
    a view of something larger takes only its own values along.

    Raises:
        WeightsError: a name or dtype that the format cannot hold.
        OutputError: the file could not be written.
    """
    stored = [_Stored.of(name, tensor) for name, tensor in tensors.items()]
    pieces = _place(stored)
    root = path.stem if path.stem.isascii() and path.stem.isprintable() else "archive"
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for key, piece in enumerate(pieces):
            add_member(archive, f"{root}/data/{key}", tensor_bytes(piece))
        add_member(archive, f"{root}/data.pkl", _module_pickle(stored))
        add_member(archive, f"{root}/code/__torch__.py", _module_source(stored).encode())
        add_member(archive, f"{root}/constants.pkl", b"\x80\x02).")
        add_member(archive, f"{root}/version", b"3\n")


@dataclass
class _Stored:
    """A tensor on its way into the archive: its attribute name, and where its values will be."""

    attribute: str
    tensor: Tensor
    key: int = -1
    offset: int = 0
    stride: tuple[int, ...] = ()
    numel: int = 0
    """Length of the storage, in elements."""

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> _Stored:
        check_storable(name, tensor, STORAGE_CLASSES)
        return cls(encode_name(name), tensor.detach())

    @property
    def start(self) -> int:
        return int(self.tensor.storage_offset())

    @property
    def end(self) -> int:
        """One past the last element that the tensor uses in its storage."""
        if self.tensor.numel() == 0:
            return self.start
        steps = zip(self.tensor.shape, self.tensor.stride(), strict=True)
        return self.start + 1 + sum((n - 1) * step for n, step in steps)


def _place(stored: list[_Stored]) -> list[Tensor]:
    """Decide which tensors share a storage of the archive; return the storages, by key."""
    pieces: list[Tensor] = []
    for cluster in _overlapping(stored):
        start, end = cluster[0].start, max(one.end for one in cluster)
        if end - start <= sum(one.tensor.numel() for one in cluster):
            pieces.append(cluster[0].tensor.as_strided((end - start,), (1,), start))
            for one in cluster:
                one.key, one.numel = len(pieces) - 1, end - start
                one.offset, one.stride = one.start - start, one.tensor.stride()
            continue
        # Views with gaps: together they would drag along more than they hold.
        for one in cluster:
            pieces.append(one.tensor)
            one.key, one.numel = len(pieces) - 1, one.tensor.numel()
            one.stride = torch.empty(one.tensor.shape, device="meta").stride()
    return pieces


def _overlapping(stored: list[_Stored]) -> list[list[_Stored]]:
    """Tensors grouped by overlap in memory, each group from its lowest address up."""
    by_storage: dict[Any, list[_Stored]] = {}
    for index, one in enumerate(stored):
        storage = one.tensor.untyped_storage()
        place = (one.tensor.device, storage.data_ptr(), storage.nbytes(), one.tensor.dtype)
        alone = one.tensor.numel() == 0 or one.tensor.is_neg()
        by_storage.setdefault(index if alone else place, []).append(one)
    groups: list[list[_Stored]] = []
    for sharing in by_storage.values():
        end = -1
        for one in sorted(sharing, key=lambda one: one.start):
            if one.start >= end:
                groups.append([])
            groups[-1].append(one)
            end = max(end, one.end)
    return groups


def _module_source(stored: Iterable[_Stored]) -> str:
    """TorchScript that declares the attributes. Names that are no identifiers go in quotes."""
    names = [one.attribute for one in stored]
    listed = "".join(f'"{name}", ' for name in names)
    lines = ["class Module(Module):", f"  __parameters__ = [{listed}]", "  __buffers__ = []"]
    lines += ["  __annotations__ = []"] if names else []
    for name in names:
        plain = re.fullmatch("[A-Za-z_][A-Za-z_0-9]*", name) and not keyword.iskeyword(name)
        lines.append(f"  {name} : Tensor" if plain else f'  __annotations__["{name}"] = Tensor')
    return "\n".join(lines) + "\n"


def _module_pickle(stored: Iterable[_Stored]) -> bytes:
    """The pickled module, in those instructions of protocol 2 that libtorch reads."""
    parts = [b"\x80\x02", _global("__torch__", "Module"), b")\x81}("]
    known: set[int] = set()
    for one in stored:
        parts += [_text(one.attribute), _global("torch._utils", "_rebuild_tensor_v2"), b"("]
        if one.key in known:
            parts.append(b"j" + struct.pack("<I", one.key))
        else:
            # Remembered under its key: libtorch shares a storage only if it is recalled, not
            # if it is named twice.
            storage_class = _global("torch", STORAGE_CLASSES[one.tensor.dtype])
            where = [_text("storage"), storage_class, _text(str(one.key)), _text("cpu")]
            parts += [b"(", *where, _int(one.numel), b"tQr" + struct.pack("<I", one.key)]
            known.add(one.key)
        parts += [_int(one.offset), _ints(one.tensor.shape), _ints(one.stride), b"\x89"]
        parts += [_global("collections", "OrderedDict"), b")RtR"]
    return b"".join([*parts, b"ub."])


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(number: int) -> bytes:
    if 0 <= number < 2**8:
        return b"K" + struct.pack("<B", number)
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def _ints(numbers: Iterable[int]) -> bytes:
    return b"(" + b"".join(_int(number) for number in numbers) + b"t"
