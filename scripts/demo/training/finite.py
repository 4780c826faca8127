"""Finding the first module of a network that computes a number that is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class NotFiniteError(Exception):
    """A loss or a gradient is infinite or not a number."""


def first_not_finite(model: nn.Module, loss_of: Callable[[], Tensor]) -> str:
    """Say what is not finite first when a loss is computed and its gradients are.

    Args:
        model: whose modules are watched.
        loss_of: computes the loss, a scalar, with this model.

    Returns:
        Such as ``output of unet.down_blocks.0.resnets.0.norm1``, ``gradient of the output of ...``,
        ``gradient of the parameter ...``, or ``loss``; ``nothing`` where all is finite.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not bool(torch.isfinite(tensor).all()):
                    found.append(f"output of {name}")
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: note(name, gradient))

        return hook

    def note(name: str, gradient: Tensor) -> None:
        if not bool(torch.isfinite(gradient).all()):
            found.append(f"gradient of the output of {name}")

    handles = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    model.zero_grad(set_to_none=True)
    try:
        loss = loss_of()
        if not found and not bool(torch.isfinite(loss)):
            found.append("loss")
        if not found:
            loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                found.append(f"gradient of the parameter {name}")
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return found[0] if found else "nothing"


def _tensors(output: Any) -> list[Tensor]:
    values = output if isinstance(output, tuple | list) else [output]
    return [value for value in values if isinstance(value, Tensor)]
