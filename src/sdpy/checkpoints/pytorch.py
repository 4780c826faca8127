"""``torch.save``'s files (.bin, .pt, .pth, .ckpt): pickles, read without running them.

Two layouts, told by their first bytes:

- a zip archive whose members lie in one folder: ``data.pkl``, the storages ``data/0 ... data/N``,
  ``version``, ``byteorder``; since torch 1.6, read by mapping and written;
- before that, five pickles in a row (a magic number, the protocol, facts about the machine, the
  object, the storages' keys), then each storage's length and numbers; read only.

The pickled object is a dict from names to tensors, or has one under ``state_dict``, ``model`` or
``params``, as the checkpoints of training programs do, among many things that are of no use for
generating images.
"""

from __future__ import annotations

import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sdpy.checkpoints.archives import add_member, members_of, read_small
from sdpy.checkpoints.base import (
    Checkpoint,
    MappedFile,
    map_file,
    mapped_piece,
    reading,
    tensor_bytes,
)
from sdpy.checkpoints.limits import MAX_METADATA_ENTRIES, MAX_METADATA_LENGTH
from sdpy.checkpoints.pickles import Call, Global, Instance, Reference, load_inert, named_leaves
from sdpy.checkpoints.probe import Probe
from sdpy.checkpoints.storages import (
    DTYPES,
    REBUILD_PARAMETER,
    REBUILD_TENSOR,
    ArchiveStorages,
    Storages,
    pickled_tensors,
    pickled_text,
    place_tensors,
    rebuild_tensor,
)
from sdpy.errors import WeightsError
from sdpy.files import atomic_write, open_input

LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of the old layout: its magic number, in protocol 2."""
LEGACY_PROTOCOL = 1001
WRAPPED = "state_dict"
WRAPPERS = (WRAPPED, "model", "params")
"""Keys under which files have the weights; the first is the one that is written."""

# Names are only read, never imported or called. One that could do harm elsewhere still tells that a
# file is not what it claims to be.
_TORCH_GLOBALS: frozenset[tuple[str, str]] = frozenset(
    {
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.nn.modules.container", "ParameterDict"),
        ("torch.serialization", "_get_layout"),
        ("torch.storage", "UntypedStorage"),
        ("torch", "Size"),
        ("torch", "device"),
    }
    | {("torch", name) for name in DTYPES}
    | {("torch", str(dtype).removeprefix("torch.")) for dtype in DTYPES.values()}
)
# What training programs leave beside the weights.
_PYTHON_GLOBALS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("__builtin__", "builtins"),
        frozenset(
            "bool bytearray bytes complex dict float frozenset int list long object range "
            "set slice str tuple unicode xrange".split()
        ),
    ),
    **dict.fromkeys(("copy_reg", "copyreg"), frozenset({"_reconstructor"})),
    "_codecs": frozenset({"encode"}),
    "argparse": frozenset({"Namespace"}),
    "collections": frozenset("ChainMap Counter OrderedDict UserDict defaultdict deque".split()),
    "datetime": frozenset("date datetime time timedelta timezone".split()),
    "decimal": frozenset({"Decimal"}),
    "fractions": frozenset({"Fraction"}),
    "pathlib": frozenset(
        "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath".split()
    ),
    "typing": frozenset("Any Callable Dict List Optional Tuple Union".split()),
    "uuid": frozenset({"UUID"}),
    "numpy": frozenset({"dtype", "ndarray"}),
    **dict.fromkeys(
        ("numpy.core.multiarray", "numpy._core.multiarray"), frozenset({"_reconstruct", "scalar"})
    ),
    **dict.fromkeys(("numpy.core.numeric", "numpy._core.numeric"), frozenset({"_frombuffer"})),
    "numpy.random._pickle": frozenset(
        {"__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"}
    ),
}
_NOT_TRAINING = sys.stdlib_module_names | {"__builtin__", "copy_reg", "numpy", "torch"}
"""Packages whose other names are refused. What is left are classes of training programs."""

FP8 = "float8"


class TorchFormat:
    """Reader and writer of ``torch.save``'s files; see the module's text."""

    name = "torch"
    suffixes: tuple[str, ...] = (".bin", ".pt", ".pth", ".ckpt")

    def matches(self, probe: Probe) -> bool:
        """See `CheckpointFormat.matches`."""
        if probe.head.startswith(LEGACY_START):
            return True
        names = {member.rpartition("/")[2] for member in probe.members or ()}
        return "data.pkl" in names and "constants.pkl" not in names

    def read(self, path: Path) -> Checkpoint:
        """Open a file without copying its tensors or executing anything from it.

        Tensors in nested dicts get dotted names. Numbers and texts beside the tensors' dict
        become the metadata.

        Raises:
            WeightsError: the file cannot be read, is damaged or holds something else.
        """
        with reading(path, "PyTorch"), open_input(path) as file:
            if file.read(len(LEGACY_START)) == LEGACY_START:
                root, storages, mapping = _read_legacy(file)
            else:
                root, storages, mapping = _read_zip(file)
            tensors = dict(_named_tensors(path, root, storages))
            if not tensors:
                raise WeightsError(f"{path} holds no tensors by name; is it the right file?")
            mapped = mapping.holds(*tensors.values())
            return Checkpoint(
                path, self.name, tensors, tensors, _metadata(root), (mapping,), mapped
            )

    def write(
        self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write a dict of tensors, in a ``.ckpt`` under ``state_dict``; no place for ``metadata``.

        Raises:
            WeightsError: a dtype that the format cannot hold.
            OutputError: the file could not be written.
        """
        stored, pieces = place_tensors(tensors)
        items = b"}(" + pickled_tensors(stored, {name: name for name in tensors}) + b"u"
        if path.suffix.lower() == ".ckpt":
            items = b"}" + pickled_text(WRAPPED) + items + b"s"
        with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
            add_member(archive, "archive/data.pkl", b"\x80\x02" + items + b".")
            add_member(archive, "archive/byteorder", b"little")
            for key, piece in enumerate(pieces):
                add_member(archive, f"archive/data/{key}", tensor_bytes(piece()))
            add_member(archive, "archive/version", b"3\n")


