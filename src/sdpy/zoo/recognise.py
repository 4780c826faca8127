"""What ``--model PATH`` names: a diffusers folder, a folder of component files, or one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sdpy.checkpoints import (
    Checkpoint,
    ModelFolder,
    find_parts,
    holds_averages,
    holds_only_averages,
    is_model_folder,
    open_weights,
    read_checkpoint,
    read_model_folder,
)
from sdpy.components import COMPONENTS, components_with_role, label_of, model_components
from sdpy.errors import SdpyError, UsageError, WeightsError
from sdpy.schema import Validated
from sdpy.zoo.cache import cached_model, is_hub_name, snapshot_in
from sdpy.zoo.classes import read_config
from sdpy.zoo.configs import GUESSED, is_known, is_tiny_vae, noise_config
from sdpy.zoo.families import (
    check_added_conditions,
    config_in,
    family_of,
    following_scheduler,
    with_sinusoids,
)
from sdpy.zoo.files import ModelFiles, find_files
from sdpy.zoo.hints import (
    distilled,
    doubtful_tiny_autoencoder,
    refuse_other_model,
    repaired_autoencoder,
    told_prediction,
)
from sdpy.zoo.schemas import check_folder, told_beside
from sdpy.zoo.source import ModelSource
from sdpy.zoo.variants import (
    SD15,
    VARIANTS,
    VOCABULARY,
    ModelVariant,
)

SINGLE_FILES = (".safetensors", ".ckpt")


def find_source(
    name: str,
    data: Path,
    given: Mapping[str, Path | None] | None = None,
    prediction: str | None = None,
    *,
    variant: str | None = None,
    ema: bool = False,
) -> ModelSource:
    """The model that ``--model`` names.

    Args:
        name: a variant, whose files are looked for in ``data``: in the folder or the single file
            that is called like it, otherwise one by one; or the path of a folder or a file.
        data: the data folder.
        given: files named by the user, by component and `VOCABULARY`; None where none is.
        prediction: what the user says that the UNet predicts, which need not be assumed then.
        variant: of the weights in a diffusers folder, such as "fp16"; see `read_model_folder`.
        ema: whether to take the averaged weights of a UNet instead of the others.

    Raises:
        UsageError: neither a variant nor a path, or there are no such weights.
        WeightsError: files are missing or broken, or of another kind of model.
    """
    given = {} if given is None else given
    found = _find_source(name, data, given, prediction, variant)
    vae = given.get("vae")
    if vae is not None:
        found = _with_vae(found, vae)
    return _with_averages(found, ema)


def _find_source(
    name: str,
    data: Path,
    given: Mapping[str, Path | None],
    prediction: str | None,
    weights_variant: str | None,
) -> ModelSource:
    if name not in VARIANTS:
        path = find_path(name, data)
        return recognise(path, data, given, prediction, weights_variant)
    variant = VARIANTS[name]
    if variant.bundled is not None:
        if weights_variant is not None:
            raise UsageError(_NO_VARIANTS.format(path=name))
        return ModelSource(variant, find_files(variant, data, given))
    place = _place_of(name, data)
    if place is None and variant.base is not None:
        place = _place_of(variant.base, data)
        if place is not None:
            given = {**given, "unet": given.get("unet") or _own_unet(variant, data)}
    if place is not None:
        found = recognise(place, data, given, variant=weights_variant)
        return replace(found, variant=_named(found.variant, variant), assumptions=())
    if weights_variant is not None:
        raise UsageError(_NO_VARIANTS.format(path=data))
    source = ModelSource(variant, find_files(variant, data, given))
    if variant.base is None:
        return source
    told, _ = distilled(VARIANTS[variant.base], source.checkpoint("unet"))
    return replace(source, variant=told if told.name == variant.name else variant)


def _place_of(name: str, data: Path) -> Path | None:
    """The folder or single file of a data folder that is called like a variant."""
    folder = data / name
    if is_model_folder(folder):
        return folder
    files = (data / (name + suffix) for suffix in SINGLE_FILES)
    return next((file for file in files if os.path.isfile(file)), None)


def _own_unet(variant: ModelVariant, data: Path) -> Path:
    """The UNet of a variant whose other components are its base's."""
    files = [data / name for name in variant.files.of("unet")]
    found = next((file for file in files if os.path.isfile(file)), None)
    if found is None:
        raise WeightsError(
            f"no UNet for {variant.name}: looked for {', '.join(map(str, files))}; "
            f"`sdpy download {variant.name}` downloads it, --unet-weights names another"
        )
    return found


