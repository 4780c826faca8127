"""How closely sdpy has to agree with the libraries it is compared with, and on what weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sdpy.images.tensors import tensor_to_image

MODEL_TOLERANCE = 1e-5
"""Largest relative error of one evaluation of a model, or of one step of a sampler, in fp32."""

RUN_TOLERANCE = 1e-4
"""Largest relative error after a run of ten steps, in fp32."""


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """``|ours - theirs| / |theirs|``, infinite where a number is none or the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
    return error.nan_to_num(nan=float("inf")).item()


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter random numbers from ``seed``, on the CPU; a model on meta gets storage.

    No parameter is left at a value, such as a bias of 0 or a norm's weight of 1, at which its
    layer would go unnoticed.
    """
    generator = torch.Generator().manual_seed(seed)
    if any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device="cpu")
    for module in model.modules():
        is_norm = isinstance(module, (nn.GroupNorm, nn.LayerNorm))
        for name, parameter in module.named_parameters(recurse=False):
            with torch.no_grad():
                parameter.normal_(generator=generator)
                if is_norm:
                    parameter.mul_(0.2).add_(1.0 if name == "weight" else 0.0)
                elif name == "bias":
                    parameter.mul_(0.1)
                else:
                    parameter.div_(parameter[0].numel() ** 0.5)
    return model.eval().requires_grad_(False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers from ``seed``."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same_images(some: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Images alone and in a batch, each of shape (1, 3, height, width) with values from -1 to 1.

    They are at most one grey level and 60 dB apart.
    """
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        a, b = (np.asarray(tensor_to_image(x), np.int16) for x in (one, other))
        assert np.abs(a - b).max() <= 1
        error = (one.clamp(-1, 1) - other.clamp(-1, 1)).double().pow(2).mean().item() / 4
        assert error == 0 or -10 * math.log10(error) >= 60
