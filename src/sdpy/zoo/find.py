"""What ``--model`` names: a variant, a path, or the name of a model on a hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sdpy.checkpoints import holds_averages, holds_only_averages, is_model_folder, read_checkpoint
from sdpy.errors import UsageError, WeightsError
from sdpy.zoo.cache import cached_model, is_hub_name, single_file, snapshot_in
from sdpy.zoo.configs import is_tiny_vae
from sdpy.zoo.files import find_files
from sdpy.zoo.hints import (
    check_autoencoder,
    distilled,
    doubtful_tiny_autoencoder,
    repaired_autoencoder,
)
from sdpy.zoo.recognise import NO_VARIANTS, part_outline, recognise
from sdpy.zoo.schemas import told_beside
from sdpy.zoo.source import ModelSource
from sdpy.zoo.variants import VARIANTS, ModelVariant


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
            raise UsageError(NO_VARIANTS.format(path=name))
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
        raise UsageError(NO_VARIANTS.format(path=data))
    source = ModelSource(variant, find_files(variant, data, given))
    if variant.base is None:
        return source
    told, _ = distilled(VARIANTS[variant.base], source.checkpoint("unet"))
    return replace(source, variant=told if told.name == variant.name else variant)


def _place_of(name: str, data: Path) -> Path | None:
    """The folder or single file of a data folder that is called like a variant."""
    folder = data / name
    return folder if is_model_folder(folder) else single_file(data, name)


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
    doubts = check_autoencoder(checkpoint, told, variant)
    repaired, notices = repaired_autoencoder(checkpoint.path) if own.force_upcast else (False, ())
    if "force_upcast" in told:
        repaired, notices = not told["force_upcast"], ()
    vae = replace(
        own,
        # Where its own file says none, it is for a model of this kind.
        scaling_factor=told.get("scaling_factor", VARIANTS[variant.name].vae.scaling_factor),
        norm_num_groups=told.get("norm_num_groups", own.norm_num_groups),
        force_upcast=own.force_upcast and not repaired,
    )
    notices = tuple(dict.fromkeys((*found.notices, *beside.notices, *notices, *doubts)))
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
