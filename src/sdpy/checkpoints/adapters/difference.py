"""Whole differences: of a weight, a bias, or the two of a norm (LyCORIS's "full" and "norm")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdpy.checkpoints.adapters.base import Adapter, Roles, same_layer


@dataclass(frozen=True)
class Difference(Adapter):
    """A tensor of the weight's own shape that is added."""

    kind: ClassVar[str] = "a full difference"
    endings: ClassVar[Mapping[str, str]] = {".diff": "diff"}
    required: ClassVar[tuple[Roles, ...]] = (frozenset({"diff"}),)
    optional: ClassVar[Roles] = frozenset({"alpha"})

    role: str = "diff"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `Adapter.fits`."""
        return same_layer(self.factors.shape(self.role), shape)

    def delta(self, weight: Tensor) -> Tensor:
        """See `Adapter.delta`."""
        return self.factors.tensor(self.role, weight.device).reshape(weight.shape)


@dataclass(frozen=True)
class NormDifference(Difference):
    """The weight of a norm."""

    kind: ClassVar[str] = "a difference of norms"
    endings: ClassVar[Mapping[str, str]] = {".w_norm": "w_norm"}
    required: ClassVar[tuple[Roles, ...]] = (frozenset({"w_norm"}),)

    role: str = "w_norm"


BIASES: dict[str, str] = {
    ".diff_b": "diff_b",
    ".b_norm": "b_norm",
    ".lora_B.bias": "lora_up_bias",
    ".lora_B.default.bias": "lora_up_bias",
    ".lora_up.bias": "lora_up_bias",
}
"""How the names of what is added to a bias end; of a LoRA's it is scaled like its factors."""


@dataclass(frozen=True)
class BiasDifference(Difference):
    """What is added to a bias."""

    kind: ClassVar[str] = "a difference of biases"
    endings: ClassVar[Mapping[str, str]] = BIASES

    def delta(self, weight: Tensor) -> Tensor:
        """See `Adapter.delta`."""
        delta = super().delta(weight)
        if self.role != "lora_up_bias":
            return delta
        return delta * self.factors.scale(self.factors.shape("lora_down")[0])
