"""Finding out when numbers cease to be finite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpy.errors import GenerationError


@dataclass(frozen=True, eq=False)
class FiniteSteps:
    """Counts, on the device, the steps before the first whose latents are not finite.

    Attributes:
        going: scalar bool, whether all were finite so far.
        done: scalar int64, how many were.
    """

    going: Tensor
    done: Tensor

    @classmethod
    def on(cls, device: torch.device) -> FiniteSteps:
        """A new count."""
        return cls(
            torch.ones((), dtype=torch.bool, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )

    def begin(self) -> None:
        """Count anew, in the same tensors."""
        self.going.fill_(True)
        self.done.zero_()

    def count(self, latents: Tensor) -> None:
        """Take note of a step's result."""
        self.going.logical_and_(latents.isfinite().all())
        self.done.add_(self.going)


class FiniteCheck:
    """Finds out at which step latents cease to be finite, without waiting for a GPU.

    Args:
        device: of the latents. On a CPU each step is looked at as soon as it is done.
        dtype: of the UNet, for the advice.
        total: how many steps there are.
        first: the first of those that are looked at, from 0.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, total: int, first: int = 0
    ) -> None:
        self.at_once = device.type == "cpu"
        self.dtype, self.total, self.first = dtype, total, first
        self.steps = FiniteSteps.on(device)
        self._looked_at = 0

    def look_at(self, latents: Tensor) -> None:
        """Take note of a step's result.

        Raises:
            GenerationError: it is not finite, and could be looked at at once.
        """
        self.steps.count(latents)
        self.counted()

    def counted(self) -> None:
        """Take note that ``steps`` has counted one.

        Raises:
            GenerationError: its result is not finite, and could be looked at at once.
        """
        self._looked_at += 1
        if self.at_once:
            self.finish()

    def finish(self) -> None:
        """Look at what was noted so far, which waits for the device.

        Raises:
            GenerationError: a step gave latents that are not finite.
        """
        done = int(self.steps.done)
        if done == self._looked_at:
            return
        instead = "--dtype fp32" if self.dtype != torch.float32 else "other weights"
        raise GenerationError(
            f"step {self.first + done + 1} of {self.total} gave latents that are not finite: try "
            f"another --scheduler, a lower --guidance-scale, or {instead}"
        )
