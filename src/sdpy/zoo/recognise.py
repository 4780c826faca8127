"""What ``--model PATH`` names: a diffusers folder, a folder of component files, or one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sdpy.checkpoints import (
    LABELS,
    Checkpoint,
    ModelFolder,
    config_beside,
    find_parts,
    is_model_folder,
    read_checkpoint,
    read_model_folder,
    read_part,
)
from sdpy.errors import UsageError, WeightsError
from sdpy.models import CLIPTextConfig, UNet2DConditionConfig
from sdpy.schedulers import NoiseConfig
from sdpy.zoo.components import ModelFiles, find_files
from sdpy.zoo.configs import (
    GUESSED,
    is_known,
    is_tiny_vae,
    noise_config,
    text_config,
    unet_config,
    vae_config,
)
from sdpy.zoo.variants import (
    SD2_INPAINT,
    SD15,
    SD15_INPAINT,
    SD21,
    SD21_BASE,
    SD_TURBO,
    VARIANTS,
    ModelVariant,
)

WEIGHTS = ("text_encoder", "unet", "vae")
"""The fields of `ModelFiles` that are weights; they are also the names of components."""

FLAGS = {"text_encoder": "--clip-weights", "unet": "--unet-weights", "vae": "--vae-weights"}
SINGLE_FILES = (".safetensors", ".ckpt")
WIDTH_OF_2X = 1024


@dataclass(frozen=True)
class Recognised:
    """A model on disk.

    Attributes:
        variant: its sizes, noise and defaults.
        files: where its parts are.
        assumptions: what could not be told and was assumed, a line each for the user.
    """

    variant: ModelVariant
    files: ModelFiles
    assumptions: tuple[str, ...] = ()


def find_model(
    name: str,
    data: Path,
    given: Mapping[str, Path | None] | None = None,
    prediction: str | None = None,
) -> Recognised:
    """The model that ``--model`` names.

    Args:
        name: a variant, whose files are looked for in ``data``: in the folder or the single file
            that is called like it, otherwise one by one; or the path of a folder or a file.
        data: the data folder.
        given: files named by the user, by the fields of `ModelFiles`; None where none is.
        prediction: what the user says that the UNet predicts, which need not be assumed then.

    Raises:
        UsageError: neither a variant nor a path.
        WeightsError: files are missing or broken, or of another kind of model.
    """
    if name not in VARIANTS:
        path = Path(name)
        if not name.strip() or not os.path.exists(path):  # False also for a bad name
            raise UsageError(
                f"unknown model '{name}': use one of {', '.join(VARIANTS)}, "
                "or the path of a folder or file"
            )
        return recognise(path, data, given, prediction)
    variant = VARIANTS[name]
    if variant.bundled is None:
        candidates = [data / name, *(data / (name + suffix) for suffix in SINGLE_FILES)]
        for path in candidates:
            if is_model_folder(path) or os.path.isfile(path):
                found = recognise(path, data, given)
                return replace(found, variant=_named(found.variant, variant), assumptions=())
    return Recognised(variant, find_files(variant, data, given))


def _named(found: ModelVariant, variant: ModelVariant) -> ModelVariant:
    """What the files are, with what the user said that they are."""
    return replace(
        variant,
        text_encoder=found.text_encoder,
        unet=found.unet,
        vae=found.vae,
        pad_id=found.pad_id,
    )


def recognise(
    path: Path,
    data: Path,
    given: Mapping[str, Path | None] | None = None,
    prediction: str | None = None,
) -> Recognised:
    """What a folder or file is, from its names, shapes and configuration files.

    Args:
        path: of a diffusers folder, a folder of component files or a single file.
        data: the data folder, where the vocabulary is looked for if ``path`` has none.
        given: files named by the user instead; see `find_model`.
        prediction: what the user says that the UNet predicts.

    Raises:
        WeightsError: a part is missing or broken, or it is another kind of model.
    """
    given = {} if given is None else given
    folder = read_model_folder(path) if is_model_folder(path) else None
    chosen = {name: file for name, file in given.items() if file is not None}
    files = _files(path, folder, data, chosen)
    configs: dict[str, Mapping[str, Any]] = {}
    for name in WEIGHTS:
        own = folder is not None and name not in chosen
        configs[name] = config_beside(getattr(files, name)) if own else {}
    scheduler = folder.configs["scheduler"] if folder is not None else {}
    return _recognise_files(files, configs, scheduler, folder, prediction)


def _recognise_files(
    files: ModelFiles,
    configs: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
    folder: ModelFolder | None,
    prediction: str | None,
) -> Recognised:
    """What these files are; ``configs`` and ``scheduler`` are the JSON files beside them."""
    checkpoints = {name: read_checkpoint(getattr(files, name)) for name in WEIGHTS}
    outlines = {name: part_outline(one, name) for name, one in checkpoints.items()}
    try:
        unet = unet_config(outlines["unet"], configs["unet"])
        text = text_config(outlines["text_encoder"], configs["text_encoder"])
        tiny = is_tiny_vae(outlines["vae"])
        vae = None if tiny else vae_config(outlines["vae"], configs["vae"])
        family, assumptions = family_of(unet, checkpoints["unet"], scheduler, prediction)
        noise = noise_config(scheduler, family.noise)
    except (WeightsError, ValueError, TypeError) as error:
        raise WeightsError(f"the model of {files.unet} is of an unknown kind: {error}") from error
    for name, config in (("text_encoder", text), ("unet", unet), ("vae", vae)):
        if config is not None and not configs[name] and not is_known(config):
            assumptions += (f"{getattr(files, name)}: {GUESSED}",)
    spacing = scheduler.get("timestep_spacing")
    variant = replace(
        family,
        text_encoder=text if configs["text_encoder"] else _text_encoder_of(family, text),
        unet=unet,
        vae=family.vae if vae is None else vae,
        noise=noise,
        pad_id=_pad_id(family, folder),
        timestep_spacing=spacing
        if spacing in ("trailing", "linspace")
        else family.timestep_spacing,
    )
    return Recognised(variant, files, assumptions)


def part_outline(checkpoint: Checkpoint, component: str) -> dict[str, Tensor]:
    """The shapes of a component in a file, under our names."""
    part = read_part(checkpoint, component)
    if part.component != component:
        held = LABELS.get(str(part.component), "something else")
        raise WeightsError(
            f"{checkpoint.path} holds no {LABELS[component]} but one {held}; check which file is "
            "given for which part"
        )
    return {ours: origin.take(ours, checkpoint.outline) for ours, origin in part.origins.items()}


def _files(
    path: Path, folder: ModelFolder | None, data: Path, chosen: Mapping[str, Path]
) -> ModelFiles:
    if folder is not None:
        found: dict[str, Path] = {n: folder.weights[n] for n in WEIGHTS if n in folder.weights}
        if folder.vocabulary is not None:
            found["vocabulary"] = folder.vocabulary
    elif os.path.isdir(path):
        found = component_files(path)
    else:
        held = find_parts(read_checkpoint(path).outline).by_component
        found = {name: path for name in WEIGHTS if name in held}
    if "vocabulary" not in found:
        names = SD15.files.vocabulary
        candidates = [data / candidate for candidate in names]
        found["vocabulary"] = next(
            (file for file in candidates if os.path.exists(file)), candidates[0]
        )
    found |= chosen
    missing = [name for name in WEIGHTS if name not in found]
    if missing:
        parts = " and no ".join(LABELS[name] for name in missing)
        flags = " and ".join(FLAGS[name] for name in missing)
        raise WeightsError(f"{path} holds no {parts}; name the missing files with {flags}")
    if not os.path.exists(found["vocabulary"]):
        raise WeightsError(
            f"no vocabulary for {path}: looked for {found['vocabulary']}; data/README.md says "
            "where to get it, --vocab-file names another"
        )
    return ModelFiles(**found)


def component_files(folder: Path) -> dict[str, Path]:
    """Files of a folder under the names that some variant has for them."""
    found: dict[str, Path] = {}
    for variant in VARIANTS.values():
        for name, candidates in vars(variant.files).items():
            for candidate in candidates:
                if name not in found and os.path.isfile(folder / candidate):
                    found[name] = folder / candidate
    return found


def family_of(
    unet: UNet2DConditionConfig,
    checkpoint: Checkpoint,
    scheduler: Mapping[str, Any],
    prediction: str | None = None,
) -> tuple[ModelVariant, tuple[str, ...]]:
    """The variant that a UNet is of, and what had to be assumed.

    Args:
        unet: its sizes.
        checkpoint: the file that it is in.
        scheduler: what a ``scheduler_config.json`` says; empty if there is none.
        prediction: what the user says that it predicts.
    """
    for variant in VARIANTS.values():
        if variant.bundled is not None and variant.unet == unet:
            return variant, ()
    inpaints = unet.in_channels > unet.out_channels
    if not unet.use_linear_projection and unet.cross_attention_dim != WIDTH_OF_2X:
        family = SD15_INPAINT if inpaints else SD15
        told = _told_prediction(checkpoint)
        return (family if told is None else replace(family, noise=told)), ()
    if inpaints:
        return SD2_INPAINT, ()
    if scheduler:
        if scheduler.get("prediction_type", "epsilon") != "epsilon":
            return SD21, ()
        return (SD_TURBO if scheduler.get("timestep_spacing") == "trailing" else SD21_BASE), ()
    told = _told_prediction(checkpoint)
    if told is not None:
        return replace(SD21_BASE if told.prediction_type == "epsilon" else SD21, noise=told), ()
    if prediction is not None:
        return (SD21_BASE if prediction == "epsilon" else SD21), ()
    return SD21, (
        f"{checkpoint.path} does not say what its UNet predicts: assuming v_prediction, as of "
        "Stable Diffusion 2.x at 768x768; give --prediction epsilon for a base model or SD-Turbo",
    )


def _told_prediction(checkpoint: Checkpoint) -> NoiseConfig | None:
    """What a single file says of its noise: by empty tensors, or in Stability's model metadata."""
    if "v_pred" in checkpoint.outline:
        zero_snr = "ztsnr" in checkpoint.outline
        return NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr)
    told = checkpoint.metadata.get("modelspec.prediction_type")
    if told is None:
        return None
    return NoiseConfig(prediction_type="v_prediction" if told.startswith("v") else "epsilon")


def _text_encoder_of(family: ModelVariant, text: CLIPTextConfig) -> CLIPTextConfig:
    """A text encoder of unknown size goes with the activation of its family."""
    known = {variant.text_encoder for variant in VARIANTS.values()}
    if text in known:
        return text
    return replace(text, hidden_act=family.text_encoder.hidden_act)


def _pad_id(family: ModelVariant, folder: ModelFolder | None) -> int | None:
    if folder is not None and folder.vocabulary is not None:
        return 0 if folder.pads_with_zero else None
    return family.pad_id
