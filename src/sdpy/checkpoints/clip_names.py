"""The text encoders' names: transformers' forms of CLIP, and OpenCLIP's.

The original programs' files hold CLIP's text encoder under transformers' names, and OpenCLIP's
(Stable Diffusion 2.x, the second one of XL) under its own: query, key and value of a layer are one
tensor, of which each third of the rows is a tensor of ours, and the projection of the pooled
embedding is a matrix to multiply with from the right, hence the transpose of ours.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

# What text encoders and whole CLIP models hold beside the weights of the text model.
EXTRAS: frozenset[str] = frozenset(
    {
        "text_model.embeddings.position_ids",
        "embeddings.position_ids",
        "logit_scale",
        "text_projection.weight",
        "visual_projection.weight",
    }
)

PREFIXES: Mapping[str, str | None] = MappingProxyType(
    {
        # The vision half of a whole CLIP model.
        "vision_model.": None,
        # transformers 5 leaves the prefix out.
        "embeddings.": "text_model.embeddings.",
        "encoder.layers.": "text_model.encoder.layers.",
        "final_layer_norm.": "text_model.final_layer_norm.",
    }
)

PROJECTION = "text_projection"
"""OpenCLIP's name of the projection, the transpose of ours, ``text_projection.weight``."""

LAYERS_OF_2X = 23
"""Stable Diffusion 2.x was trained on the state before the last of 24 layers, which is dropped."""

_ENDS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# In the order in which their rows lie in the fused tensors.
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_DROPPED = frozenset({PROJECTION, f"{PROJECTION}.weight", "logit_scale", "attn_mask"})
_VISION = "visual."


def our_name(name: str, own_names: Collection[str]) -> str | None:
    """Our name for one of transformers'; None for what is not needed.

    Args:
        name: transformers'.
        own_names: of `EXTRAS`, those that the component needs.
    """
    if name in EXTRAS:
        return name if name in own_names else None
    for prefix, replacement in PREFIXES.items():
        if name.startswith(prefix):
            return None if replacement is None else replacement + name.removeprefix(prefix)
    return name


def is_open_clip(names: Iterable[str]) -> bool:
    """Whether a text encoder has OpenCLIP's names."""
    return any(name.startswith("transformer.resblocks.") for name in names)


def from_open_clip(names: Collection[str], *, projects: bool) -> dict[str, tuple[str, ...]]:
    """Our names for OpenCLIP's.

    Args:
        names: OpenCLIP's.
        projects: whether the text encoder makes a pooled embedding. One that does not is that of
            Stable Diffusion 2.x.

    Returns:
        For each name that is known: ours; three of ours for a fused tensor; none for what is not
        needed.
    """
    table = _tensors(_count(names, r"transformer\.resblocks\.(\d+)\."), projects=projects)
    if projects:  # some programs write it as transformers do
        table[f"{PROJECTION}.weight"] = (f"{PROJECTION}.weight",)
    table |= {name: () for name in _DROPPED if name not in table}
    vision = {name: () for name in names if name.startswith(_VISION)}
    return vision | {name: table[name] for name in names if name in table}


def to_open_clip(names: Collection[str], *, projects: bool) -> dict[str, tuple[str, ...]]:
    """OpenCLIP's names, each with the one or three of ours; see `from_open_clip`.

    Raises:
        ValueError: a name of ours for which OpenCLIP has none.
    """
    layers = _count(names, r"text_model\.encoder\.layers\.(\d+)\.")
    table = _tensors(layers, projects=projects)
    unknown = set(names) - {ours for entry in table.values() for ours in entry}
    if unknown:
        raise ValueError(min(unknown))
    return table


def _tensors(layers: int, *, projects: bool) -> dict[str, tuple[str, ...]]:
    """The tensors of a text encoder of so many layers, each with ours in the order of its rows."""
    table: dict[str, tuple[str, ...]] = {a: (b,) for a, b in _ENDS.items()}
    if projects:
        table[PROJECTION] = (f"{PROJECTION}.weight",)
    for i in range(layers):
        theirs, ours = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        dropped = not projects and i >= LAYERS_OF_2X
        for kind in ("weight", "bias"):
            fused = tuple(f"{ours}.{projection}.{kind}" for projection in _FUSED)
            table[f"{theirs}.attn.in_proj_{kind}"] = () if dropped else fused
            for a, b in _LAYER.items():
                table[f"{theirs}.{a}.{kind}"] = () if dropped else (f"{ours}.{b}.{kind}",)
    return table


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the pattern finds at the start of a name."""
    matches = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in matches if match), default=0)