def find_path(name: str, data: Path) -> Path:
    """The folder or file that a model's name means, which is of no variant.

    Raises:
        UsageError: there is none.
        WeightsError: it was to be downloaded, but is not there.
    """
    path = Path(os.path.expanduser(name))
    if name.strip() and os.path.exists(path):  # False also for a bad name
        return snapshot_in(path)
    cached = cached_model(name, data)
    if cached is not None:
        return snapshot_in(cached)
    advice = f"; if {name} is on a hub, `sdpy download {name}` fetches it"
    home = "" if str(path) == name else f" ({path}, in your home folder)"
    raise UsageError(
        f"unknown model '{name}'{home}: use one of {', '.join(VARIANTS)}, "
        f"or the path of a folder or file{advice if is_hub_name(name) else ''}"
    )


_NO_VARIANTS = "{path} is no diffusers folder, and has no variants of weights; leave --variant out"


def _with_vae(found: ModelSource, path: Path) -> ModelSource:
    """The source with what is known of an autoencoder that the user has given, but its shapes.

    Raises:
        WeightsError: it is none, or the ``config.json`` beside it says what cannot be.
    """
    checkpoint, variant = read_checkpoint(path), found.variant
    if is_tiny_vae(part_outline(checkpoint, "vae")):
        doubts = doubtful_tiny_autoencoder(path, variant)
        return replace(found, notices=(*found.notices, *doubts))
    own, beside = variant.vae, told_beside("vae", checkpoint.path)
    told = beside.values
    repaired, notices = repaired_autoencoder(checkpoint.path) if own.force_upcast else (False, ())
    if "force_upcast" in told:
        repaired, notices = not told["force_upcast"], ()
    vae = replace(
        own,
        scaling_factor=told.get("scaling_factor", own.scaling_factor),
        norm_num_groups=told.get("norm_num_groups", own.norm_num_groups),
        force_upcast=own.force_upcast and not repaired,
    )
    notices = tuple(dict.fromkeys((*found.notices, *beside.notices, *notices)))
    return replace(found, variant=variant.with_configs(vae=vae), notices=notices)


def _with_averages(found: ModelSource, ema: bool) -> ModelSource:
    """The source with the choice of averaged weights, or what is to be said of them.

    Raises:
        UsageError: ``ema``, and there are no averaged weights.
    """
    names = found.checkpoint("unet").outline
    path = found.files.weights["unet"]
    if ema and not holds_averages(names):
        raise UsageError(f"{path} holds no averaged weights (EMA) beside others; leave --ema out")
    told: tuple[str, ...] = ()
    if holds_only_averages(names):
        told = (f"{path} holds the UNet's averaged weights (EMA) only: using them",)
    elif holds_averages(names) and not ema:
        told = (f"{path} holds averaged weights (EMA) of its UNet, too; --ema takes them",)
    return replace(found, ema=ema, assumptions=(*found.assumptions, *told))


def _named(found: ModelVariant, variant: ModelVariant) -> ModelVariant:
    """What the files are, with what the user said that they are."""
    if found.name == variant.name:
        return found
    return replace(variant, configs=found.configs, pad_ids=found.pad_ids)


