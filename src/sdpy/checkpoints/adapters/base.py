"""What every kind of adapter has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sdpy.checkpoints.adapters.settings import Settings
from sdpy.checkpoints.base import Checkpoint

Roles = frozenset[str]


@dataclass(frozen=True)
class Factors:
    """The tensors that a file has for one layer.

    Attributes:
        source: the file.
        settings: what peft says of them.
        layer: the layer's name in the file.
        names: of the tensors, by their roles.
    """

    source: Checkpoint
    settings: Settings
    layer: str
    names: dict[str, str] = field(default_factory=dict)

    def __contains__(self, role: str) -> bool:
        return role in self.names

    def shape(self, role: str) -> tuple[int, ...]:
        """The shape of a tensor that is there."""
        return tuple(self.source.outline[self.names[role]].shape)

    def tensor(self, role: str, device: torch.device) -> Tensor:
        """A tensor that is there, float32."""
        return self.source.tensors[self.names[role]].to(device, torch.float32)

    @property
    def alpha(self) -> float | None:
        """The number that is stored beside the tensors; None for none."""
        if "alpha" not in self.names:
            return None
        return float(self.source.tensors[self.names["alpha"]].item())

    def scale(self, rank: int | None) -> float:
        """The factor of what the tensors add, alpha by rank; 1 where nobody says any alpha.

        Args:
            rank: of the factors; None where a layer is so small that it has none.
        """
        if self.alpha is not None:
            return 1.0 if rank is None else self.alpha / rank
        return self.settings.scale(self.layer, rank)


@dataclass(frozen=True)
class Adapter(ABC):
    """What changes one weight. The class attributes say by which tensors one knows the kind.

    Attributes:
        kind: what people call it, with its article.
        endings: how names of tensors end, and which role in a layer that is.
        required: sets of roles, one of which has to be there as a whole.
        optional: roles that may be there in addition.
        factors: the tensors.
    """

    kind: ClassVar[str]
    endings: ClassVar[Mapping[str, str]]
    required: ClassVar[tuple[Roles, ...]] = ()
    optional: ClassVar[Roles] = frozenset()

    factors: Factors

    @abstractmethod
    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the tensors change a weight of this shape."""

    @abstractmethod
    def delta(self, weight: Tensor) -> Tensor:
        """What is added to a weight, as a whole.

        Args:
            weight: float32, on any device.

        Returns:
            float32, of the weight's shape and on its device.
        """


def without_ones(shape: Collection[int]) -> tuple[int, ...]:
    """The size of a kernel; () for 1x1, as of a linear layer."""
    return () if math.prod(shape) == 1 else tuple(shape)


def same_layer(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes are the same, but that a linear layer may be held as a convolution."""
    return a[:2] == b[:2] and without_ones(a[2:]) == without_ones(b[2:])
