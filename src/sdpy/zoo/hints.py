"""What names and metadata say of a checkpoint, where shapes cannot: other models, distilled ones.

What is found here is a guess, and the user is told of it; but for models that sdpy does not run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpy.checkpoints import Checkpoint
from sdpy.errors import WeightsError
from sdpy.schedulers import NoiseConfig
from sdpy.zoo.configs import is_of_2x
from sdpy.zoo.hub.catalog import MODELS
from sdpy.zoo.variants import SD15, SDXL, SDXL_LIGHTNING, SDXL_TURBO, VARIANTS, ModelVariant

# Beginnings of names in checkpoints whose UNets look like Stable Diffusion's.
_OTHERS: tuple[tuple[str, str], ...] = (
    (
        "cond_stage_model.model.visual.",
        "a model of image variations, whose UNet is told an image instead of a prompt",
    ),
    ("embedder.model.visual.", "an unCLIP model, whose UNet is told an image beside the prompt"),
    ("edm_mean", "Playground 2.5 or alike, whose latents have another scale"),
    ("edm_vpred.", "CosXL or alike, whose noise has another schedule"),
)

# The first number of a version, as in "t2iadapter_canny_sd14v1" or "stable-diffusion-v2-768-v".
_VERSION = re.compile(
    r"(?<![a-z])(?:sd|stable[ _.-]?diffusion)[ _.-]?v?[ _.-]?([12])(?:[ _.-]?[0-5])?(?!\d)"
)
_BASES = ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name")

_TITLES = ("modelspec.title", "modelspec.architecture", "ss_output_name")


def other_model(names: Collection[str]) -> str | None:
    """What a checkpoint with such names is, if it is none that sdpy runs; otherwise None."""
    for start, meaning in _OTHERS:
        if any(name.startswith(start) for name in names):
            return meaning
    return None


def refuse_other_model(checkpoint: Checkpoint) -> None:
    """Raises ``WeightsError`` for a checkpoint of a model that sdpy does not run."""
    other = other_model(checkpoint.outline)
    if other is not None:
        raise WeightsError(
            f"{checkpoint.path} is {other}, which sdpy does not run; `sdpy download` lists "
            "models that it does"
        )


def told_prediction(checkpoint: Checkpoint, *, is_xl: bool = False) -> NoiseConfig | None:
    """What a single file says of its noise: by empty tensors, or in Stability's model metadata.

    Of Stable Diffusion XL, all models that predict v were trained until nothing but noise was left;
    metadata does not say this apart.
    """
    if "v_pred" in checkpoint.outline:
        zero_snr = "ztsnr" in checkpoint.outline
        return NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr)
    told = checkpoint.metadata.get("modelspec.prediction_type")
    if told is None:
        return None
    if not told.startswith("v"):
        return NoiseConfig(prediction_type="epsilon")
    return NoiseConfig(prediction_type="v_prediction", rescale_betas_zero_snr=is_xl)


def distilled(family: ModelVariant, checkpoint: Checkpoint) -> tuple[ModelVariant, tuple[str, ...]]:
    """Stable Diffusion XL, or what was distilled from it, by the name of the file and its title.

    Returns:
        The variant, and what has been assumed.
    """
    title = " ".join(checkpoint.metadata.get(key, "") for key in _TITLES)
    name = f"{checkpoint.path.name} {title}".lower()
    if "lightning" in name:
        found = re.search(r"(\d)[ _-]?steps?", name)
        steps = SDXL_LIGHTNING.steps if found is None else int(found[1])
        family = replace(SDXL_LIGHTNING, steps=steps)
    elif re.search(r"sd_?xl[ _.-]turbo", name):
        family = SDXL_TURBO
    elif "turbo" in name:
        return family, (
            f"{checkpoint.path} is called a turbo model, of which some want --steps 4 to 8 and "
            "--guidance-scale 1 to 2; nothing of it is assumed",
        )
    else:
        return family, ()
    family = replace(family, follows_scheduler_file=False)  # as there is none of its own
    return family, (
        f"{checkpoint.path} is called like {family.name}, as shapes do not tell: assuming "
        f"{family.steps} steps, guidance scale {family.guidance_scale:g} and "
        f"{family.timestep_spacing} spacing; --steps, --guidance-scale and --timestep-spacing "
        "say otherwise",
    )


def doubtful_prediction(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What is to be said of a file whose name alone says that it predicts v."""
    if not re.search(r"v[ _-]?pred", checkpoint.path.name.lower()):
        return ()
    return (
        f"{checkpoint.path} is called as if it predicted v, and does not say so inside: assuming "
        "epsilon; if images are noise, give --prediction-type v_prediction",
    )


