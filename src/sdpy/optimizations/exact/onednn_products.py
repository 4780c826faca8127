"""float32 products of transformers by oneDNN, where it multiplies faster than MKL: on AMD's cores.

Torch multiplies float32 matrices by MKL, which has no AVX-512 code for AMD's processors. oneDNN,
which torch carries for convolutions, has, and works with weights as they are.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from sdpy.models.attention import GEGLU, FeedForward, Transformer2DModel
from sdpy.optimizations.base import PassContext, replace_module

WIDE = 320
"""Channels from which on a transformer counts as large, however few blocks it has: those of Stable
Diffusion 1.5's first level, for which this was measured."""

WORKSPACE = 48 * 2**20
"""The bytes of the wide inner layer of a feed-forward network that exist at a time."""

ROW_MULTIPLE = 64
"""The number of tokens at a time is a multiple of this, whole blocks of oneDNN's products."""

_SAMPLE = (4, 32, 16)
"""Rows, inputs and outputs of the product by which it is seen whether torch has oneDNN's."""


@lru_cache
def is_available() -> bool:
    """Whether torch gives access to oneDNN's product, which is not part of its public API."""
    rows, inner, outputs = _SAMPLE
    x = torch.arange(rows * inner, dtype=torch.float32).view(rows, inner) % 7
    weight = torch.arange(outputs * inner, dtype=torch.float32).view(outputs, inner) % 5
    try:
        wanted = x @ weight.t()  # of small whole numbers
        return all(torch.equal(product(x, w, None), wanted) for w in (weight, packed(weight, rows)))
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False


@lru_cache
def is_fast() -> bool:
    """Whether this is a processor of AMD with AVX-512."""
    name = str(torch.cpu.get_capabilities().get("cpu_name", ""))
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and name.startswith("AMD") and is_available()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` (..., K) times the transposed ``weight`` (O, K), plus ``bias`` (O,) -> (..., O).

    The weight is `packed`, or its numbers lie together: with others, oneDNN takes a thousand times
    as long.
    """
    linear = torch.ops.mkldnn._linear_pointwise
    return cast(Tensor, linear(x, weight, bias, "none", [], ""))


def packed(weight: Tensor, rows: int) -> Tensor:
    """``weight`` (O, K) as oneDNN reads it, for about so many ``rows`` of the other operand."""
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows))


class OneDNNLinear(nn.Linear):
    """A linear layer that oneDNN computes.

    Args:
        original: what to replace; its parameters are taken over.
    """

    def __init__(self, original: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = original.in_features, original.out_features
        self.weight, self.bias = original.weight, original.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., O)."""
        return product(x, self.weight, self.bias)


class OneDNNFeedForward(nn.Module):
    """`FeedForward` whose inner layer never exists as a whole, and whose products are oneDNN's.

    Args:
        original: what to replace; its two linear layers are taken over.
    """

    def __init__(self, original: FeedForward) -> None:
        super().__init__()
        widen, _, narrow = original.net
        assert isinstance(widen, GEGLU) and isinstance(narrow, nn.Linear)
        self.widen, self.narrow = widen.proj, narrow

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        tokens = x.flatten(0, 1)
        wide = self.widen.out_features
        values_weight, gate_weight = self.widen.weight.chunk(2)
        values_bias, gate_bias = self.widen.bias.chunk(2)
        result = torch.empty_like(tokens)
        parts = max(-(-len(tokens) * wide * x.element_size() // WORKSPACE), 1)
        step = -(-len(tokens) // parts // ROW_MULTIPLE) * ROW_MULTIPLE
        for part, out in zip(torch.split(tokens, step), torch.split(result, step), strict=True):
            gate = product(part, gate_weight, gate_bias)
            values = product(part, values_weight, values_bias)
            values *= torch.ops.aten.gelu_(gate)
            out.copy_(product(values, self.narrow.weight, self.narrow.bias))
        return result.view(x.shape)


class OneDNNProducts:
    """The pass that has oneDNN compute the linear layers of large transformers.

    These have several blocks each, as in Stable Diffusion XL, or as many channels as those of
    Stable Diffusion 1.5. It was not measured for others.
    """

    name = "products by oneDNN"
    dtypes = (torch.float32,)

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """Where the processor is of the kind that this is faster on."""
        return context.is_fast_in(self.dtypes) and is_fast() and bool(_large_transformers(model))

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Replace them."""
        for transformer in _large_transformers(model):
            for name, module in list(transformer.named_modules()):
                if isinstance(module, FeedForward):
                    replace_module(transformer, name, OneDNNFeedForward(module))
                elif type(module) is nn.Linear and ".ff." not in name:
                    replace_module(transformer, name, OneDNNLinear(module))


def _large_transformers(model: nn.Module) -> list[Transformer2DModel]:
    return [
        module
        for module in model.modules()
        if isinstance(module, Transformer2DModel)
        and (len(module.transformer_blocks) > 1 or module.norm.num_channels >= WIDE)
    ]
