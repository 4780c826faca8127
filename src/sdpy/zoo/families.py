"""Which family of models a UNet is of, and what follows from it for the other components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdpy.checkpoints import Checkpoint
from sdpy.errors import WeightsError
from sdpy.models import AutoencoderKLConfig, CLIPTextConfig, UNet2DConditionConfig
from sdpy.schedulers import SCHEDULERS
from sdpy.zoo.configs import is_known, is_of_2x
from sdpy.zoo.files import ModelFiles
from sdpy.zoo.hints import distilled, doubtful_prediction, told_prediction
from sdpy.zoo.variants import (
    ONE_STEP_UNETS,
    SD2_INPAINT,
    SD15,
    SD15_INPAINT,
    SD21,
    SD21_BASE,
    SD_TURBO,
    SDXL,
    SDXL_INPAINT,
    SDXL_LCM,
    SDXL_REFINER,
    SDXL_TURBO,
    SEGMIND_VEGA,
    SSD_1B,
    VARIANTS,
    Config,
    ModelVariant,
)

DEPTHS = (
    *("transformer_layers_per_block", "reverse_transformer_layers_per_block", "mid_block_type"),
)
"""Sizes in which distilled UNets differ from those that they were made of."""
REFINER_NUMBERS = 5
"""That SDXL's refiner is told: height and width, top and left, and an aesthetic score."""


def family_of(
    unet: UNet2DConditionConfig,
    checkpoint: Checkpoint,
    scheduler: Mapping[str, Any],
    prediction: str | None = None,
    *,
    is_own: bool = True,
) -> tuple[ModelVariant, tuple[str, ...]]:
    """The variant that a UNet is of, and what had to be assumed.

    Args:
        unet: its sizes.
        checkpoint: the file that it is in.
        scheduler: what a ``scheduler_config.json`` says; empty if there is none.
        prediction: what the user says that it predicts.
        is_own: whether that file belongs to this UNet, and not to one in whose place it was given.
    """
    for variant in VARIANTS.values():
        if variant.bundled is not None and variant.unet == unet:
            return variant, ()
    if unet in ONE_STEP_UNETS:
        family, told = SD21_BASE if is_of_2x(unet) else SD15, told_prediction(checkpoint)
        noise = family.noise if told is None else told
        return replace(
            family, noise=noise, steps=1, timestep_spacing="trailing", guidance_scale=1.0
        ), ()
    inpaints = unet.in_channels > unet.out_channels
    if unet.addition_embed_type == "text_time":
        family, assumed = _xl_family(unet, scheduler), tuple[str, ...]()
        if family is SDXL and not (scheduler and is_own):
            family, assumed = distilled(family, checkpoint)
        told = told_prediction(checkpoint, is_xl=True)
        if told is not None:
            return replace(family, noise=told), assumed
        doubts = () if scheduler and is_own else doubtful_prediction(checkpoint)
        return family, (*assumed, *doubts)
    if not is_of_2x(unet):
        family = SD15_INPAINT if inpaints else SD15
        told = told_prediction(checkpoint)
        return (family if told is None else replace(family, noise=told)), ()
    if inpaints:
        return SD2_INPAINT, ()
    if scheduler:
        if scheduler.get("prediction_type", "epsilon") != "epsilon":
            return SD21, ()
        return (SD_TURBO if scheduler.get("timestep_spacing") == "trailing" else SD21_BASE), ()
    told = told_prediction(checkpoint)
    if told is not None:
        return replace(SD21_BASE if told.prediction_type == "epsilon" else SD21, noise=told), ()
    if prediction is not None:
        return (SD21_BASE if prediction == "epsilon" else SD21), ()
    return SD21, (
        f"{checkpoint.path} does not say what its UNet predicts: assuming v_prediction, as of "
        "Stable Diffusion 2.x at 768x768; give --prediction-type epsilon for a base model or "
        "SD-Turbo",
    )


