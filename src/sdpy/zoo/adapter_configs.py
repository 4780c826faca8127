"""The sizes of T2I-Adapters, read off their weights' shapes and diffusers' JSON files.

Shapes tell everything but what lies side by side in the first layer's channels: so many pixels of
an image in colour, or four times as many of a grey one. Of the published adapters only one of the
two can be.
"""

from __future__ import annotations

from typing import Any

from sdpy.errors import WeightsError
from sdpy.models import T2IAdapterConfig
from sdpy.models.t2i_adapter import adapter_type_for
from sdpy.zoo.configs import Json, Outline, count_in, size_in
from sdpy.zoo.variants import ModelVariant

CHANNELS = (3, 1)
"""Of the images that adapters are shown: in colour, or grey."""

DOWNSCALE_FACTORS = {"full_adapter": 8, "light_adapter": 8, "full_adapter_xl": 16}
"""Of the published adapters."""

FAMILIES = {
    "full_adapter": "Stable Diffusion 1.x",
    "light_adapter": "Stable Diffusion 1.x",
    "full_adapter_xl": "Stable Diffusion XL",
}
"""For which models adapters are, by their types."""


def t2i_adapter_config(outline: Outline, config: Json) -> T2IAdapterConfig:
    """The sizes of an adapter.

    Args:
        outline: its weights' shapes.
        config: what its ``config.json`` says; empty if there is none.

    Raises:
        WeightsError: the weights have no such names and shapes as an adapter's, or of other images
            than in colour or grey.
    """
    found, unshuffled = _seen(outline)
    if config:
        channels = config.get("in_channels", 3)
        kind = str(config.get("adapter_type", "full_adapter"))
        factor = config.get("downscale_factor", 8)
        return T2IAdapterConfig(**found, in_channels=channels, **_kind(kind, factor))
    kinds = ("light_adapter",) if _is_light(outline) else ("full_adapter", "full_adapter_xl")
    for kind in kinds:
        factor = DOWNSCALE_FACTORS[kind]
        for channels in CHANNELS:
            if unshuffled == channels * factor**2:
                return T2IAdapterConfig(**found, in_channels=channels, **_kind(kind, factor))
    raise WeightsError(
        f"its first layer has {unshuffled} input channels, which an adapter for images in colour "
        "or grey has only if its config.json says how many pixels these are; put that beside it"
    )


def adapter_beside(variant: ModelVariant, outline: Outline) -> T2IAdapterConfig:
    """The sizes of an adapter that goes with a variant's UNet.

    Its kind and whether it is shown colours are its own.

    Raises:
        WeightsError: it is for another UNet, or none is for this one.
    """
    wanted = adapter_type_for(variant.unet)
    factor = variant.vae.downsample_factor * (2 if wanted == "full_adapter_xl" else 1)
    found, unshuffled = _seen(outline)
    is_light = _is_light(outline)
    if wanted is None or (is_light and wanted == "full_adapter_xl"):
        family = FAMILIES["light_adapter" if is_light else _published_type(unshuffled)]
        raise WeightsError(
            f"it is a T2I-Adapter for {family}, and no such goes with {variant.name}"
        )
    channels = next((one for one in CHANNELS if unshuffled == one * factor**2), None)
    if channels is None:
        family = FAMILIES[_published_type(unshuffled)]
        if family == FAMILIES[wanted]:
            raise WeightsError(
                f"its first layer has {unshuffled} input channels, and for {variant.name} it needs "
                f"{3 * factor**2}, or {factor**2} for grey images; take an adapter for this model"
            )
        raise WeightsError(
            f"it is a T2I-Adapter for {family}, and {variant.name} takes those for "
            f"{FAMILIES[wanted]}"
        )
    unet = variant.unet.block_out_channels
    levels = (*unet, unet[-1])[:4]
    return T2IAdapterConfig(
        in_channels=channels,
        channels=levels[:3] if is_light else levels,
        num_res_blocks=found["num_res_blocks"],
        downscale_factor=factor,
        adapter_type="light_adapter" if is_light else wanted,
    )


def told_adapter(config: T2IAdapterConfig, told: Json) -> T2IAdapterConfig:
    """The sizes of an adapter beside a model; what its ``config.json`` says has to agree.

    Raises:
        WeightsError: it says that the adapter is of another kind.
    """
    for name, kind in told.items():
        own = getattr(config, name)
        if name != "channels" and kind != own:
            raise WeightsError(
                f"its config.json says '{name}' is {kind}, and for this model it is {own}"
            )
    return config


def _published_type(unshuffled: int) -> str:
    """Of a full adapter with so many channels of pixels that lie side by side."""
    sides = DOWNSCALE_FACTORS["full_adapter_xl"] ** 2
    return "full_adapter_xl" if unshuffled in (sides, 3 * sides) else "full_adapter"


def _is_light(outline: Outline) -> bool:
    return "adapter.conv_in.weight" not in outline


def _kind(kind: str, factor: int) -> dict[str, Any]:
    return {"adapter_type": kind, "downscale_factor": factor}


def _seen(outline: Outline) -> tuple[dict[str, Any], int]:
    """Channels and ResNets of the levels, and the input channels of the first layer."""
    is_light = _is_light(outline)
    layer = "out_conv" if is_light else "resnets.0.block1"
    channels = tuple(size_in(outline, f"adapter.body.{i}.{layer}.weight", 0) for i in range(4))
    first = "adapter.body.0.in_conv" if is_light else "adapter.conv_in"
    sizes = {
        "channels": channels[:3] if is_light else channels,
        "num_res_blocks": count_in(outline, r"adapter\.body\.0\.resnets\.(\d+)\."),
    }
    return sizes, size_in(outline, f"{first}.weight", 1)
