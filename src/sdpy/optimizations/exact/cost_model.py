"""What it costs to compute a convolution in each of its forms.

Costs are counted in multiplications and additions at the rate of a large matrix product. The
constants were fitted to layers of Stable Diffusion 1.5 on two cores with AVX-512, where that rate
was 320e9 a second. Other processors have other rates, but much the same ratios between them.
The script ``scripts/bench/fit_cost_model.py`` fits the constants anew.
"""

from __future__ import annotations

from sdpy.optimizations.exact.convolutions import Convolution
from sdpy.optimizations.exact.winograd import Keep, tiles_together
from sdpy.optimizations.exact.winograd_transforms import Transforms

CACHE_BYTE = 18.0
"""The cost of moving one byte of weights, or of unfolded patches, through the caches."""

TILE_BYTE = 30.0
"""The cost of transforming one byte of Winograd tiles, on their way in or out."""

TRANSFORMED_PRODUCT = 0.93
"""The cost of a matrix product with weights that are kept transformed, relative to a large one."""

TRANSFORMED_BYTE = 7.0
"""The cost of reading one byte of weights that are kept transformed."""

PIECEWISE = 350e6
"""The cost of transforming weights piece by piece at each use, however many pieces there are."""

PIECEWISE_PRODUCT = 1.2
"""The cost of a matrix product with such pieces of weights, relative to a large one."""

TRANSFORMING_BYTE = 10.0
"""The cost of making one byte of transformed weights from weights that are in order."""

ORDERING_BYTE = 100.0
"""The cost of putting one byte of stored weights into the order in which they are transformed."""

# What is made before the first call, new memory for it included; measured on the same AMD EPYC as
# `ADDED_BYTE`.
LAYOUT_BYTE = 25.0
"""The cost of copying one byte of weights into channels-last memory."""

ORDERED_BYTE = 80.0
"""The cost of keeping one byte of weights in the order in which they are transformed."""

KEPT_BYTE = 90.0
"""The cost of making one byte of transformed weights to be kept."""

SUMMED_BYTE = 600.0
"""The cost of summing up one byte of bfloat16 weights for Winograd."""

DIRECT_WEIGHT_BYTE = 84.0
"""The cost of one byte of weights in torch's own convolution, which reorders them at each call."""

PAIRED_BYTE = 30.0
"""The cost of splitting one byte of unfolded patches into bfloat16 pairs."""

CALL = 60e6
"""The cost of the dozen torch calls that a convolution outside torch's own consists of."""

ADDED_BYTE = 80.0
"""The cost of one byte of tiles and products of a Winograd convolution in bfloat16, relative to a
matrix product in bfloat16; it was measured on an AMD EPYC with AVX-512 BF16, of whose core such a
product reaches 210e9 operations a second. See `machine.bfloat16_balance` for others."""

DOUBLED_BYTE = 110.0
"""The cost of one byte of the products of a `DoublingConv2d`, and of their sums; there."""

HALF_RATE_ROWS = 16
"""The number of rows in the left matrix at which a product reaches half of its full rate."""

CONSTANTS = (
    "CACHE_BYTE",
    "TILE_BYTE",
    "TRANSFORMED_PRODUCT",
    "TRANSFORMED_BYTE",
    "PIECEWISE",
    "PIECEWISE_PRODUCT",
    "TRANSFORMING_BYTE",
    "ORDERING_BYTE",
    "DIRECT_WEIGHT_BYTE",
    "PAIRED_BYTE",
    "CALL",
    "HALF_RATE_ROWS",
)
"""The names of all constants of the model."""


def direct_cost(convolution: Convolution) -> float:
    """Torch's own convolution."""
    return _work(convolution) + DIRECT_WEIGHT_BYTE * convolution.weight_bytes


def direct_preparation(convolution: Convolution) -> float:
    """Weights put into another order, in new memory."""
    return LAYOUT_BYTE * convolution.weight_bytes


def matmul_cost(convolution: Convolution) -> float:
    """One matrix product with the patches that the kernel falls on, or with the pixels."""
    product = _product(convolution.positions, _work(convolution))
    if convolution.kernel == 1:
        moved_bytes = 4 * convolution.positions * convolution.out_channels
        return product + CACHE_BYTE * moved_bytes
    moved_bytes = convolution.weight_bytes + 3 * _patch_bytes(convolution)
    return product + CACHE_BYTE * moved_bytes + CALL


