"""Names that other programs gave to the same weights, as literal tables.

Our modules carry diffusers' names of today, and transformers' for the text encoder with its
``text_model.`` prefix. A table maps a name in a file to ours; None means: not needed, drop it.
What no table knows keeps its name, and the strict check reports it. The original programs' names,
which need more than a table, are in ``ldm``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdpy.checkpoints import clip_names, ema, ldm, taesd
from sdpy.components import COMPONENTS

DIFFUSERS = "diffusers"
OLD_DIFFUSERS = "diffusers until 0.17"
ORIGINAL = "original"
TAESD = "TAESD's own"
"""Dialects: our names; those with the VAE's old attention, as .ot files need; LDM's; and those of
the tiny autoencoder's author."""

SINGLE_FILES: dict[str, dict[str, tuple[str, bool]]] = {
    "sd1": {"text_encoder": ("cond_stage_model.transformer.", False)},
    "sd2": {"text_encoder": ("cond_stage_model.model.", True)},
    "sdxl": {
        "text_encoder": ("conditioner.embedders.0.transformer.", False),
        "text_encoder_2": ("conditioner.embedders.1.model.", True),
    },
    "sdxl-refiner": {"text_encoder_2": ("conditioner.embedders.0.model.", True)},
}
"""The original programs' single files: of each text encoder its prefix, and whether its names are
OpenCLIP's. Other components are under the first of their prefixes."""

_VAE_ATTENTIONS = ("encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0")
_VAE_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# The original's names, which some programs mixed with diffusers', and others in use for a while.
_OTHER_VAE_PROJECTIONS = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "to_out": "to_out.0",
    "norm": "group_norm",
}


def _vae_attention(renamed: Mapping[str, str]) -> dict[str, str]:
    """Tensors of the VAE's attentions, given what their modules are renamed to."""
    return {
        f"{attention}.{old}.{kind}": f"{attention}.{new}.{kind}"
        for attention in _VAE_ATTENTIONS
        for old, new in renamed.items()
        for kind in ("weight", "bias")
    }


# diffusers until 0.17, hence all .ot files: other names for the projections of the VAE's attention.
OLD_VAE_ATTENTION: dict[str, str] = _vae_attention(_VAE_PROJECTIONS)
VAE_ATTENTION: dict[str, str] = OLD_VAE_ATTENTION | _vae_attention(_OTHER_VAE_PROJECTIONS)
"""All names of the tensors in the VAE's attentions but today's, to these."""

# What programs put before names: torch's wrappers for several GPUs and for compiled modules, and
# training programs whose checkpoints have the weights under such a key.
WRAPPERS: tuple[str, ...] = ("module.", "_orig_mod.", "state_dict.", "model.", "params.")
_COMPILED = "._orig_mod."

# Linear layers that some files hold as 1x1 convolutions: (C, D, 1, 1) or (C, D, 1) for (C, D).
LINEAR_FROM_CONVOLUTION: frozenset[str] = frozenset(
    f"{attention}.{new}.weight"
    for attention in _VAE_ATTENTIONS
    for new in _VAE_PROJECTIONS.values()
)


