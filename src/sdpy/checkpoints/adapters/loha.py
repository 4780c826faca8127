"""LoHa: the product, number by number, of two matrices of a low rank each.

Source: "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning"
(Hyeon-Woo et al., 2022), for Stable Diffusion as LyCORIS has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdpy.checkpoints.adapters.base import Adapter, Roles, without_ones

_MATRICES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES = ("hada_t1", "hada_t2")


@dataclass(frozen=True)
class LoHa(Adapter):
    """``alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b)``.

    For convolutions there may be a core ``t`` of each of the two matrices, (rank, rank, kernel);
    the outer factors are then (rank, out) and (rank, in).
    """

    kind: ClassVar[str] = "a LoHa"
    endings: ClassVar[Mapping[str, str]] = {f".{role}": role for role in (*_MATRICES, *_CORES)}
    required: ClassVar[tuple[Roles, ...]] = (
        frozenset(_MATRICES),
        frozenset({*_MATRICES, *_CORES}),
    )
    optional: ClassVar[Roles] = frozenset({"alpha"})

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `Adapter.fits`."""
        shapes = [self.factors.shape(role) for role in _MATRICES]
        if len(shape) < 2 or any(len(one) != 2 or 0 in one for one in shapes):
            return False
        rank = shapes[1][0]
        out, inner = shape[:2]
        if "hada_t1" not in self.factors:
            columns = inner
            for size in shape[2:]:
                columns *= size
            return shapes == [(out, rank), (rank, columns)] * 2
        cores = [self.factors.shape(role) for role in _CORES]
        return shapes == [(rank, out), (rank, inner)] * 2 and all(
            core[:2] == (rank, rank) and without_ones(core[2:]) == without_ones(shape[2:])
            for core in cores
        )

    def delta(self, weight: Tensor) -> Tensor:
        """See `Adapter.delta`."""
        w1_a, w1_b, w2_a, w2_b = (self.factors.tensor(role, weight.device) for role in _MATRICES)
        if "hada_t1" in self.factors:
            t1, t2 = (self.factors.tensor(role, weight.device).flatten(2) for role in _CORES)
            first = torch.einsum("abk,ao,bi->oik", t1, w1_a, w1_b)
            second = torch.einsum("abk,ao,bi->oik", t2, w2_a, w2_b)
        else:
            first, second = w1_a @ w1_b, w2_a @ w2_b
        return (first * second).reshape(weight.shape) * self.factors.scale(w1_b.shape[0])
