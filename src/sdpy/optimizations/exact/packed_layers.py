"""Layers in bfloat16 whose weights lie in memory as the products of the processor read them.

Torch's own layers lay their weights out anew at each call, which for small maps takes a quarter of
the time. Here oneDNN does so once, by the operators that torch's compiler uses for the same; they
also apply GELU, or multiply by another tensor, to what a product leaves in registers, before it is
rounded to bfloat16.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sdpy.models.attention import GEGLU, BasicTransformerBlock, FeedForward
from sdpy.optimizations.base import PackingModule, PassContext, replace_module
from sdpy.optimizations.weights import ModelWeights

_OPERATORS = (
    "_convolution_pointwise",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_reorder_linear_weight",
)


def is_fast() -> bool:
    """Whether this torch has the operators, and the processor AVX-512, where they were measured."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
    )


class PackedLinear(PackingModule):
    """A linear layer with packed weights, in as much memory as before.

    The weights are packed at the first use, for as many rows as there are then, and the originals
    released.

    Args:
        weight: (O, K) bfloat16 on the CPU.
        bias: (O,), or None.
        weights: through which the originals are released; None to leave this to the caller.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, weights: ModelWeights | None = None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight: Tensor | None = weight
        self.bias = bias
        self._weights = weights
        self.packed: Tensor | None = None

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """(..., K) -> (..., O), and the exact GELU of it if asked for."""
        packed = self._pack(x)
        then: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        made = torch.ops.mkldnn._linear_pointwise(x, packed, self.bias, *then)
        return cast(Tensor, made)

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The same times ``factor`` (..., O)."""
        packed = self._pack(x)
        made = torch.ops.mkldnn._linear_pointwise.binary(x, factor, packed, self.bias, "mul")
        return cast(Tensor, made)

    def _pack(self, x: Tensor) -> Tensor:
        """The weights; packs them, for that input, unless this was done."""
        if self.packed is None:
            assert self.weight is not None
            rows, weight = x.numel() // self.in_features, self.weight.detach().contiguous()
            self.packed = cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight, rows))
            if self._weights is not None:
                self._weights.release(self.weight)
            self.weight = None
        return self.packed


def linear_layer(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A linear layer with weights (O, K) in bfloat16, packed where that is fast."""
    if is_fast():
        return PackedLinear(weight, bias)
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


class PackedFeedForward(nn.Module):
    """`FeedForward` whose values are multiplied by the gate where they are made.

    Args:
        original: what to replace.
        weights: through which its weights are released when they are packed.
    """

    def __init__(self, original: FeedForward, weights: ModelWeights) -> None:
        super().__init__()
        widen, _, narrow = original.net
        assert isinstance(widen, GEGLU) and isinstance(narrow, nn.Linear)
        self._widen: Tensor | None = widen.proj.weight
        self._weights = weights
        halves = (x.detach().chunk(2) for x in (widen.proj.weight, widen.proj.bias))
        self.values, self.gate = (PackedLinear(*half) for half in zip(*halves, strict=True))
        self.narrow = PackedLinear(narrow.weight, narrow.bias, weights)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        inner = self.values.times(x, self.gate(x, gelu=True))
        if self._widen is not None:
            self._weights.release(self._widen)
            self._widen = None
        return cast(Tensor, self.narrow(inner))


class PackedConv2d(PackingModule):
    """Torch's own convolution in bfloat16 with packed weights, in as much memory as before.

    Args:
        original: the convolution to compute, any.
        input_shape: (B, C, H, W) for which to pack them; others are computed, too.
    """

    needs_original = False

    def __init__(self, original: nn.Conv2d, input_shape: torch.Size) -> None:
        super().__init__()
        self.original = original
        self._input_shape = list(input_shape)
        self._how = (
            *(list(original.padding), list(original.stride), list(original.dilation)),
            original.groups,
        )
        self.packed: Tensor | None = None

    def prepare(self) -> None:
        """Pack the weights, unless that was done."""
        if self.packed is None:
            weight = self.original.weight.detach().contiguous()
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            self.packed = reorder(weight, *self._how, self._input_shape)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, h, w), the result in channels-last memory."""
        self.prepare()
        x = x.contiguous(memory_format=torch.channels_last)
        made = torch.ops.mkldnn._convolution_pointwise(
            *(x, self.packed, self.original.bias, *self._how),
            *("none", [], ""),
        )
        return cast(Tensor, made)


class PackedWeights:
    """The pass that packs the linear layers of transformer blocks in bfloat16.

    Those of the attention to the prompt stay as they are: others are made of them. Streamed
    weights would be packed at each use.
    """

    name = "packed weights"
    dtypes = (torch.bfloat16,)

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """To models with transformer blocks, where the processor has what it takes."""
        fast = context.is_fast_in(self.dtypes) and not context.streamed and is_fast()
        return fast and any(isinstance(m, BasicTransformerBlock) for m in model.modules())

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Replace the layers of the first attention and the feed-forward network of each block."""
        for block in list(model.modules()):
            if not isinstance(block, BasicTransformerBlock):
                continue
            replace_module(block, "ff", PackedFeedForward(block.ff, context.weights))
            for place in ("to_q", "to_k", "to_v", "to_out.0"):
                layer = block.attn1.get_submodule(place)
                assert isinstance(layer, nn.Linear)
                packed = PackedLinear(layer.weight, layer.bias, context.weights)
                replace_module(block.attn1, place, packed)
