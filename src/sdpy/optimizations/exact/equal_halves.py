"""What guidance would compute twice: until the prompt comes in, both halves of its batch are equal.

A batch that was expanded from one sample shows it by its stride of 0. The layers up to the first
cross-attention, a self-attention at full resolution among them, are computed for one and expanded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdpy.models import UNet2DConditionModel
from sdpy.optimizations.exact.replacing import replace_module

BEFORE_THE_PROMPT = (
    "down_blocks.0.resnets.0",
    "down_blocks.0.attentions.0.norm",
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.norm1",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1",
)
"""The layers after ``conv_in``, in order."""


class OncePerBatch(nn.Module):
    """A module that computes one sample of a batch whose samples are all the same tensor.

    Args:
        original: the module to wrap; samples must not depend on each other.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original

    def forward(self, x: Tensor, *conditions: Tensor) -> Tensor:
        """``x`` and conditions (B, ...) -> (B, ...), with a stride of 0 where ``x`` has it."""
        if not is_expanded(x) or not all(_is_uniform(c) for c in conditions):
            return self.original(x, *conditions)
        result = self.original(_first(x), *(c[:1] for c in conditions))
        return result.expand(len(x), *result.shape[1:])


def compute_equal_halves_once(unet: UNet2DConditionModel) -> None:
    """Have the layers before the first cross-attention computed once for samples that are equal."""
    unet.conv_in.register_forward_hook(_expand_again)
    unet.up_blocks[-1].register_forward_pre_hook(_copy_first_skip)
    modules = dict(unet.named_modules())
    for name in BEFORE_THE_PROMPT:
        if name in modules:
            replace_module(unet, name, OncePerBatch(modules[name]))


def is_expanded(x: Tensor) -> bool:
    """Whether all samples of a batch are one and the same in memory."""
    return len(x) > 1 and x.stride(0) == 0


def _first(x: Tensor) -> Tensor:
    """The first sample as a batch of one, with a stride by which torch knows its memory format."""
    return x.as_strided((1, *x.shape[1:]), (x[0].numel(), *x.stride()[1:]))


def _expand_again(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> Any:
    return result[:1].expand_as(result) if is_expanded(inputs[0]) else None


def _copy_first_skip(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Make ``conv_in``'s result a tensor like others, whose memory format joining preserves."""
    skips = inputs[1]
    if is_expanded(skips[0]):
        skips[0] = torch.cat([_first(skips[0])] * len(skips[0]))


def _is_uniform(condition: Tensor) -> bool:
    """Whether the samples of a small tensor are equal."""
    return bool((condition == condition[:1]).all())
