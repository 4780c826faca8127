"""What the painting loop asks of every approximation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from torch import nn

from sdpy.models import UNet2DConditionConfig, UNet2DConditionModel


class Approximation(Protocol):
    """A way to evaluate a loaded UNet with less work, and not quite the same result."""

    def check(self, config: UNet2DConditionConfig) -> None:
        """Find out whether it can work with a UNet of these sizes.

        Raises:
            UsageError: it cannot.
        """

    def applied(self, unet: UNet2DConditionModel, seed: int) -> AbstractContextManager[None]:
        """Make ``unet`` approximate for the duration of the block, which is one picture's walk.

        Afterwards the UNet is as it was. ``seed`` is the picture's; what is chosen at random has a
        generator of its own, so that the picture's noise stays what it is.
        """

    def facts(self) -> dict[str, str]:
        """What is to be written into the picture's file, by name."""


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have ``module`` compute ``forward`` for the duration of the block.

    The module itself stays where it is, with its hooks and for others to wrap.
    """
    attributes = vars(module)
    before = attributes.get("forward")  # the class's, unless another one was put here
    attributes["forward"] = forward
    try:
        yield
    finally:
        del attributes["forward"]
        if before is not None:
            attributes["forward"] = before
