"""Batches that hold several rows for each sample.

Guidance asks about each of B samples k times, with k prompts. The k B rows of such a batch go round
the samples: rows i, B + i, 2 B + i, ... belong to sample i. What does not depend on the prompt has
B rows, or one row if it is the same for all samples, until it meets what does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """``x`` (B, ...) -> (rows, ...), itself if it has as many; ``rows`` is a multiple of B."""
    # `Tensor.repeat` would forget that a feature map is in channels-last memory.
    return x if len(x) == rows else torch.cat([x] * (rows // len(x)))


def add_rows(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two tensors, of which the one with fewer rows is repeated."""
    if 1 in (len(a), len(b)):
        return a + b
    rows = max(len(a), len(b))
    return repeat_rows(a, rows) + repeat_rows(b, rows)


def join_channels(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, H, W) and (B, D, H, W) -> (B, C + D, H, W); that with fewer rows is repeated.

    A single row is expanded, without a copy of its own.
    """
    rows = max(len(a), len(b))
    maps = (x.expand(rows, -1, -1, -1) if len(x) == 1 else repeat_rows(x, rows) for x in (a, b))
    return torch.cat([*maps], dim=1)


def check_rows(sample: Tensor, contexts: Tensor) -> None:
    """Refuse contexts of which there is not the same number for each sample.

    Raises:
        ValueError: for other numbers of rows.
    """
    if len(contexts) % len(sample):
        raise ValueError(f"{len(contexts)} contexts for {len(sample)} samples: use k for each")
