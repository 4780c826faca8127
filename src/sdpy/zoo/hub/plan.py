"""Which files of a repository are needed, and where each goes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sdpy.components import model_components, required_components, unknown_components
from sdpy.errors import HubError, UsageError
from sdpy.zoo.hub.catalog import (
    INSPECT,
    USE_CONTROLNET,
    USE_LORA,
    USE_PIPELINE,
    USE_UNET,
    USE_VAE,
    HubModel,
)
from sdpy.zoo.hub.client import Hub, Listing, RemoteFile

# What each dtype adds to the name of a weights file, before its suffix.
_VARIANTS = {"fp32": "", "fp16": ".fp16"}
DTYPES = tuple(_VARIANTS)

_SETTINGS = (
    "scheduler/scheduler_config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
)
_MERGES = "tokenizer/merges.txt"
_INDEX = "model_index.json"
_LORA = "pytorch_lora_weights.safetensors"

# A part of weights that are cut into several files lies beside the index that names it.
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

_USAGES = {
    "ControlNetModel": USE_CONTROLNET,
    "UNet2DConditionModel": USE_UNET,
    "AutoencoderKL": USE_VAE,
}

_SHOWN = 5


@dataclass(frozen=True)
class Item:
    """A file to fetch, and where it goes."""

    remote: RemoteFile
    target: Path

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        assert self.remote.size is not None, "planned files are completed"
        return self.remote.size


@dataclass(frozen=True)
class Plan:
    """What fetching a model means.

    Attributes:
        model: what is fetched.
        items: its files.
        usage: the command that uses it, as in `HubModel`.
        path: what the usage's ``{path}`` is.
        notes: what the user should know of the choice, a line each.
    """

    model: HubModel
    items: tuple[Item, ...]
    usage: str
    path: Path
    notes: tuple[str, ...] = ()


@dataclass
class _Choice:
    """Files chosen so far: paths in the data folder to remote files."""

    hub: Hub
    dtypes: tuple[str, ...]
    files: dict[str, RemoteFile] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, file: RemoteFile) -> None:
        self.files[name] = self.hub.complete(file)


def plan_model(
    hub: Hub, model: HubModel, data: Path, *, dtype: str = "fp32", revision: str | None = None
) -> Plan:
    """Choose the files of ``model`` for the folder ``data``.

    Asks the hub what there is; fetches nothing but a configuration file that the choice hangs on.

    Args:
        hub: where from.
        model: what.
        data: the data folder.
        dtype: of the numbers in the weights, one of ``DTYPES``; where there are none of that kind
            the other is taken, and a note says so.
        revision: branch, tag or commit of the model's own repository; None for the main branch.

    Raises:
        UsageError: the dtype is unknown, or the repository is of a kind that sdpy cannot use.
        HubError: the hub cannot be reached, or something needed is not there.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}': use one of {', '.join(DTYPES)}")
    listing = hub.list_files(model.repository, revision)
    dtypes = (dtype, *(other for other in DTYPES if other != dtype))
    choice = _Choice(hub, dtypes)
    usage, path = model.usage, PurePosixPath()
    if model.files:
        _choose_named(choice, model, listing)
        for name in choice.files:
            before = (data / name).with_suffix(".ot")
            if before.exists():
                choice.notes.append(f"{before} is there too, and painting takes it before {name}")
    elif model.single is not None:
        usage, path = INSPECT, path / model.name
        choice.add(model.name, _need(listing, model.single))
    else:
        path /= model.name
        folder = _Choice(hub, dtypes, notes=choice.notes)
        found_usage, inner = _choose_folder(folder, listing)
        choice.files = {f"{model.name}/{name}": file for name, file in folder.files.items()}
        usage, path = usage or found_usage, path / inner
    return Plan(
        model=model,
        items=tuple(Item(file, data / name) for name, file in choice.files.items()),
        usage=usage,
        path=data / path,
        notes=tuple(choice.notes),
    )


def _choose_named(choice: _Choice, model: HubModel, listing: Listing) -> None:
    listings = {model.repository: listing}
    for wanted in model.files:
        repository = model.repository if wanted.repository is None else wanted.repository
        if repository not in listings:
            listings[repository] = choice.hub.list_files(repository)
        found = listings[repository]
        stem, _, suffix = wanted.path.rpartition(".")
        if suffix != "safetensors":
            choice.add(wanted.name, _need(found, wanted.path))
        elif _choose_weights(choice, found, stem, wanted.name.rpartition(".")[0]) is None:
            raise _no_weights(found, stem)


