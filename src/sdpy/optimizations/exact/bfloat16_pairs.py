"""float32 matrix products on processors that multiply bfloat16 many times as fast (Intel's AMX).

A float32 number is the sum of two bfloat16 ones, but for 2^-17 of it. So a product of matrices is
that of the high parts, and of the high part of either with the low part of the other, all summed up
in float32; what is left out is smaller than 1e-5 of the result.

Source: "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations"
(Henry, Tang and Heinecke, 2019), section III.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.attention import BasicTransformerBlock, Transformer2DModel
from sdpy.optimizations.base import PassContext, replace_module
from sdpy.optimizations.exact import machine
from sdpy.optimizations.exact.matmul_conv import unfold_patches
from sdpy.optimizations.weights import ModelWeights

WORKSPACE = 4 * 2**20
"""The bytes of float32 rows that are split at a time; they should stay in a cache."""

WORTHWHILE = 1.2
"""How much faster products of pairs have to be, as numbers have to be split, too."""

PATCH_WORKSPACE = 32 * 2**20
"""The bytes of patches of a convolution, high and low parts, that exist at a time. More would only
take memory: so many are enough for the full rate of a product."""

_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112  # of the CBLAS interface


@lru_cache
def is_available() -> bool:
    """Whether torch carries MKL's product of bfloat16 matrices with float32 results."""
    return _mkl_product() is not None


@lru_cache
def is_fast() -> bool:
    """Whether the processor has matrix units for bfloat16, and nobody forbade them."""
    held_back = "MKL_ENABLE_INSTRUCTIONS" in os.environ
    capable = torch.cpu.get_capabilities().get("amx_bf16", False)
    at_large = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return is_available() and bool(capable) and at_large and not held_back


def gain() -> float:
    """How much faster products of pairs are here than those of float32 numbers; 0 if not tried."""
    return machine.pairs_gain() if is_fast() else 0.0


@dataclass(frozen=True)
class Pair:
    """float32 numbers as sums of two bfloat16 ones.

    Attributes:
        high: rounded to bfloat16.
        low: what that leaves, rounded in its turn.
    """

    high: Tensor
    low: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Pair:
        """A tensor of any shape, in the order in which it lies in memory."""
        high = x.bfloat16()
        rest = high.float()
        torch.sub(x, rest, out=rest)
        return cls(high, rest.bfloat16())


def add_product(left: Pair, right: Pair, result: Tensor) -> None:
    """Add ``left`` (R, K) times the transposed ``right`` (O, K) to ``result`` (R, O), in float32.

    Matrices are to be dense in one direction at least, ``result`` along its rows.
    """
    for a, b in ((left.high, right.low), (left.low, right.high), (left.high, right.high)):
        _add_bfloat16_product(a, b, result)


