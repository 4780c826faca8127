"""What names and metadata say of a checkpoint, where shapes cannot: other models, distilled ones.

What is found here is a guess, and the user is told of it; but for models that sdpy does not run.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from sdpy.checkpoints import Checkpoint
from sdpy.errors import WeightsError
from sdpy.schedulers import NoiseConfig
from sdpy.zoo.variants import SDXL, SDXL_LIGHTNING, SDXL_TURBO, ModelVariant

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
        "epsilon; if images are noise, give --prediction v_prediction",
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