def _choose_folder(choice: _Choice, listing: Listing) -> tuple[str, str]:
    """The files of a diffusers folder; gives the usage and the path in the folder that it takes."""
    if _INDEX in listing.files:
        _choose_pipeline(choice, listing)
        return USE_PIPELINE, ""
    stem = "diffusion_pytorch_model"
    if any(path.startswith(stem) for path in listing.files):
        config = _need(listing, "config.json")
        choice.add("config.json", config)
        name = _choose_weights(choice, listing, stem, stem)
        name = _choose_pickle(choice, listing, stem) if name is None else name
        if name is None:
            raise _no_weights(listing, stem)
        kind = str(choice.hub.read_json(config).get("_class_name"))
        return _USAGES.get(kind, INSPECT), name
    if _LORA in listing.files:
        choice.add(_LORA, listing.files[_LORA])
        return USE_LORA, _LORA
    raise UsageError(_not_a_model(listing))


def _choose_pipeline(choice: _Choice, listing: Listing) -> None:
    index = choice.hub.read_json(listing.files[_INDEX])
    parts = {name for name, made in index.items() if isinstance(made, list) and any(made)}
    needed = [component.name for component in required_components()]
    missing = [name for name in (*needed, "tokenizer") if name not in parts]
    foreign = [name for name in unknown_components() if name in parts]
    if missing or foreign:
        reason = f"it has a {foreign[0]}" if foreign else f"it has no {missing[0]}"
        raise UsageError(
            f"{listing.repository} holds a {index.get('_class_name', 'pipeline')}, no Stable "
            f"Diffusion 1.x or 2.x ({reason}); sdpy paints with those only"
        )
    choice.add(_INDEX, listing.files[_INDEX])
    choice.add(_MERGES, _need(listing, _MERGES))
    chosen = [component for component in model_components() if component.name in parts]
    for path in (*_SETTINGS, *(f"{component.name}/config.json" for component in chosen)):
        if path in listing.files:
            choice.add(path, listing.files[path])
    for component in chosen:
        stem, pickle_stem = (f"{component.name}/{stem}" for stem in component.folder_stems)
        if _choose_weights(choice, listing, stem, stem) is not None:
            continue
        if _choose_pickle(choice, listing, pickle_stem) is None:
            raise _no_weights(listing, stem)


def _choose_weights(choice: _Choice, listing: Listing, stem: str, name: str) -> str | None:
    """Add the .safetensors called ``stem`` as ``name`` (both without suffix), if there is one.

    Half-precision files lose the ``.fp16`` of their name, so that they are found where the others
    would be. Gives the full name.
    """
    index = f"{stem}.safetensors.index.json"
    for dtype in choice.dtypes:
        path = f"{stem}{_VARIANTS[dtype]}.safetensors"
        if path in listing.files:
            if dtype != choice.dtypes[0]:
                choice.notes.append(
                    f"{listing.repository} has no {choice.dtypes[0]} {stem}: taking {dtype}"
                )
            choice.add(f"{name}.safetensors", listing.files[path])
            return f"{name}.safetensors"
        if dtype == "fp32" and stem == name and index in listing.files:
            return _choose_shards(choice, listing, index)
    return None


def _choose_shards(choice: _Choice, listing: Listing, index: str) -> str:
    """Add weights that are cut into several files, and the index that names them."""
    folder = index.rpartition("/")[0]
    weight_map = choice.hub.read_json(listing.files[index]).get("weight_map")
    shards = weight_map.values() if isinstance(weight_map, dict) else ()
    choice.add(index, listing.files[index])
    for shard in sorted({str(shard) for shard in shards}):
        if not _SHARD.fullmatch(shard):
            raise HubError(f"{index} of {listing.repository} names a file outside: {shard!r}")
        path = f"{folder}/{shard}" if folder else shard
        choice.add(path, _need(listing, path))
    return index


def _choose_pickle(choice: _Choice, listing: Listing, stem: str) -> str | None:
    """Add the pickle called ``stem``, if there is one; gives its name."""
    for dtype in choice.dtypes:
        path = f"{stem}{_VARIANTS[dtype]}.bin"
        if path in listing.files:
            choice.notes.append(f"{listing.repository} has no .safetensors here: taking {path}")
            choice.add(f"{stem}.bin", listing.files[path])
            return f"{stem}.bin"
    return None


def _need(listing: Listing, path: str) -> RemoteFile:
    if path not in listing.files:
        raise HubError(
            f"{listing.repository} has no file {path} at commit {listing.commit[:12]}; check the "
            "name and --revision"
        )
    return listing.files[path]


def _no_weights(listing: Listing, stem: str) -> HubError:
    return HubError(
        f"{listing.repository} has no weights {stem} at commit {listing.commit[:12]}; name another "
        "repository or --revision"
    )


def _not_a_model(listing: Listing) -> str:
    weights = [
        path for path in listing.files if path.endswith((".safetensors", ".ckpt", ".pt", ".bin"))
    ]
    shown = ", ".join(weights[:_SHOWN]) + (", ..." if len(weights) > _SHOWN else "")
    what = f"has no {_INDEX}, so it is no diffusers folder"
    if not weights:
        return f"{listing.repository} {what}, and no weights; name another repository"
    return (
        f"{listing.repository} {what}; name the file that you want, as in "
        f"{listing.repository}/{weights[0]} (it has {shown})"
    )
