"""The kinds of adapters: a line for each, and which of them a layer's tensors are of."""

from __future__ import annotations

from collections.abc import Iterable

from sdpy.checkpoints.adapters.base import Adapter, Factors
from sdpy.checkpoints.adapters.difference import (
    BIASES,
    BiasDifference,
    Difference,
    NormDifference,
)
from sdpy.checkpoints.adapters.dora import DoRA
from sdpy.checkpoints.adapters.loha import LoHa
from sdpy.checkpoints.adapters.lokr import LoKr
from sdpy.checkpoints.adapters.lora import LoRA
from sdpy.checkpoints.adapters.oft import BOFT, OFT

KINDS: tuple[type[Adapter], ...] = (LoRA, LoHa, LoKr, OFT, BOFT, Difference, NormDifference)
"""What may change a layer's weight."""

ENDINGS: dict[str, str] = {
    ".alpha": "alpha",
    **{ending: role for kind in KINDS for ending, role in kind.endings.items()},
    **DoRA.endings,
    **BIASES,
}
"""How names of tensors end, and which role that is."""

NDIM_OF_BOFT = 4
"""Of its blocks; those of an OFT have three dimensions, and the same name."""


def kind_of(factors: Factors) -> type[Adapter] | None:
    """The kind of what changes a layer's weight; None for nothing."""
    for kind in KINDS:
        if not factors.names.keys().isdisjoint(kind.endings.values()):
            if kind is OFT and len(factors.shape("oft_blocks")) == NDIM_OF_BOFT:
                continue
            return kind
    return None


def kind_name(factors: Factors) -> str | None:
    """What people call the kind of what changes a layer's weight."""
    if not factors.names.keys().isdisjoint(DoRA.roles):
        return DoRA.kind
    kind = kind_of(factors)
    return None if kind is None else kind.kind


def adapters_of(factors: Factors) -> dict[str, Adapter] | None:
    """What changes a layer, by the name of its parameter, "weight" or "bias".

    Returns:
        None where tensors are missing, or there are more than belong together.
    """
    roles = set(factors.names)
    biases = roles & set(BIASES.values())
    magnitudes = roles & DoRA.roles
    rest = roles - biases - magnitudes
    found: dict[str, Adapter] = {}
    kind = kind_of(factors)
    if kind is not None:
        if not any(needed <= rest <= needed | kind.optional for needed in kind.required):
            return None
        adapter = kind(factors)
        found["weight"] = DoRA(factors, adapter) if magnitudes else adapter
    elif rest or magnitudes:
        return None
    if len(biases) > 1 or ("lora_up_bias" in biases and kind is not LoRA):
        return None
    if biases:
        found["bias"] = BiasDifference(factors, biases.pop())
    return found or None


def is_adapter(names: Iterable[str]) -> bool:
    """Whether among names of tensors there are some of an adapter of a kind in the table."""
    endings = tuple(ending for ending in ENDINGS if ending != ".alpha")
    return any(name.endswith(endings) for name in names)
