"""Whose layer a tensor of an adapter is for: names of components and layers in all programs.

A name is a prefix for the component (`sdpy.components.Component.adapter_prefixes`), the layer, and
an ending for the tensor's role. Layers are named as in diffusers and transformers or as in the
original programs; kohya's programs write "_" for ".".
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from sdpy.checkpoints import ldm
from sdpy.components import COMPONENTS


class Owner(NamedTuple):
    """Whose a layer is.

    Attributes:
        role: of the component.
        component: its name; None where the file does not say which of that role.
    """

    role: str
    component: str | None


PREFIXES: dict[str, Owner] = {
    prefix: Owner(row.role, row.name)
    for row in COMPONENTS.values()
    for prefix in row.adapter_prefixes
}

UNTOLD: tuple[tuple[str, str, str], ...] = (
    ("base_model.model.text_model.", "base_model.model.", "text_encoder"),
    ("base_model.model.encoder.layers.", "base_model.model.", "text_encoder"),
    ("base_model.model.", "base_model.model.", "unet"),
    ("text_model.", "", "text_encoder"),
    # The first LoRAs of diffusers held the UNet alone, without saying so.
    ("", "", "unet"),
)
"""Beginnings of names that do not say which component, what of them is no part of the layer's name,
and the role."""

# How diffusers named layers until 0.17, by the ends of the names.
OLD_LAYERS: dict[str, str] = {
    ".processor.to_q": ".to_q",
    ".processor.to_k": ".to_k",
    ".processor.to_v": ".to_v",
    ".processor.to_out": ".to_out.0",
    ".self_attn.to_q": ".self_attn.q_proj",
    ".self_attn.to_k": ".self_attn.k_proj",
    ".self_attn.to_v": ".self_attn.v_proj",
    ".self_attn.to_out": ".self_attn.out_proj",
    ".to_out": ".to_out.0",
}


def split_name(name: str) -> tuple[Owner, str]:
    """Whose layer it is, and the layer with what follows it."""
    prefix = max((one for one in PREFIXES if name.startswith(one)), key=len, default=None)
    if prefix is not None:
        return PREFIXES[prefix], name.removeprefix(prefix)
    start, dropped, role = next(one for one in UNTOLD if name.startswith(one[0]))
    return Owner(role, None), name.removeprefix(dropped)


def layer_names(model: nn.Module, role: str) -> dict[str, str]:
    """The model's layers by all the names that adapters have for them."""
    own = [name for name, module in model.named_modules() if _has_weight(module)]
    spelled = {name: name for name in own}
    spelled |= {name.removeprefix("text_model."): name for name in own}
    spelled |= _original_names(own, role)
    return {name.replace(".", "_"): layer for name, layer in spelled.items()} | spelled


def find_layer(name: str, names: dict[str, str]) -> str | None:
    """The model's name for a layer, given all of `layer_names`; None if it has no such layer."""
    if name in names:
        return names[name]
    for old, new in OLD_LAYERS.items():
        if name.endswith(old):
            return names.get(name.removesuffix(old) + new)
    return None


def _has_weight(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm))


def _original_names(own: list[str], role: str) -> dict[str, str]:
    """The names in the original programs, by which kohya's have them for Stable Diffusion XL."""
    if role != "unet":
        return {}
    weights = [f"{name}.weight" for name in own]
    try:
        renamed = ldm.to_original(role, weights)
    except ValueError:  # a UNet that the original programs cannot express
        return {}
    return {
        theirs.removesuffix(".weight"): ours.removesuffix(".weight")
        for theirs, ours in renamed.items()
    }
