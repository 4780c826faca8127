"""OFT and BOFT: a weight whose rows are turned against each other, in blocks.

The blocks stand for rotations by Cayley's transform ``(I + Q) (I - Q)^-1`` of a skew-symmetric Q,
and alpha, where it is above 0, bounds the norm of all Q of a layer to alpha times its rows.

Sources: "Controlling Text-to-Image Diffusion by Orthogonal Finetuning" (Qiu et al., 2023);
"Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization" (Liu et al., 2024); layout
of the tensors as in LyCORIS and kohya's programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdpy.checkpoints.adapters.base import Adapter, Factors, Roles

_ENDINGS = {".oft_blocks": "oft_blocks", ".rescale": "rescale"}
_REQUIRED = (frozenset({"oft_blocks"}),)
_OPTIONAL = frozenset({"rescale", "alpha"})
_TINY = 1e-8


@dataclass(frozen=True)
class OFT(Adapter):
    """Blocks (N, b, b) along the diagonal: each turns b rows of the weight."""

    kind: ClassVar[str] = "an OFT"
    endings: ClassVar[Mapping[str, str]] = _ENDINGS
    required: ClassVar[tuple[Roles, ...]] = _REQUIRED
    optional: ClassVar[Roles] = _OPTIONAL

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `Adapter.fits`."""
        blocks = self.factors.shape("oft_blocks")
        return (
            len(blocks) == 3
            and len(shape) >= 2
            and blocks[1] == blocks[2]
            and blocks[0] * blocks[1] == shape[0]
            and _rescale_fits(self.factors, shape)
        )

    def delta(self, weight: Tensor) -> Tensor:
        """See `Adapter.delta`."""
        rotations = _rotations(self.factors, weight)
        N, b, _ = rotations.shape
        turned = torch.einsum("nij,nik->njk", rotations, weight.reshape(N, b, -1))
        return _rescaled(self.factors, turned, weight) - weight


@dataclass(frozen=True)
class BOFT(Adapter):
    """Blocks (M, N, b, b): M turns one after another, each of other rows, as in a butterfly."""

    kind: ClassVar[str] = "a BOFT"
    endings: ClassVar[Mapping[str, str]] = _ENDINGS
    required: ClassVar[tuple[Roles, ...]] = _REQUIRED
    optional: ClassVar[Roles] = _OPTIONAL

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `Adapter.fits`."""
        blocks = self.factors.shape("oft_blocks")
        if len(blocks) != 4 or len(shape) < 2 or 0 in blocks:
            return False
        M, N, b, _ = blocks
        return (
            b % 2 == 0
            and blocks[2] == blocks[3]
            and N * b == shape[0]
            and M < 32
            and shape[0] % (b << (M - 1)) == 0
            and _rescale_fits(self.factors, shape)
        )

    def delta(self, weight: Tensor) -> Tensor:
        """See `Adapter.delta`."""
        rotations = _rotations(self.factors, weight)
        M, N, b, _ = rotations.shape
        rows = weight.flatten(1)
        for i in range(M):
            # The rows that a block turns are two runs, each of half a block in the first turn and
            # twice as far apart in each further one.
            stride = (b // 2) << i
            mixed = rows.reshape(-1, 2, stride, rows.shape[1]).transpose(1, 2)
            turned = rotations[i] @ mixed.reshape(N, b, -1)
            rows = turned.reshape(-1, stride, 2, rows.shape[1]).transpose(1, 2)
            rows = rows.reshape(weight.shape[0], -1)
        return _rescaled(self.factors, rows, weight) - weight


def _rotations(factors: Factors, weight: Tensor) -> Tensor:
    """Cayley's transform of the blocks, of their shape."""
    blocks = factors.tensor("oft_blocks", weight.device)
    skew = blocks - blocks.transpose(-1, -2)
    bound = (factors.alpha or 0.0) * weight.shape[0]
    norm = skew.norm() + _TINY
    if 0 < bound < norm:
        skew = skew * (bound / norm)
    identity = torch.eye(blocks.shape[-1], device=weight.device)
    return (identity + skew) @ (identity - skew).inverse()


def _rescaled(factors: Factors, turned: Tensor, weight: Tensor) -> Tensor:
    turned = turned.reshape(weight.shape)
    if "rescale" not in factors:
        return turned
    scale = factors.tensor("rescale", weight.device)
    return turned * scale.reshape(-1, *(1 for _ in weight.shape[1:]))


def _rescale_fits(factors: Factors, shape: tuple[int, ...]) -> bool:
    if "rescale" not in factors:
        return True
    rescale = factors.shape("rescale")
    return rescale[:1] == shape[:1] and all(size == 1 for size in rescale[1:])