def _xl_family(unet: UNet2DConditionConfig, scheduler: Mapping[str, Any]) -> ModelVariant:
    """Which of the models a UNet is of that is told pooled embedding and sizes."""
    width, sinusoids = unet.projection_class_embeddings_input_dim, unet.addition_time_embed_dim
    assert width is not None and sinusoids is not None
    if width - REFINER_NUMBERS * sinusoids == unet.cross_attention_dim:
        # A single text encoder, whose pooled embedding is as wide as its states.
        return SDXL_REFINER
    if unet.in_channels > unet.out_channels:
        return SDXL_INPAINT
    for small in (SSD_1B, SEGMIND_VEGA):
        if all(getattr(unet, name) == getattr(small.unet, name) for name in DEPTHS):
            return small
    if unet.time_cond_proj_dim is not None:
        return SDXL_LCM
    distilled = (SDXL_TURBO.timestep_spacing, "EulerAncestralDiscreteScheduler")
    if (scheduler.get("timestep_spacing"), scheduler.get("_class_name")) == distilled:
        return SDXL_TURBO
    return SDXL


def config_in(family: ModelVariant, name: str, config: Config, *, is_told: bool) -> Config:
    """The sizes of a component in a model of that family; ``is_told``: by a ``config.json``."""
    own = family.configs.get(name)
    if own is not None and type(config) is not type(own):
        return own  # as a tiny autoencoder stands in for the family's when it is loaded
    if isinstance(config, AutoencoderKLConfig) and own is not None and not is_told:
        # Autoencoders of several families have the same shapes.
        return replace(config, scaling_factor=own.scaling_factor, force_upcast=own.force_upcast)
    if isinstance(config, AutoencoderKLConfig) and own is not None:
        # Every folder that diffusers writes says this, whether or not it is so.
        return replace(config, force_upcast=own.force_upcast and config.force_upcast)
    if isinstance(config, CLIPTextConfig) and not is_told and not is_known(config):
        # A text encoder of unknown size goes with the activation of its family.
        act = family.text_encoder.hidden_act if own is None else own.hidden_act
        return replace(config, hidden_act=act)
    return config


NUMBERS = {"original_size": 2, "crop": 2, "target_size": 2, "aesthetic_score": 1}
"""How many numbers a UNet is told, by the names in `ModelVariant.size_conditions`."""


def _added_width(variant: ModelVariant) -> int | None:
    """What the pooled embedding leaves of the width that a UNet is told beside the time."""
    pooled = getattr(variant.configs.get("text_encoder_2"), "projection_dim", None)
    width = variant.unet.projection_class_embeddings_input_dim
    return None if pooled is None or width is None else width - pooled


def with_sinusoids(variant: ModelVariant) -> ModelVariant:
    """The variant with as many sinusoids for each size as the widths of its models leave room for.

    A UNet's weights alone do not show them.
    """
    room, count = _added_width(variant), sum(map(NUMBERS.__getitem__, variant.size_conditions))
    if room is None or not count or room <= 0 or room % count:
        return variant
    return variant.with_configs(unet=replace(variant.unet, addition_time_embed_dim=room // count))


def check_added_conditions(variant: ModelVariant, files: ModelFiles) -> None:
    """Raises ``WeightsError`` if UNet and second text encoder do not go together."""
    room, count = _added_width(variant), sum(map(NUMBERS.__getitem__, variant.size_conditions))
    if room is not None and room != count * (variant.unet.addition_time_embed_dim or 0):
        raise WeightsError(
            f"{files.weights['text_encoder_2']} does not go with {files.weights['unet']}: its "
            f"pooled embedding leaves {room} numbers for {count} sizes; check which file is "
            "given for which part"
        )


def following_scheduler(variant: ModelVariant, scheduler: Mapping[str, Any]) -> ModelVariant:
    """The variant with a scheduler file's sampler and spacing; its own where there is no such."""
    names = {alias: name for name, row in SCHEDULERS.items() for alias in row.aliases}
    sampler = names.get(str(scheduler.get("_class_name")), variant.scheduler)
    if scheduler.get("use_karras_sigmas") and SCHEDULERS[sampler].takes_sigmas:
        sampler = f"{sampler}-karras"
    spacing = scheduler.get("timestep_spacing", variant.timestep_spacing)
    return replace(variant, scheduler=sampler, timestep_spacing=spacing)
