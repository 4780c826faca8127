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
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sdpy.checkpoints.archives import add_member, members_of, read_small
from sdpy.checkpoints.base import Checkpoint, printable, reading, tensor_bytes
from sdpy.checkpoints.pickles import Call, Instance, load_inert, named_leaves
from sdpy.checkpoints.probe import Probe
from sdpy.checkpoints.storages import (
    DTYPES,
    REBUILD_TENSOR,
    ArchiveStorages,
    Storages,
    Stored,
    pickled_global,
    pickled_tensors,
    place_tensors,
    rebuild_tensor,
)
from sdpy.errors import WeightsError
from sdpy.files import atomic_write, open_input

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


class OtFormat:
    """Reader and writer of ``.ot`` files; see the module's text."""

    name = "ot"
    suffixes: tuple[str, ...] = (".ot",)

    def matches(self, probe: Probe) -> bool:
        """See `CheckpointFormat.matches`."""
        names = {member.rpartition("/")[2] for member in probe.members or ()}
        return {"data.pkl", "constants.pkl"} <= names

    def read(self, path: Path) -> Checkpoint:
        """See `CheckpointFormat.read`."""
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
    with reading(path, ".ot"), open_input(path) as file, zipfile.ZipFile(file) as archive:
        members = members_of(archive)
        root = _root(members)
        order = members.get(root + "byteorder")
        if order is not None and read_small(archive, order) != b"little":
            raise ValueError("its numbers are big-endian")
        module = load_inert(read_small(archive, members[root + "data.pkl"]), _is_allowed)
        storages = ArchiveStorages(file, archive, root + "data/")
        tensors = _named_tensors(module, storages)
        mapping = storages.mapping
        mapped = mapping.holds(*tensors.values())
        return Checkpoint(
            path,
            OtFormat.name,
            tensors,
            outline=tensors,
            mappings=(mapping,),
            is_mapped=mapped,
        )


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


def _named_tensors(module: Any, storages: Storages) -> dict[str, Tensor]:
    """The tensors of a module and its submodules by dotted name, in the archive's order."""
    if not isinstance(module, Instance) or not module.cls.module.startswith("__torch__"):
        raise ValueError("it holds no module")
    tensors: dict[str, Tensor] = {}
    for name, value in named_leaves(module, _attributes):
        if isinstance(value, Call) and value.function == REBUILD_TENSOR:
            decoded = decode_name(name)
            if decoded in tensors:
                raise ValueError(f"two tensors are called {decoded}")
            tensors[decoded] = rebuild_tensor(value, storages)
    return tensors


def _attributes(value: Any) -> Any:
    return value.state if isinstance(value, Instance) else None


# ------------------------------------------------------------------------------------ writing


def write_ot(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one module with every tensor a parameter, as ``tch`` does.

    Storages are streamed, one tensor at a time. Tensors that overlap in memory share one storage;
    a view of something larger takes only its own values along.

    Raises:
        WeightsError: a name or dtype that the format cannot hold.
        OutputError: the file could not be written.
    """
    names = {name: encode_name(name) for name in tensors}
    stored, pieces = place_tensors(tensors)
    root = path.stem if path.stem.isascii() and path.stem.isprintable() else "archive"
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for key, piece in enumerate(pieces):
            add_member(archive, f"{root}/data/{key}", tensor_bytes(piece()))
        add_member(archive, f"{root}/data.pkl", _module_pickle(stored, names))
        add_member(archive, f"{root}/code/__torch__.py", _module_source(names.values()).encode())
        add_member(archive, f"{root}/constants.pkl", b"\x80\x02).")
        add_member(archive, f"{root}/version", b"3\n")


def _module_source(names: Collection[str]) -> str:
    """TorchScript that declares the attributes. Names that are no identifiers go in quotes."""
    listed = "".join(f'"{name}", ' for name in names)
    lines = ["class Module(Module):", f"  __parameters__ = [{listed}]", "  __buffers__ = []"]
    lines += ["  __annotations__ = []"] if names else []
    for name in names:
        plain = re.fullmatch("[A-Za-z_][A-Za-z_0-9]*", name) and not keyword.iskeyword(name)
        lines.append(f"  {name} : Tensor" if plain else f'  __annotations__["{name}"] = Tensor')
    return "\n".join(lines) + "\n"


def _module_pickle(stored: Iterable[Stored], names: Mapping[str, str]) -> bytes:
    """The pickled module, in those instructions of protocol 2 that libtorch reads."""
    head = b"\x80\x02" + pickled_global("__torch__", "Module") + b")\x81}("
    return head + pickled_tensors(stored, names) + b"ub."
