"""Names that other programs gave to the same weights, as literal tables.

Our modules carry diffusers' names of today, and transformers' for the text encoder with its
``text_model.`` prefix. A table maps a name in a file to ours; None means: not needed, drop it.
What no table knows keeps its name, and the strict check reports it. The original programs' names,
which need more than a table, are in ``ldm``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpy.checkpoints import ldm
from sdpy.components import COMPONENTS

DIFFUSERS = "diffusers"
OLD_DIFFUSERS = "diffusers until 0.17"
ORIGINAL = "original"
"""Dialects: our names; those with the VAE's old attention, as .ot files need; and LDM's."""

_VAE_ATTENTIONS = ("encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0")
_VAE_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# diffusers until 0.17, hence all .ot files: other names for the projections of the VAE's attention.
OLD_VAE_ATTENTION: dict[str, str] = {
    f"{attention}.{old}.{kind}": f"{attention}.{new}.{kind}"
    for attention in _VAE_ATTENTIONS
    for old, new in _VAE_PROJECTIONS.items()
    for kind in ("weight", "bias")
}

# What text encoders and whole CLIP models hold beside the weights of the text model.
TEXT_ENCODER_EXTRAS: frozenset[str] = frozenset(
    {
        "text_model.embeddings.position_ids",
        "embeddings.position_ids",
        "logit_scale",
        "text_projection.weight",
        "visual_projection.weight",
    }
)

TEXT_ENCODER_PREFIXES: dict[str, str | None] = {
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


# ------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Origin:
    """Where one of our tensors is: a name in the file, and of a fused tensor which third."""

    name: str
    third: int | None = None

    def take(self, ours: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor of our name ``ours``, in our layer's shape; a view, never a copy."""
        tensor = tensors[self.name]
        if self.third is not None and tensor.ndim and tensor.shape[0] % 3 == 0:
            tensor = tensor.chunk(3)[self.third]
        if ours in LINEAR_FROM_CONVOLUTION and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            return tensor[:, :, 0, 0]
        return tensor


@dataclass(frozen=True)
class Part:
    """One component in a file.

    Attributes:
        component: a key of `COMPONENTS`; None if it cannot be told.
        dialect: of its names.
        origins: our names, and names that no table knows, with where they are in the file.
        dropped: names in the file of what is not needed.
        twice: names in the file for something that it has under another name, too.
    """

    component: str | None
    dialect: str
    origins: Mapping[str, Origin]
    dropped: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parts:
    """What a file holds: its components, and names that belong to none and no table knows."""

    by_component: Mapping[str | None, Part]
    unexpected: tuple[str, ...] = ()


def find_parts(names: Collection[str]) -> Parts:
    """Sort the names in a file by component, and translate them."""
    prefixes = {
        prefix: component.name for component in COMPONENTS.values() for prefix in component.prefixes
    }
    grouped: dict[str, list[str]] = {}
    others: list[str] = []
    for name in names:
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is None:
            others.append(name)
        else:
            grouped.setdefault(prefix, []).append(name)
    if not grouped:
        part = _single_part(names)
        return Parts({part.component: part})
    parts: dict[str | None, Part] = {}
    for prefix, own in grouped.items():
        part = _original_part(prefixes[prefix], own, prefix)
        # Of two text encoders in one file, the larger; no program writes such files.
        known = parts.get(part.component)
        if known is None or len(known.origins) < len(part.origins):
            parts[part.component] = part
    return Parts(parts, tuple(name for name in others if not _is_superfluous(name)))


def component_of(names: Iterable[str]) -> str | None:
    """The component of which these, ours, are the names; None if it cannot be told."""
    return _told_by(names, {one.name: one.telltales for one in COMPONENTS.values()})


def _told_by(names: Iterable[str], telltales: dict[str, tuple[str, ...]]) -> str | None:
    """The component with the longest telltale that a name begins with; see `Component`."""
    listed = list(names)
    # Components of one role share their telltales; in a file of its own, one is the first of them.
    starts = {start: name for name in reversed(telltales) for start in telltales[name]}
    for start in sorted(starts, key=lambda start: (-len(start), start)):
        if any(name.startswith(start) for name in listed):
            return starts[start]
    return None