def recognise(
    path: Path,
    data: Path,
    given: Mapping[str, Path | None] | None = None,
    prediction: str | None = None,
    variant: str | None = None,
) -> ModelSource:
    """What a folder or file is, from its names, shapes and configuration files.

    Args:
        path: of a diffusers folder, a folder of component files or a single file.
        data: the data folder, where the vocabulary is looked for if ``path`` has none.
        given: files named by the user instead; see `find_source`.
        prediction: what the user says that the UNet predicts.
        variant: of the weights in a diffusers folder.

    Raises:
        UsageError: there is no such variant.
        WeightsError: a part is missing or broken, or it is another kind of model.
    """
    given = {} if given is None else given
    folder, notices = None, tuple[str, ...]()
    if is_model_folder(path):
        folder, notices = check_folder(read_model_folder(path, variant))
    if folder is None and variant is not None:
        raise UsageError(_NO_VARIANTS.format(path=path))
    chosen = {name: file for name, file in given.items() if file is not None}
    opened: dict[Path, Checkpoint] = {}
    files = _files(path, folder, data, chosen, opened)
    jsons: dict[str, Mapping[str, Any]] = {}
    for name, file in files.weights.items():
        opened[file] = read_checkpoint(file)
        if folder is not None and name not in chosen:
            jsons[name] = folder.configs[name]
        else:
            beside = told_beside(name, opened[file].path) if name in chosen else Validated({})
            jsons[name], notices = beside.values, (*notices, *beside.notices)
    scheduler = folder.configs["scheduler"] if folder is not None else {}
    is_own = "unet" not in chosen
    kind, assumptions = _variant_of(files, opened, jsons, scheduler, folder, prediction, is_own)
    return ModelSource(kind, files, assumptions, notices, checkpoints=opened)


def _variant_of(
    files: ModelFiles,
    opened: Mapping[Path, Checkpoint],
    jsons: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
    folder: ModelFolder | None,
    prediction: str | None,
    is_own: bool,
) -> tuple[ModelVariant, tuple[str, ...]]:
    """What these files are, and what was assumed; the JSON files are those beside them.

    ``is_own`` is whether the scheduler's file belongs to the UNet.
    """
    checkpoints = {name: opened[file] for name, file in files.weights.items()}
    outlines = {name: part_outline(one, name) for name, one in checkpoints.items()}
    try:
        found = {name: read_config(name, outlines[name], jsons[name]) for name in outlines}
        family, assumptions = family_of(
            found["unet"], checkpoints["unet"], scheduler, prediction, is_own=is_own
        )
        noise = noise_config(scheduler, family.noise)
        if not is_own and told_prediction(checkpoints["unet"]) is not None:
            noise = family.noise
    except (SdpyError, ValueError) as error:
        raise WeightsError(
            f"the model of {files.weights['unet']} is of an unknown kind: {error}"
        ) from error
    for name, config in found.items():
        if not jsons[name] and not is_known(config):
            assumptions += (f"{files.weights[name]}: {GUESSED}",)
    spacing = scheduler.get("timestep_spacing") if is_own else None
    variant = replace(
        family,
        configs={
            name: config_in(family, name, config, is_told=bool(jsons[name]))
            for name, config in found.items()
        },
        noise=noise,
        pad_ids=_pad_ids(family, folder),
        sample_size=_sample_size(family, jsons["unet"], found["vae"].downsample_factor),
        timestep_spacing=spacing
        if spacing in ("trailing", "linspace")
        else family.timestep_spacing,
    )
    if not jsons["unet"]:
        variant = with_sinusoids(variant)
    check_added_conditions(variant, files)
    if folder is not None:
        own = family.force_zeros_for_empty_prompt
        zeros = bool(folder.index.get("force_zeros_for_empty_prompt", own))
        variant = replace(variant, force_zeros_for_empty_prompt=zeros)
    if family.follows_scheduler_file:
        variant = following_scheduler(variant, scheduler)
    return variant, assumptions


def _pad_ids(family: ModelVariant, folder: ModelFolder | None) -> dict[str, int]:
    """The family's, but for those text encoders whose tokenizers say theirs."""
    said = {} if folder is None else folder.pad_ids
    ids = {**family.pad_ids, **said}
    return {name: number for name, number in ids.items() if number is not None}


def _sample_size(family: ModelVariant, told: Mapping[str, Any], factor: int) -> int:
    """Side of the images that the UNet was trained on; of others than squares, the longer one.

    ``factor``: pixels that a latent's side covers.
    """
    size = told.get("sample_size")
    if size is None:
        return family.sample_size
    return max(size if isinstance(size, list) else [size]) * factor


