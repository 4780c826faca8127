"""Faster and not exact: wrappers around a loaded model, which it knows nothing of.

Each is a frozen dataclass of its settings, in a file of its own; see `Approximation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from sdpy.models import UNet2DConditionModel
from sdpy.optimizations.approximate.base import Approximation
from sdpy.optimizations.approximate.deep_cache import DeepCache
from sdpy.optimizations.approximate.token_merging import TokenMerging


@contextmanager
def approximate(
    unet: UNet2DConditionModel, approximations: Iterable[Approximation], seed: int
) -> Iterator[None]:
    """Apply approximations to ``unet`` for the duration of the block, one picture's walk."""
    with ExitStack() as stack:
        for approximation in approximations:
            stack.enter_context(approximation.applied(unet, seed))
        yield


__all__ = ["Approximation", "DeepCache", "TokenMerging", "approximate"]