def doubtful_tiny_autoencoder(path: Path, variant: ModelVariant) -> tuple[str, ...]:
    """What is to be said of TAESD and TAESDXL, whose shapes are the same and whose latents differ.

    Args:
        path: the tiny autoencoder's file, whose name or folder usually tells.
        variant: the model that it is to decode for.
    """
    is_xl = variant.vae.scaling_factor == SDXL.vae.scaling_factor
    if is_xl == any("xl" in name.lower() for name in path.parts[-2:]):
        return ()
    wanted, other = ("TAESDXL", "TAESD") if is_xl else ("TAESD", "TAESDXL")
    return (
        f"{path}: this model needs {wanted}; if this is {other}, colours will be wrong, "
        "which weights do not tell",
    )


SCALES = {
    SD15.vae.scaling_factor: "Stable Diffusion 1.x and 2.x",
    SDXL.vae.scaling_factor: "Stable Diffusion XL",
}
"""For which models an autoencoder is, by the factor that its latents are multiplied with."""


def check_autoencoder(
    checkpoint: Checkpoint, told: Mapping[str, Any], variant: ModelVariant
) -> tuple[str, ...]:
    """What is to be said of an autoencoder that was given for a model; shapes do not tell.

    Args:
        checkpoint: its file, whose name may say what it is for.
        told: what the ``config.json`` beside it says. A scaling factor of no published model is
            followed.
        variant: the model.

    Raises:
        WeightsError: it is for latents of another scale.
    """
    path, own = checkpoint.path, VARIANTS[variant.name].vae.scaling_factor
    if own not in SCALES:
        return ()
    scale = told.get("scaling_factor", own)
    if scale != own and scale in SCALES:
        raise WeightsError(
            f"{path}: the config.json beside it says that it is an autoencoder for {SCALES[scale]},"
            f" and {variant.name} needs one for {SCALES[own]}; take one for this model"
        )
    name = "/".join(path.parts[-2:]).lower()
    is_xl = own == SDXL.vae.scaling_factor
    if told:
        # Configuration files of XL's autoencoders say both, those of most others neither.
        doubted = is_xl and told.keys().isdisjoint(("scaling_factor", "force_upcast"))
    elif is_xl:
        doubted = _VERSION.search(name) is not None or "vae-ft-" in name
    else:
        doubted = re.search(r"(?<![a-z])(sd[ _.-]?)?xl(?![a-z])", name) is not None
    if not doubted:
        return ()
    return (
        f"{path} looks like an autoencoder for {SCALES[_other_scale(own)]}, by its name or its "
        f"config.json, which weights do not tell; if it is one, colours will be wrong: "
        f"{variant.name} needs one for {SCALES[own]}",
    )


def _other_scale(own: float) -> float:
    return next(scale for scale in SCALES if scale != own)


def doubtful_adapter(checkpoint: Checkpoint, variant: ModelVariant) -> tuple[str, ...]:
    """What is to be said of T2I-Adapters for 1.x and for 2.x, whose shapes are the same.

    Args:
        checkpoint: the adapter's file; its name, its folder's, its repository's or its metadata may
            say what it is for.
        variant: the model that it is to steer.

    Raises:
        WeightsError: it is for the other of the two.
    """
    unet, path = variant.unet, checkpoint.path
    if unet.addition_embed_type is not None:
        return ()  # of Stable Diffusion XL, whose adapters have other shapes
    folders = path.parents
    names = [path.name, path.parent.name]
    if len(folders) > 2 and folders[1].name == "snapshots":  # of a hub's cache
        names.append(folders[2].name)
    if path.parent.name in MODELS:
        names.append(MODELS[path.parent.name].repository)
    names += [checkpoint.metadata.get(key, "") for key in _BASES]
    versions = {found[1] for name in names for found in _VERSION.finditer(name.lower())}
    ours, theirs = ("2", "1") if is_of_2x(unet) else ("1", "2")
    if versions == {theirs}:
        raise WeightsError(
            f"{path}: its name or metadata says that it is a T2I-Adapter for Stable Diffusion "
            f"{theirs}.x, and {variant.name} is a {ours}.x; take an adapter for this model"
        )
    if ours == "1" or versions == {ours}:
        return ()
    return (
        f"{path}: T2I-Adapters for Stable Diffusion 1.x and 2.x have the same shapes, and nothing "
        f"says for which this one is; if it is for 1.x, as the published ones are, it steers "
        f"{variant.name} wrongly",
    )


def repaired_autoencoder(path: Path) -> tuple[bool, tuple[str, ...]]:
    """Whether an autoencoder of Stable Diffusion XL is called one that computes in float16.

    Repaired ones have other weights of the same shapes, by which one could not tell them.

    Returns:
        Whether it is, and what has been assumed.
    """
    name = "/".join(path.parts[-2:]).lower()
    if not re.search(
        r"(fp|float)16[ _.-]?fix|fix[ _.-]?(fp|float)16|sdxl[ _.-]vae[ _.-]fp16", name
    ):
        return False, ()
    return True, (
        f"{path} is called as if it were repaired to compute in fp16, which weights do not tell: "
        "with --dtype fp16 it does; a config.json beside it can say force_upcast",
    )