def _is_allowed(module: str, name: str) -> bool:
    package = module.partition(".")[0]
    if package == "torch":
        return (module, name) in _TORCH_GLOBALS or (module == "torch" and name.startswith(FP8))
    if package in _NOT_TRAINING:
        return name in _PYTHON_GLOBALS.get(module, ())
    # A class; functions are named in lower case.
    return name.lstrip("_")[:1].isupper()


def _read_zip(file: BinaryIO) -> tuple[dict[Any, Any], Storages, MappedFile]:
    with zipfile.ZipFile(file) as archive:
        members = members_of(archive)
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"it has {len(roots)} pickles instead of one")
        order = members.get(roots[0] + "byteorder")
        if order is not None and read_small(archive, order) != b"little":
            raise ValueError("its numbers are big-endian")
        root = load_inert(read_small(archive, members[roots[0] + "data.pkl"]), _is_allowed)
        storages = ArchiveStorages(file, archive, roots[0] + "data/")
        # All storages are found while the file is open.
        return _dict(root, file.name), storages, storages.mapping


def _dict(root: Any, path: str) -> dict[Any, Any]:
    if isinstance(root, list):
        raise WeightsError(
            f"{path} is a list of tensors without names, as the LoRAs of cloneofsimo's programs "
            "are: it does not say whose layers they are; take a version with names"
        )
    if not isinstance(root, dict):
        raise ValueError("it holds no dict of tensors")
    return root


def _named_tensors(
    path: Path, root: dict[Any, Any], storages: Storages
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts by dotted name, in the file's order."""
    wrapped = next((root[key] for key in WRAPPERS if isinstance(root.get(key), dict)), root)
    for name, value in named_leaves(wrapped, _items):
        while isinstance(value, Call) and value.function == REBUILD_PARAMETER:
            value = value.arguments[0]
        if isinstance(value, Call) and value.function == REBUILD_TENSOR:
            yield name, rebuild_tensor(value, storages)
        elif isinstance(value, Call) and value.function.name == "_rebuild_tensor_v3":
            raise _of_odd_dtype(path, value)


def _items(value: Any) -> Any:
    return value.state if isinstance(value, Instance) else value


def _metadata(root: dict[Any, Any]) -> dict[str, str]:
    """Numbers and short texts beside the tensors."""
    told = {key: str(value) for key, value in root.items() if isinstance(value, (str, int, float))}
    kept = [(key, text) for key, text in told.items() if len(text) <= MAX_METADATA_LENGTH]
    return dict(kept[:MAX_METADATA_ENTRIES])


def _of_odd_dtype(path: Path, call: Call) -> WeightsError:
    """Torch rebuilds in this way what has no storage class of its own, such as fp8."""
    names = [one.name for one in call.arguments if isinstance(one, Global)]
    dtype = names[0] if names else "unknown"
    kind = "8-bit floating-point numbers (fp8)" if dtype.startswith(FP8) else f"{dtype} numbers"
    return WeightsError(
        f"{path} holds {kind}, which sdpy does not read; take the fp16 or fp32 version"
    )


# ----------------------------------------------------------------------------- the old layout


class _LegacyStorages:
    """Storages that follow one another in the file, each after its length."""

    def __init__(self, mapping: MappedFile, places: Mapping[str, range]) -> None:
        self.mapping = mapping
        self.places = places
        self.made: dict[str, torch.UntypedStorage] = {}

    def get(self, key: str, itemsize: int) -> torch.UntypedStorage:
        if key not in self.made:
            if key not in self.places:
                raise ValueError(f"storage {key} is missing")
            place = self.places[key]
            piece = mapped_piece(self.mapping.storage, place.start, place.stop, itemsize)
            self.made[key] = piece
        return self.made[key]


def _read_legacy(file: BinaryIO) -> tuple[dict[Any, Any], Storages, MappedFile]:
    """Read on after the magic number."""
    itemsizes: dict[str, int] = {}

    def remember(identity: Any) -> Reference:
        tag, storage_class, key, location, numel, view = identity
        if tag != "storage" or not isinstance(storage_class, Global) or view is not None:
            raise ValueError("a tensor has a storage of unknown kind")
        itemsizes[key] = DTYPES[storage_class.name].itemsize
        return Reference((tag, storage_class, key, location, numel))

    if load_inert(file, _is_allowed) != LEGACY_PROTOCOL:
        raise ValueError("it is of an unknown version")
    if load_inert(file, _is_allowed).get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    root = load_inert(file, _is_allowed, remember)
    places: dict[str, range] = {}
    for key in load_inert(file, _is_allowed):
        (numel,) = struct.unpack("<q", file.read(8))
        start = file.tell()
        places[key] = range(start, start + numel * itemsizes[key])
        file.seek(places[key].stop)
    mapping = map_file(file)
    return _dict(root, file.name), _LegacyStorages(mapping, places), mapping
