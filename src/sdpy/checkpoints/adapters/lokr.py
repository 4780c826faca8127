"""LoKr: the Kronecker product of a small and a larger matrix, each whole or of a low rank.

Source: "Navigating Text-To-Image Customization" (Yeh et al., 2024), LyCORIS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdpy.checkpoints.adapters.base import Adapter, Roles, without_ones

_FIRST = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
_SECOND = (
    {"lokr_w2"},
    {"lokr_w2_a", "lokr_w2_b"},
    {"lokr_w2_a", "lokr_w2_b", "lokr_t2"},
)


@dataclass(frozen=True)
class LoKr(Adapter):
    """``alpha / rank * kron(w1, w2)``, of which each may be the product ``w_a @ w_b``.

    For convolutions, the kernel is in ``w2``, in ``w2_b``, or in a core ``t2``, (rank, rank,
    kernel), with (rank, out) and (rank, in) beside it. Where neither of the two has a rank, alpha
    has no meaning, as in LyCORIS; peft's configuration has both.
    """

    kind: ClassVar[str] = "a LoKr"
    endings: ClassVar[Mapping[str, str]] = {
        f".{role}": role for role in sorted(set().union(*_FIRST, *_SECOND))
    }
    required: ClassVar[tuple[Roles, ...]] = tuple(
        frozenset(first | second) for first in _FIRST for second in _SECOND
    )
    optional: ClassVar[Roles] = frozenset({"alpha"})

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `Adapter.fits`."""
        if len(shape) < 2 or any(
            len(self.factors.shape(role)) < 2 or 0 in self.factors.shape(role)
            for role in self.factors.names
            if role.startswith("lokr_")
        ):
            return False
        first, second = self._first_shape(), self._second_shape(shape)
        return (
            first is not None
            and second is not None
            and (first[0] * second[0], first[1] * second[1]) == shape[:2]
            and math.prod(second[2:]) == math.prod(shape[2:])
        )

    def delta(self, weight: Tensor) -> Tensor:
        """See `Adapter.delta`."""
        tensors = {
            role: self.factors.tensor(role, weight.device)
            for role in self.factors.names
            if role.startswith("lokr_")
        }
        first = tensors["lokr_w1"] if "lokr_w1" in tensors else _product(tensors, "lokr_w1")
        second = tensors["lokr_w2"] if "lokr_w2" in tensors else self._second(tensors, weight)
        out, inner = weight.shape[0] // first.shape[0], weight.shape[1] // first.shape[1]
        second = second.reshape(out, inner, -1)
        change = torch.kron(first[..., None], second)
        return change.reshape(weight.shape) * self.factors.scale(self._rank())

    def _rank(self) -> int | None:
        for role in ("lokr_w1_b", "lokr_w2_b"):
            if role in self.factors:
                return self.factors.shape(role)[0]
        return None

    def _second(self, tensors: dict[str, Tensor], weight: Tensor) -> Tensor:
        if "lokr_t2" not in tensors:
            return tensors["lokr_w2_a"] @ tensors["lokr_w2_b"].flatten(1)
        core = tensors["lokr_t2"].flatten(2)
        return torch.einsum("abk,ao,bi->oik", core, tensors["lokr_w2_a"], tensors["lokr_w2_b"])

    def _first_shape(self) -> tuple[int, ...] | None:
        if "lokr_w1" in self.factors:
            shape = self.factors.shape("lokr_w1")
            return shape if len(shape) == 2 else None
        a, b = self.factors.shape("lokr_w1_a"), self.factors.shape("lokr_w1_b")
        return (a[0], b[1]) if len(a) == len(b) == 2 and a[1] == b[0] else None

    def _second_shape(self, whole: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of ``w2``: out, in, kernel; None where its factors do not meet."""
        if "lokr_w2" in self.factors:
            shape = self.factors.shape("lokr_w2")
            return shape if without_ones(shape[2:]) == without_ones(whole[2:]) else None
        a, b = self.factors.shape("lokr_w2_a"), self.factors.shape("lokr_w2_b")
        if len(a) != 2:
            return None
        if "lokr_t2" in self.factors:
            core = self.factors.shape("lokr_t2")
            meet = len(b) == 2 and core[:2] == (a[0], b[0])
            return (a[1], b[1], *core[2:]) if meet else None
        if a[1] != b[0]:
            return None
        if len(b) > 2:
            return a[0], b[1], *b[2:]
        # The kernel is within the columns.
        kernel = whole[2:]
        columns, rest = divmod(b[1], math.prod(kernel))
        return None if rest else (a[0], columns, *kernel)


def _product(tensors: dict[str, Tensor], name: str) -> Tensor:
    return tensors[f"{name}_a"] @ tensors[f"{name}_b"]