class PairedLinear(nn.Module):
    """A linear layer whose weights are pairs, in as much memory as before.

    The weights are split at the first use, and the originals released.

    Args:
        weight: (O, ...) float32 on the CPU; flattened, (O, K).
        bias: (O,), or None.
        weights: through which the originals are released; None to leave this to the caller.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, weights: ModelWeights | None = None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = len(weight), weight[0].numel()
        self.weight: Tensor | None = weight
        self.bias = bias
        self._weights = weights
        self.high: Tensor | None
        self.low: Tensor | None
        self.register_buffer("high", None, persistent=False)
        self.register_buffer("low", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., O)."""
        rows = x.reshape(-1, self.in_features)
        result = x.new_empty(len(rows), self.out_features)
        step = max(WORKSPACE // (x.element_size() * self.in_features), 256)
        for part, place in zip(torch.split(rows, step), torch.split(result, step), strict=True):
            self.write(Pair.of(part), place)
        return result.view(*x.shape[:-1], self.out_features)

    def write(self, rows: Pair, result: Tensor) -> None:
        """The layer's ``result`` (R, O) for ``rows`` (R, K), which may be transposed in memory."""
        if self.bias is None:
            result.zero_()
        else:
            result.copy_(self.bias)
        add_product(rows, self._pair(), result)

    def prepare(self) -> None:
        """Split the weights, unless that was done."""
        if self.weight is None:
            return
        pair = Pair.of(self.weight.detach().flatten(1))
        self.high, self.low = pair.high, pair.low
        if self._weights is not None:
            self._weights.release(self.weight)
        self.weight = None

    def _pair(self) -> Pair:
        self.prepare()
        assert self.high is not None and self.low is not None
        return Pair(self.high, self.low)


class PairedConv2d(nn.Module):
    """A convolution as one matrix product of pairs.

    Args:
        original: the convolution to compute, with a square kernel, without groups or dilation.
    """

    needs_original = False

    def __init__(self, original: nn.Conv2d) -> None:
        super().__init__()
        self.linear = PairedLinear(original.weight, original.bias)
        self.kernel = original.kernel_size[0], original.stride[0], int(original.padding[0])

    def prepare(self) -> None:
        """Split the weights, unless that was done."""
        self.linear.prepare()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, h, w), the result in channels-last memory."""
        if self.kernel == (1, 1, 0):
            return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        kernel, stride, padding = self.kernel
        padded = Pair.of(F.pad(x, (padding,) * 4))
        B, _, height, width = padded.high.shape
        h, w = ((side - kernel) // stride + 1 for side in (height, width))
        result = x.new_empty(B, h, w, self.linear.out_features)
        row_bytes = 4 * self.linear.in_features * w
        rows = max(PATCH_WORKSPACE // row_bytes, 1)
        for image in range(B):
            for first in range(0, h, rows):
                last = min(first + rows, h)
                high, low = (
                    unfold_patches(
                        part[image, None, :, first * stride : (last - 1) * stride + kernel],
                        *(kernel, stride, 0),
                    )
                    for part in (padded.high, padded.low)
                )
                patches = Pair(high.flatten(1).t(), low.flatten(1).t())
                self.linear.write(patches, result[image, first:last].flatten(0, 1))
        return result.permute(0, 3, 1, 2)


class PairedProducts:
    """The pass that makes the large matrix products of transformers out of bfloat16 pairs.

    Streamed weights would be split at each use, so they stay as they are, and so does an
    autoencoder, which has too many products in a row for the rounding of pairs. What only depends
    on the prompt is computed once and gains nothing.
    """

    name = "bfloat16 pairs"
    dtypes = (torch.float32,)

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """Where the processor multiplies bfloat16 matrices."""
        return uses_pairs(model, context)

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Replace the linear layers of transformer blocks, but for the prompt's."""
        for block in list(model.modules()):
            if isinstance(block, BasicTransformerBlock):
                for place in _LINEAR_LAYERS:
                    layer = block.get_submodule(place)
                    assert isinstance(layer, nn.Linear)
                    paired = PairedLinear(layer.weight, layer.bias, context.weights)
                    replace_module(block, place, paired)


_LINEAR_LAYERS = (
    *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    *("attn2.to_q", "attn2.to_out.0"),
    *("ff.net.0.proj", "ff.net.2"),
)
"""The linear layers of a transformer block whose input changes from step to step."""


def uses_pairs(model: nn.Module, context: PassContext) -> bool:
    """Whether large products of a model are made of pairs."""
    has_transformers = any(isinstance(module, Transformer2DModel) for module in model.modules())
    fast = context.is_fast_in((torch.float32,)) and not context.streamed
    return fast and has_transformers and gain() >= WORTHWHILE


def _add_bfloat16_product(left: Tensor, right: Tensor, result: Tensor) -> None:
    product = _mkl_product()
    assert product is not None, "torch has no MKL here"
    (rows, inner), outputs = left.shape, len(right)
    left_order, left_stride = _order(left)
    right_order, right_stride = _order(right.t())
    product(
        *(_ROW_MAJOR, left_order, right_order, rows, outputs, inner),
        *(1.0, left.data_ptr(), left_stride, right.data_ptr(), right_stride),
        *(1.0, result.data_ptr(), result.stride(0)),
    )


def _order(matrix: Tensor) -> tuple[int, int]:
    """How a matrix lies in memory, and the distance of its rows or columns there."""
    rows, columns = matrix.shape
    if matrix.stride(1) == 1 or columns == 1:
        return _AS_IT_IS, max(matrix.stride(0), columns)
    assert matrix.stride(0) == 1 or rows == 1, "neither rows nor columns are dense"
    return _TRANSPOSED, max(matrix.stride(1), rows)


@lru_cache
def _mkl_product() -> Callable[..., None] | None:
    """``cblas_gemm_bf16bf16f32`` of the MKL within torch, whose own products round to bfloat16."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        product: Callable[..., None] = library.cblas_gemm_bf16bf16f32
    except (OSError, AttributeError):  # another system, or torch built against a shared MKL
        return None
    integer, pointer, number = ctypes.c_int, ctypes.c_void_p, ctypes.c_float
    product.argtypes = [  # type: ignore[attr-defined]
        *[integer] * 6,
        *(number, pointer, integer, pointer, integer),
        *(number, pointer, integer),
    ]
    product.restype = None  # type: ignore[attr-defined]
    return product
