"""Names that other programs gave to the same weights, as literal tables.

Our modules carry diffusers' names of today, and transformers' for the text encoder with its
``text_model.`` prefix. A table maps a name in a file to ours; None means: not needed, drop it.
What no table knows keeps its name, and the strict check reports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

_VAE_ATTENTIONS = ("encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0")
_VAE_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# diffusers until 0.17, hence all .ot files: other names for the projections of the VAE's attention.
OLD_VAE_ATTENTION: dict[str, str | None] = {
    f"{attention}.{old}.{kind}": f"{attention}.{new}.{kind}"
    for attention in _VAE_ATTENTIONS
    for old, new in _VAE_PROJECTIONS.items()
    for kind in ("weight", "bias")
}

# What text encoders and whole CLIP models hold beside the weights of the text model.
TEXT_ENCODER_EXTRAS: dict[str, str | None] = {
    "text_model.embeddings.position_ids": None,
    "embeddings.position_ids": None,
    "logit_scale": None,
    "text_projection.weight": None,
    "visual_projection.weight": None,
}

NAMES: dict[str, str | None] = {**OLD_VAE_ATTENTION, **TEXT_ENCODER_EXTRAS}

PREFIXES: dict[str, str | None] = {
    # The vision half of a whole CLIP model.
    "vision_model.": None,
    # transformers 5 leaves the prefix out.
    "embeddings.": "text_model.embeddings.",
    "encoder.layers.": "text_model.encoder.layers.",
    "final_layer_norm.": "text_model.final_layer_norm.",
}

# Linear layers that some files hold as 1x1 convolutions: (C, D, 1, 1) instead of (C, D).
LINEAR_FROM_CONVOLUTION: frozenset[str] = frozenset(
    f"{attention}.{new}.weight"
    for attention in _VAE_ATTENTIONS
    for new in _VAE_PROJECTIONS.values()
)


def translate(names: Iterable[str], wanted: Mapping[str, object]) -> dict[str, str | None]:
    """Our name for each name in a file, or None where it is to be dropped.

    A name that the model has is never touched, and none is changed to one that it lacks: what
    does not fit is then reported under the name that it has in the file.
    """
    return {name: name if name in wanted else _translate(name, wanted) for name in names}


def _translate(name: str, wanted: Mapping[str, object]) -> str | None:
    ours = NAMES.get(name, name)
    if ours == name:
        for prefix, replacement in PREFIXES.items():
            if name.startswith(prefix):
                ours = None if replacement is None else replacement + name.removeprefix(prefix)
    return ours if ours is None or ours in wanted else name


def reshape(name: str, tensor: Tensor) -> Tensor:
    """The tensor in the shape of our layer of this (our) name; a view, never a copy."""
    if name in LINEAR_FROM_CONVOLUTION and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor
