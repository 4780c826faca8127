"""Which files of a repository are needed, and where each goes.

A chosen file is a pair: its path in the data folder (or in the model's folder) and the remote file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sdpy.components import (
    components_with_role,
    model_components,
    required_components,
    unknown_components,
)
from sdpy.errors import HubError, UsageError
from sdpy.zoo.cache import single_file
from sdpy.zoo.hub.catalog import (
    INSPECT,
    MODELS,
    USE_CONTROLNET,
    USE_CONTROLNET_UNION,
    USE_LORA,
    USE_PIPELINE,
    USE_UNET,
    USE_VAE,
    HubModel,
    on_sdxl,
)
from sdpy.zoo.hub.client import Hub, Listing, RemoteFile

# What each dtype adds to the name of a weights file, before its suffix.
_VARIANTS = {"fp32": "", "fp16": ".fp16"}
DTYPES = tuple(_VARIANTS)


_SCHEDULER = "scheduler/scheduler_config.json"
_TOKENIZER_CONFIGS = (
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "vocab.json",
)
# Of the merges, in the form of old and of new releases of transformers, one is needed.
_MERGES = ("merges.txt", "tokenizer.json")
_INDEX = "model_index.json"
_LORA = "pytorch_lora_weights.safetensors"

# A shard of weights lies beside the index that names it.
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

_USAGES = {
    "ControlNetModel": USE_CONTROLNET,
    "ControlNetUnionModel": USE_CONTROLNET_UNION,
    "T2IAdapter": USE_CONTROLNET,
    "UNet2DConditionModel": USE_UNET,
    "AutoencoderKL": USE_VAE,
}
# Of components of Stable Diffusion XL, in their config.json.
_OF_XL = {"cross_attention_dim": 2048, "scaling_factor": 0.13025}

_SHOWN = 5

Chosen = tuple[str, RemoteFile]


@dataclass(frozen=True)
class PlannedFile:
    """A file to download, and where it goes."""

    remote: RemoteFile
    target: Path

    @property
    def size(self) -> int:
        """Bytes of the complete file."""
        assert self.remote.size is not None, "the hub was asked for the sizes of planned files"
        return self.remote.size


@dataclass(frozen=True)
class DownloadPlan:
    """What downloading a model means.

    Attributes:
        files: what is downloaded.
        usage: the command that uses it, as in `HubModel`.
        path: what the usage's ``{path}`` is.
        notes: what the user should know of the choice, a line each.
    """

    files: tuple[PlannedFile, ...]
    usage: str
    path: Path
    notes: tuple[str, ...] = ()


def plan_download(
    hub: Hub, model: HubModel, data: Path, *, dtype: str = "fp32", revision: str | None = None
) -> DownloadPlan:
    """Choose the files of ``model`` for the folder ``data``.

    Asks the hub what there is; reads no file but the JSON files that the choice depends on.

    Args:
        hub: where from.
        model: what.
        data: the data folder.
        dtype: of the weights, one of ``DTYPES``; where there are none of that dtype the other is
            taken, and a note says so.
        revision: branch, tag or commit of the model's own repository; None for the main branch.

    Raises:
        UsageError: the dtype is unknown, or the repository is of a kind that sdpy cannot use.
        HubError: the hub cannot be reached, or something needed is not there.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}': use one of {', '.join(DTYPES)}")
    listing = hub.list_files(model.repository, revision)
    choice = _Choice(hub, (dtype, *(other for other in DTYPES if other != dtype)))
    folder, usage, path = data, model.usage, data
    if model.files:
        chosen = list(choice.named_files(model, listing))
        for name, _ in chosen:
            before = (data / name).with_suffix(".ot")
            if before.exists():
                choice.notes.append(f"{before} exists too, and sdpy loads it instead of {name}")
    elif model.single is not None:
        chosen = [(model.name, _need(listing, model.single))]
        usage, path = INSPECT, data / model.name
    else:
        folder = data / model.name
        chosen, found_usage, inner = choice.folder(listing)
        usage, path = usage or found_usage, folder / inner
    targets = [(folder / name, file) for name, file in chosen]
    if model.base is not None:
        targets += choice.lacking(MODELS[model.base], data)
    return DownloadPlan(
        files=tuple(PlannedFile(hub.complete(file), target) for target, file in targets),
        usage=usage,
        path=path,
        notes=tuple(choice.notes),
    )