# ------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Origin:
    """Where one of our tensors is: a name in the file, of a fused tensor which third, and how."""

    name: str
    third: int | None = None
    transposed: bool = False

    def take(self, ours: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor of our name ``ours``, in our layer's shape; a view, never a copy."""
        tensor = tensors[self.name]
        if self.third is not None and tensor.ndim and tensor.shape[0] % 3 == 0:
            tensor = tensor.chunk(3)[self.third]
        if self.transposed and tensor.ndim == 2:
            tensor = tensor.T
        # No network of ours has parameters of three dimensions; some files have vectors as such.
        kept = 2 if ours in LINEAR_FROM_CONVOLUTION else 1 if tensor.ndim == 3 else tensor.ndim
        if tensor.ndim > kept and set(tensor.shape[kept:]) == {1}:
            return tensor.reshape(tensor.shape[:kept])
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
        is_averaged: whether these are averaged weights (EMA) instead of those that were trained.
    """

    component: str | None
    dialect: str
    origins: Mapping[str, Origin]
    dropped: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    is_averaged: bool = False


@dataclass(frozen=True)
class Parts:
    """What a file holds: its components, and names that belong to none and no table knows."""

    by_component: Mapping[str | None, Part]
    unexpected: tuple[str, ...] = ()


def find_parts(names: Collection[str], component: str | None = None) -> Parts:
    """Sort the names in a file by component, and translate them.

    Averaged weights of a UNet are taken where there are no others.

    Args:
        names: in the file.
        component: which of several of one role a file with one component is taken for; None for
            what its names tell.
    """
    plain = _without_wrappers(names)
    averaged = ema.averaged_names(plain) if ema.holds_only_averages(plain) else {}
    plain |= {name: plain[average] for name, average in averaged.items()}
    for average in averaged.values():
        del plain[average]
    found = _find_parts(plain, component)
    if all(name == wrapped for name, wrapped in plain.items()):
        return found
    parts = {component: _renamed(part, plain) for component, part in found.by_component.items()}
    if averaged and "unet" in parts:
        parts["unet"] = replace(parts["unet"], is_averaged=True)
    return Parts(parts, tuple(plain[name] for name in found.unexpected))


def _without_wrappers(names: Collection[str]) -> dict[str, str]:
    """The names in a file by what is left of them without `WRAPPERS`, where all have the same."""
    plain = {name: name for name in names}
    while plain and (wrapper := _common_wrapper(plain)) is not None:
        plain = {name.removeprefix(wrapper): origin for name, origin in plain.items()}
    unwrapped = {name.replace(_COMPILED, "."): origin for name, origin in plain.items()}
    return unwrapped if len(unwrapped) == len(plain) else plain


def _common_wrapper(names: Collection[str]) -> str | None:
    return next((one for one in WRAPPERS if all(name.startswith(one) for name in names)), None)


def _renamed(part: Part, names: Mapping[str, str]) -> Part:
    """The part with these names in the file instead of their keys."""
    return replace(
        part,
        origins={
            ours: replace(origin, name=names[origin.name]) for ours, origin in part.origins.items()
        },
        dropped=tuple(names[name] for name in part.dropped),
        twice=tuple(names[name] for name in part.twice),
    )


def _find_parts(names: Collection[str], component: str | None) -> Parts:
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
        part = _single_part(names, component)
        return Parts({part.component: part})
    parts: dict[str | None, Part] = {}
    for prefix, own in grouped.items():
        found = prefixes[prefix]
        alone = len(grouped) == 1
        part = _original_part(_of_one_role(found, component) if alone else found, own, prefix)
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


def _single_part(names: Collection[str], wanted: str | None) -> Part:
    telltales = {one.name: one.original_telltales for one in COMPONENTS.values()}
    original = _told_by(names, telltales)
    if original is not None:
        return _original_part(_of_one_role(original, wanted), names, prefix="")
    component = component_of(names)
    component = None if component is None else _of_one_role(component, wanted)
    ours = {name: _our_name(component, name) for name in names}
    old = any(name in OLD_VAE_ATTENTION for name in names)
    tiny = any(taesd.our_name(name) is not None for name in names)
    return _part(
        component,
        TAESD if tiny else OLD_DIFFUSERS if old else DIFFUSERS,
        {name: () if mine is None else (mine,) for name, mine in ours.items()},
    )


def _of_one_role(found: str, wanted: str | None) -> str:
    """The component that is wanted, if one of its role was found; that which was found, if not."""
    if wanted is None or COMPONENTS[wanted].role != COMPONENTS[found].role:
        return found
    return wanted


def _original_part(component: str, names: Collection[str], prefix: str) -> Part:
    local = {name.removeprefix(prefix): name for name in names}
    ours: dict[str, tuple[str, ...]] = {}
    row = COMPONENTS[component]
    transposed: str | None = None
    if row.role == "text_encoder" and clip_names.is_open_clip(local):
        table = clip_names.from_open_clip(local, projects=bool(row.own_names))
        ours = {local[name]: mine for name, mine in table.items()}
        transposed = local.get(clip_names.PROJECTION)
    else:
        for name, one in ldm.to_ours(row.role, local).items():
            mine = _our_name(component, one)
            ours[local[name]] = () if mine is None else (mine,)
    for name in names:
        ours.setdefault(name, () if _is_superfluous(name) else (name,))
    return _part(component, ORIGINAL, ours, transposed)


def _part(
    component: str | None,
    dialect: str,
    ours: Mapping[str, tuple[str, ...]],
    transposed: str | None = None,
) -> Part:
    origins: dict[str, Origin] = {}
    twice: list[str] = []
    for name, mine in ours.items():
        for third, one in enumerate(mine):
            if one in origins:
                twice.append(name)
            else:
                which = third if len(mine) == 3 else None
                origins[one] = Origin(name, which, transposed=name == transposed)
    dropped = tuple(name for name, mine in ours.items() if not mine)
    return Part(component, dialect, origins, dropped, tuple(twice))


def _our_name(component: str | None, name: str) -> str | None:
    role = None if component is None else COMPONENTS[component].role
    if role == "vae":
        return taesd.our_name(name) or VAE_ATTENTION.get(name, name)
    if component is not None and role == "text_encoder":
        return clip_names.our_name(name, COMPONENTS[component].own_names)
    return name


def _is_superfluous(name: str) -> bool:
    return name in ldm.DROPPED or name.startswith(ldm.DROPPED_PREFIXES)


# ------------------------------------------------------------------------------------ writing


@dataclass(frozen=True)
class Recipe:
    """How a tensor of a file to be written is made of ours: of one, or of three, row upon row."""

    ours: tuple[str, ...]
    as_convolution: bool = False
    transposed: bool = False

    def make(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor; copies only where it joins three."""
        pieces = [tensors[name] for name in self.ours]
        tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if self.transposed and tensor.ndim == 2:
            return tensor.T
        if self.as_convolution and tensor.ndim == 2:
            return tensor[:, :, None, None]
        return tensor


def in_dialect(
    component: str, names: Collection[str], dialect: str, *, family: str = "sd1"
) -> dict[str, Recipe]:
    """What a component's file in ``dialect`` holds, and how to make it of our tensors.

    Args:
        component: a key of `COMPONENTS`.
        names: ours, of that component.
        dialect: `DIFFUSERS`, `OLD_DIFFUSERS` or `ORIGINAL`.
        family: of the original's single files, a key of `SINGLE_FILES`.

    Raises:
        ValueError: a name that the dialect has no name for.
    """
    row = COMPONENTS[component]
    if dialect == ORIGINAL:
        return _in_original(component, names, family)
    old = {new: old for old, new in OLD_VAE_ATTENTION.items()}
    changed = old if dialect == OLD_DIFFUSERS and row.role == "vae" else {}
    return {changed.get(name, name): Recipe((name,)) for name in names}


def _in_original(component: str, names: Collection[str], family: str) -> dict[str, Recipe]:
    row = COMPONENTS[component]
    if not row.prefixes and not ldm.has_tables(row.role):
        raise ValueError(min(names))
    # What is never in one file with others has no prefix.
    usual = row.prefixes[0] if row.prefixes else ""
    prefix, is_open_clip = SINGLE_FILES[family].get(component, (usual, False))
    if is_open_clip:
        table = clip_names.to_open_clip(names, projects=bool(row.own_names))
        return {
            prefix + theirs: Recipe(ours, transposed=theirs == clip_names.PROJECTION)
            for theirs, ours in table.items()
        }
    return {
        prefix + theirs: Recipe((ours,), as_convolution=ours in LINEAR_FROM_CONVOLUTION)
        for theirs, ours in ldm.to_original(row.role, names).items()
    }