def part_outline(checkpoint: Checkpoint, component: str) -> dict[str, Tensor]:
    """The shapes of a component in a file, under our names."""
    weights = open_weights(checkpoint, component)
    if weights.part.component != component:
        raise WeightsError(
            f"{checkpoint.path} holds no {label_of(component)} but one "
            f"{label_of(weights.part.component)}; check which file is given for which part"
        )
    return weights.outline


def component_alone(checkpoint: Checkpoint, found: str) -> str:
    """Of the components with the role of the one that was found alone, that which it is.

    The names of a second text encoder are those of a first one; it is known by its sizes, or if
    they are of no known model, by the projection of which the first has no use.
    """
    named = found
    for row in components_with_role(COMPONENTS[found].role):
        try:
            outline = part_outline(checkpoint, row.name)
            config = read_config(row.name, outline, {})
        except WeightsError:
            continue
        if any(variant.configs.get(row.name) == config for variant in VARIANTS.values()):
            return row.name
        if row.own_names and all(name in outline for name in row.own_names):
            named = row.name
    return named


def _files(
    path: Path,
    folder: ModelFolder | None,
    data: Path,
    chosen: Mapping[str, Path],
    opened: dict[Path, Checkpoint],
) -> ModelFiles:
    parts = [component.name for component in model_components()]
    if folder is not None:
        found = {name: folder.weights[name] for name in parts if name in folder.weights}
        if folder.vocabulary is not None:
            found[VOCABULARY] = folder.vocabulary
    elif os.path.isdir(path) and component_files(path):
        found = component_files(path)
    else:  # a file, or the folder of one component
        opened[path] = read_checkpoint(path)
        refuse_other_model(opened[path])
        held = find_parts(opened[path].outline).by_component
        found = {name: path for name in parts if name in held}
    if VOCABULARY not in found:
        candidates = [data / candidate for candidate in SD15.files.vocabulary]
        found[VOCABULARY] = next(
            (file for file in candidates if os.path.exists(file)), candidates[0]
        )
    found |= chosen
    told: Mapping[str, Any] = {}
    if folder is not None and "unet" not in chosen:
        told = folder.configs.get("unet", {})
    family = _family_in(found, opened, told)
    missing = [COMPONENTS[name] for name in family.configs if name not in found]
    if missing:
        labels = " and no ".join(component.label for component in missing)
        options = " and ".join(str(component.option) for component in missing)
        advice = f"name the missing files with {options}"
        if path.parent == data and path.name in VARIANTS:
            advice += f", or fetch them with `sdpy download {path.name}`"
        elif found.keys() == {"unet", VOCABULARY}:
            base = family.name if family.base is None else family.base
            advice += f", or give this UNet to its model: --model {base} --unet-weights {path}"
        raise WeightsError(f"{path} holds no {labels}; {advice}")
    vocabulary = found.pop(VOCABULARY)
    if not os.path.exists(vocabulary):
        raise WeightsError(
            f"no vocabulary for {path}: looked for {vocabulary}; data/README.md says "
            "where to get it, --vocab-file names another"
        )
    own = folder.vocabulary if folder is not None and VOCABULARY in chosen else None
    return ModelFiles({name: found[name] for name in parts if name in found}, vocabulary, own)


def _family_in(
    found: Mapping[str, Path], opened: dict[Path, Checkpoint], told: Mapping[str, Any]
) -> ModelVariant:
    """The variant that a model with these files is of; 1.5 if none tells.

    ``told`` is what the UNet's ``config.json`` says.
    """
    if "unet" not in found:
        return SD15
    path = found["unet"]
    opened[path] = checkpoint = read_checkpoint(path)
    try:
        unet = read_config("unet", part_outline(checkpoint, "unet"), told)
        family, _ = family_of(unet, checkpoint, {})
    except (WeightsError, ValueError, TypeError):
        return SD15  # what is wrong with it is told later
    return family


def component_files(folder: Path) -> dict[str, Path]:
    """Files of a folder under the names that some variant has for them."""
    found: dict[str, Path] = {}
    for variant in VARIANTS.values():
        for name, candidates in variant.files.all.items():
            for candidate in candidates:
                if name not in found and os.path.isfile(folder / candidate):
                    found[name] = folder / candidate
    return found