def _single_part(names: Collection[str]) -> Part:
    telltales = {one.name: one.original_telltales for one in COMPONENTS.values()}
    original = _told_by(names, telltales)
    if original is not None:
        return _original_part(original, names, prefix="")
    component = component_of(names)
    ours = {name: _our_name(component, name) for name in names}
    old = any(name in OLD_VAE_ATTENTION for name in names)
    return _part(
        component,
        OLD_DIFFUSERS if old else DIFFUSERS,
        {name: () if mine is None else (mine,) for name, mine in ours.items()},
    )


def _original_part(component: str, names: Collection[str], prefix: str) -> Part:
    local = {name.removeprefix(prefix): name for name in names}
    ours: dict[str, tuple[str, ...]] = {}
    for name, mine in ldm.to_ours(COMPONENTS[component].role, local).items():
        known = [_our_name(component, one) for one in mine]
        ours[local[name]] = tuple(one for one in known if one is not None)
    for name in names:
        ours.setdefault(name, () if _is_superfluous(name) else (name,))
    return _part(component, ORIGINAL, ours)


def _part(component: str | None, dialect: str, ours: Mapping[str, tuple[str, ...]]) -> Part:
    origins: dict[str, Origin] = {}
    twice: list[str] = []
    for name, mine in ours.items():
        for third, one in enumerate(mine):
            if one in origins:
                twice.append(name)
            else:
                origins[one] = Origin(name, third if len(mine) == 3 else None)
    dropped = tuple(name for name, mine in ours.items() if not mine)
    return Part(component, dialect, origins, dropped, tuple(twice))


def _our_name(component: str | None, name: str) -> str | None:
    role = None if component is None else COMPONENTS[component].role
    if role == "vae":
        return OLD_VAE_ATTENTION.get(name, name)
    if role == "text_encoder":
        if name in TEXT_ENCODER_EXTRAS:
            return None
        for prefix, replacement in TEXT_ENCODER_PREFIXES.items():
            if name.startswith(prefix):
                return None if replacement is None else replacement + name.removeprefix(prefix)
    return name


def _is_superfluous(name: str) -> bool:
    return name in ldm.DROPPED or name.startswith(ldm.DROPPED_PREFIXES)


# ------------------------------------------------------------------------------------ writing


@dataclass(frozen=True)
class Recipe:
    """How a tensor of a file to be written is made of ours: of one, or of three, row upon row."""

    ours: tuple[str, ...]
    as_convolution: bool = False

    def make(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor; copies only where it joins three."""
        pieces = [tensors[name] for name in self.ours]
        tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if self.as_convolution and tensor.ndim == 2:
            return tensor[:, :, None, None]
        return tensor


def in_dialect(
    component: str, names: Collection[str], dialect: str, *, open_clip: bool = False
) -> dict[str, Recipe]:
    """What a component's file in ``dialect`` holds, and how to make it of our tensors.

    Args:
        component: a key of `COMPONENTS`.
        names: ours, of that component.
        dialect: `DIFFUSERS`, `OLD_DIFFUSERS` or `ORIGINAL`.
        open_clip: of the original's two forms of a text encoder, whether to take OpenCLIP's.

    Raises:
        ValueError: a name that the dialect has no name for.
    """
    if dialect == ORIGINAL:
        row = COMPONENTS[component]
        if not row.prefixes:
            raise ValueError(min(names))
        prefix = row.prefixes[-1 if open_clip and row.role == "text_encoder" else 0]
        renamed = {
            prefix + theirs: ours
            for theirs, ours in ldm.to_original(row.role, names, open_clip=open_clip).items()
        }
        return {
            name: Recipe(ours, as_convolution=ours[0] in LINEAR_FROM_CONVOLUTION)
            for name, ours in renamed.items()
        }
    old = {new: old for old, new in OLD_VAE_ATTENTION.items()}
    changed = old if dialect == OLD_DIFFUSERS and COMPONENTS[component].role == "vae" else {}
    return {changed.get(name, name): Recipe((name,)) for name in names}