def paired_cost(convolution: Convolution, gain: float) -> float:
    """The same product of bfloat16 pairs, which are multiplied ``gain`` times as fast."""
    product = _product(convolution.positions, _work(convolution)) / gain
    moved = CACHE_BYTE * convolution.weight_bytes + PAIRED_BYTE * _patch_bytes(convolution)
    return product + moved + CALL


def winograd_cost(convolution: Convolution, transforms: Transforms, keep: Keep) -> float:
    """A matrix product at each point of Winograd's tiles, of the map or of the doubled map."""
    points, side = transforms.points, transforms.m * transforms.scale
    inner, outer = convolution.in_channels, convolution.out_channels
    B, _, H, W = convolution.input_shape
    tiles = B * -(-H // side) * -(-W // side)
    work = 2.0 * points * tiles * inner * outer
    moved = TILE_BYTE * 4 * points * tiles * (2 * inner + outer)
    weight_bytes = convolution.weight_bytes
    transformed_bytes = weight_bytes * points // 9
    if keep is Keep.TRANSFORMED:
        product = TRANSFORMED_PRODUCT * _product(tiles, work)
        return product + TRANSFORMED_BYTE * transformed_bytes + CALL + moved
    each_part = TRANSFORMING_BYTE * transformed_bytes
    each_part += ORDERING_BYTE * weight_bytes if keep is Keep.ORIGINAL else 0
    parts = -(-tiles // tiles_together(inner, outer, points, keep))
    return PIECEWISE_PRODUCT * _product(tiles, work) + parts * each_part + PIECEWISE + moved


def winograd_preparation(convolution: Convolution, transforms: Transforms, keep: Keep) -> float:
    """What is kept of the weights, made once."""
    weight_bytes = convolution.weight_bytes
    return {
        Keep.TRANSFORMED: KEPT_BYTE * (weight_bytes * transforms.points // 9),
        Keep.ORDERED: ORDERED_BYTE * weight_bytes,
        Keep.ORIGINAL: 0.0,
    }[keep]


def bfloat16_cost(convolution: Convolution, balance: float = 1.0) -> float:
    """Torch's own convolution in bfloat16."""
    return _work(convolution) + balance * TRANSFORMED_BYTE * convolution.weight_bytes


def summing_preparation(convolution: Convolution) -> float:
    """bfloat16 weights summed up in float32, rounded, and kept."""
    return SUMMED_BYTE * convolution.weight_bytes


def added_winograd_cost(convolution: Convolution, balance: float = 1.0) -> float:
    """F(2x2, 3x3) in bfloat16 with transforms by additions; see `machine.bfloat16_balance`."""
    inner, outer, points = convolution.in_channels, convolution.out_channels, 16
    B, _, H, W = convolution.input_shape
    tiles = B * -(-H // 2) * -(-W // 2)
    moved = ADDED_BYTE * convolution.itemsize * points * tiles * (inner + outer)
    weights = TRANSFORMED_BYTE * convolution.weight_bytes * points // 9
    other = balance * (moved + weights + CALL)
    return _product(tiles, 2.0 * points * tiles * inner * outer) + other


def doubling_cost(convolution: Convolution, balance: float = 1.0) -> float:
    """Nine products of the map before it is doubled, and their sums, in bfloat16."""
    pixels = convolution.positions // 4
    moved = DOUBLED_BYTE * convolution.itemsize * 9 * pixels * convolution.out_channels
    other = balance * (moved + TRANSFORMED_BYTE * convolution.weight_bytes + CALL)
    return _product(pixels, _work(convolution) / 4) + other


def _work(convolution: Convolution) -> float:
    return 2.0 * convolution.positions * convolution.module.weight.numel()


def _patch_bytes(convolution: Convolution) -> int:
    return 4 * convolution.positions * convolution.kernel**2 * convolution.in_channels


def _product(rows: int, work: float) -> float:
    """A matrix product, which reaches its full rate with many rows only."""
    return work * (1 + HALF_RATE_ROWS / rows)
