"""What a path holds: a diffusers folder, a folder of component files, or one file."""

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
    is_model_folder,
    open_weights,
    read_checkpoint,
    read_model_folder,
)
from sdpy.components import COMPONENTS, components_with_role, label_of, model_components
from sdpy.errors import SdpyError, UsageError, WeightsError
from sdpy.schema import Validated
from sdpy.zoo.classes import read_config
from sdpy.zoo.configs import GUESSED, is_known, noise_config
from sdpy.zoo.families import (
    check_added_conditions,
    config_in,
    family_of,
    following_scheduler,
    with_sinusoids,
)
from sdpy.zoo.files import ModelFiles
from sdpy.zoo.hints import (
    refuse_other_model,
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

NO_VARIANTS = "{path} is no diffusers folder, and has no variants of weights; leave --variant out"
"""An error of whoever asks for a variant of such weights."""


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
        raise UsageError(NO_VARIANTS.format(path=path))
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
