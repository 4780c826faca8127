"""DoRA: another adapter says a weight's direction, and its lengths are stored beside it.

Source: "DoRA: Weight-Decomposed Low-Rank Adaptation" (Liu et al., 2024), equation 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdpy.checkpoints.adapters.base import Adapter

MAGNITUDE = "lora_magnitude_vector"
"""peft's, of each output."""

SCALE = "dora_scale"
"""LyCORIS's, of each output or, in its older form, of each input."""


@dataclass(frozen=True)
class DoRA(Adapter):
    """``m * (W + delta) / |W + delta|``; the norms are each output's or each input's."""

    kind: ClassVar[str] = "a DoRA"
    endings: ClassVar[Mapping[str, str]] = {
        f".{SCALE}": SCALE,
        f".{MAGNITUDE}": MAGNITUDE,
        f".{MAGNITUDE}.weight": MAGNITUDE,
        f".{MAGNITUDE}.default": MAGNITUDE,
        f".{MAGNITUDE}.default.weight": MAGNITUDE,
    }
    roles: ClassVar[frozenset[str]] = frozenset({SCALE, MAGNITUDE})

    inner: Adapter

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `Adapter.fits`."""
        return self.inner.fits(shape) and self._dimension(shape) is not None

    def delta(self, weight: Tensor) -> Tensor:
        """See `Adapter.delta`."""
        dimension = self._dimension(tuple(weight.shape))
        assert dimension is not None
        turned = weight + self.inner.delta(weight)
        others = [i for i in range(weight.ndim) if i != dimension]
        norm = torch.linalg.vector_norm(turned, dim=others, keepdim=True)
        norm = norm + torch.finfo(norm.dtype).eps
        lengths = self.factors.tensor(self._role, weight.device).reshape(norm.shape)
        return turned * (lengths / norm) - weight

    @property
    def _role(self) -> str:
        return SCALE if SCALE in self.factors else MAGNITUDE

    def _dimension(self, shape: tuple[int, ...]) -> int | None:
        """Of which dimension the lengths are, 0 (outputs) or 1 (inputs); None where of neither."""
        lengths = self.factors.shape(self._role)
        if len(shape) < 2 or MAGNITUDE in self.factors and SCALE in self.factors:
            return None
        if self._role == MAGNITUDE:
            return 0 if math.prod(lengths) == max(lengths, default=1) == shape[0] else None
        if lengths[:1] == shape[:1] and math.prod(lengths[1:]) == 1:
            return 0
        return 1 if lengths[1:2] == shape[1:2] and math.prod(lengths) == shape[1] else None
