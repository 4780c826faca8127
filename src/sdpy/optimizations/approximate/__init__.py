"""Faster and not exact: wrappers around a loaded UNet, which it knows nothing of.

Each is a frozen dataclass of its settings, in a file of its own; see `Approximation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from sdpy.models import UNet2DConditionModel
from sdpy.optimizations.approximate.base import Approximation, UNet
from sdpy.optimizations.approximate.deep_cache import DeepCache
from sdpy.optimizations.approximate.token_merging import TokenMerging


@contextmanager
def approximate(
    unet: UNet2DConditionModel, approximations: Iterable[Approximation], seeds: Sequence[int]
) -> Iterator[UNet]:
    """Apply approximations to ``unet`` for the duration of the block, which is one denoising loop.

    Args:
        unet: afterwards it is as it was.
        approximations: of which one at most stands in for the UNet as a whole.
        seeds: one for each sample of the batch; see `Approximation.applied`.

    Yields:
        What is to be called in the place of the UNet.
    """
    called: UNet = unet
    with ExitStack() as stack:
        for approximation in approximations:
            stand_in = stack.enter_context(approximation.applied(unet, seeds))
            called = called if stand_in is unet else stand_in
        yield called


__all__ = ["Approximation", "DeepCache", "TokenMerging", "UNet", "approximate"]