@dataclass(frozen=True)
class _Choice:
    """How files are chosen: by the dtypes that are wanted, best first; collects notes."""

    hub: Hub
    dtypes: tuple[str, ...]
    notes: list[str] = field(default_factory=list)

    def named_files(self, model: HubModel, listing: Listing) -> Iterator[Chosen]:
        """The files that the catalogue names, under the names that it gives them."""
        listings = {model.repository: listing}
        for wanted in model.files:
            repository = wanted.repository or model.repository
            if repository not in listings:
                listings[repository] = self.hub.list_files(repository)
            found = listings[repository]
            if wanted.path.endswith(".safetensors"):
                stem = wanted.path.removesuffix(".safetensors")
                weights = self.safetensors(found, stem)
                if weights is None:
                    raise _no_weights(found, stem)
                yield wanted.name, weights
            else:
                yield wanted.name, _need(found, wanted.path)

    def folder(self, listing: Listing) -> tuple[list[Chosen], str, str]:
        """The files of a repository in diffusers' layout, the usage, and its path in the folder."""
        if _INDEX in listing.files:
            return list(self.pipeline(listing)), USE_PIPELINE, ""
        stem = "diffusion_pytorch_model"
        if any(path.startswith(stem) for path in listing.files):
            config = _need(listing, "config.json")
            weights = self.weights(listing, stem, stem)
            told = self.hub.read_json(config)
            usage = _USAGES.get(str(told.get("_class_name")), INSPECT)
            if any(told.get(key) == value for key, value in _OF_XL.items()):
                usage = on_sdxl(usage)
            return [("config.json", config), *weights], usage, weights[0][0]
        if _LORA in listing.files:
            return [(_LORA, listing.files[_LORA])], USE_LORA, _LORA
        raise UsageError(_not_a_model(listing))

    def lacking(self, base: HubModel, data: Path) -> list[tuple[Path, RemoteFile]]:
        """What the data folder lacks of a model but for its UNet, and where it goes."""
        if single_file(data, base.name) is not None:
            return []
        listing = self.hub.list_files(base.repository)
        wanted = ((data / base.name / name, file) for name, file in self.pipeline(listing, "unet"))
        lacking = [(target, file) for target, file in wanted if not target.exists()]
        if lacking:
            self.notes.append(f"its other components are those of {base.name}: fetching them, too")
        return lacking

    def pipeline(self, listing: Listing, without: str | None = None) -> Iterator[Chosen]:
        """The files of a Stable Diffusion pipeline, but for those of one component."""
        index = self.hub.read_json(listing.files[_INDEX])
        parts = {name for name, made in index.items() if isinstance(made, list) and any(made)}
        encoders = components_with_role("text_encoder")
        own = [component for component in encoders if component.name in parts]
        needed = [component.name for component in required_components()]
        needed += [str(component.tokenizer) for component in own]
        missing = [name for name in needed if name not in parts]
        if not own:
            missing.append("text_encoder")
        unsupported = [name for name in unknown_components() if name in parts]
        if missing or unsupported:
            reason = f"it has a {unsupported[0]}" if unsupported else f"it has no {missing[0]}"
            kind = self.hub.printable(index.get("_class_name", "pipeline"))
            raise UsageError(
                f"{listing.repository} holds a {kind}, not a Stable Diffusion 1.x, 2.x or XL "
                f"({reason}); sdpy supports only those"
            )
        yield _INDEX, listing.files[_INDEX]
        for component in own:
            yield from self.tokenizer(listing, str(component.tokenizer))
        wanted = parts - {without}
        chosen = [component for component in model_components() if component.name in wanted]
        for path in (_SCHEDULER, *(f"{component.name}/config.json" for component in chosen)):
            if path in listing.files:
                yield path, listing.files[path]
        for component in chosen:
            stem, pickle_stem = (f"{component.name}/{stem}" for stem in component.folder_stems)
            yield from self.weights(listing, stem, pickle_stem)

    def tokenizer(self, listing: Listing, folder: str) -> Iterator[Chosen]:
        """The files of a tokenizer."""
        merges = [f"{folder}/{name}" for name in _MERGES]
        first = next((path for path in merges if path in listing.files), merges[0])
        yield first, _need(listing, first)
        for path in (f"{folder}/{name}" for name in _TOKENIZER_CONFIGS):
            if path in listing.files:
                yield path, listing.files[path]

    def weights(self, listing: Listing, stem: str, pickle_stem: str) -> list[Chosen]:
        """One .safetensors, else its shards (index first), else a pickle.

        A half-precision file loses the ``.fp16`` of its name, so that it is found where the other
        would be.
        """
        full, half = (f"{stem}{variant}.safetensors" for variant in _VARIANTS.values())
        index = f"{stem}.safetensors.index.json"
        # Shards hold full precision, and take its place where it is not in one file.
        half_is_better = self.dtypes[0] == "fp16" and half in listing.files
        if index in listing.files and full not in listing.files and not half_is_better:
            return self.shards(listing, index)
        if (file := self.safetensors(listing, stem)) is not None:
            return [(full, file)]
        for dtype in self.dtypes:
            path = f"{pickle_stem}{_VARIANTS[dtype]}.bin"
            if path in listing.files:
                self.notes.append(f"{listing.repository} has no .safetensors here: taking {path}")
                return [(f"{pickle_stem}.bin", listing.files[path])]
        raise _no_weights(listing, stem)

    def safetensors(self, listing: Listing, stem: str) -> RemoteFile | None:
        """The .safetensors called ``stem``, of the best dtype that there is."""
        for dtype in self.dtypes:
            path = f"{stem}{_VARIANTS[dtype]}.safetensors"
            if path in listing.files:
                if dtype != self.dtypes[0]:
                    self.notes.append(
                        f"{listing.repository} has no {self.dtypes[0]} {stem}: taking {dtype}"
                    )
                return listing.files[path]
        return None

    def shards(self, listing: Listing, index: str) -> list[Chosen]:
        """The index of weights that are cut into several files, and these files."""
        folder = index.rpartition("/")[0]
        weight_map = self.hub.read_json(listing.files[index]).get("weight_map")
        chosen = [(index, listing.files[index])]
        names = weight_map.values() if isinstance(weight_map, dict) else ()
        for name in sorted({str(name) for name in names}):
            if not _SHARD.fullmatch(name):
                raise HubError(
                    f"{index} of {listing.repository} names a file outside its folder: "
                    f"'{self.hub.printable(name)}'"
                )
            path = f"{folder}/{name}" if folder else name
            chosen.append((path, _need(listing, path)))
        return chosen


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
    suffixes = (".safetensors", ".ckpt", ".pt", ".bin")
    weights = [path for path in listing.files if path.endswith(suffixes)]
    shown = ", ".join(weights[:_SHOWN]) + (", ..." if len(weights) > _SHOWN else "")
    what = f"has no {_INDEX}, so it is not a diffusers folder"
    if not weights:
        return f"{listing.repository} {what}, and no weights; name another repository"
    return (
        f"{listing.repository} {what}; name the file that you want, as in "
        f"{listing.repository}/{weights[0]} (it has {shown})"
    )
