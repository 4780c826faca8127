"""Models that are in main memory, and on the GPU only while they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def moved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The parameters of a model are on another device for the duration of the block.

    Afterwards they are the very tensors that they were.
    """
    stored = [
        (owner, name, parameter)
        for owner in model.modules()
        for name, parameter in owner.named_parameters(recurse=False)
    ]
    try:
        for owner, name, parameter in stored:
            there = parameter.detach().to(device)
            setattr(owner, name, nn.Parameter(there, requires_grad=False))
        yield
    finally:
        for owner, name, parameter in stored:
            setattr(owner, name, parameter)
