"""The pass that makes a loaded model faster on a CPU, its numbers the same but for rounding.

Every convolution is replaced by that kind which a cost model finds fastest for the picture's size;
kinds that need more memory for their weights share a budget, the best bargains first. Feed-forward
networks and what only depends on the prompt are replaced where there are any. Where the processor
is fast at bfloat16, the large matrix products of transformers are made of pairs of it; where it has
long vectors, attention of plain products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from sdpy.models.attention import Attention, FeedForward, Transformer2DModel
from sdpy.optimizations.exact import bfloat16_pairs, product_attention
from sdpy.optimizations.exact.bfloat16_pairs import PairedConv2d, PairedLinear
from sdpy.optimizations.exact.convolutions import Convolution, find_convolutions
from sdpy.optimizations.exact.feed_forward import ChunkedFeedForward
from sdpy.optimizations.exact.folded_attention import FoldedAttention
from sdpy.optimizations.exact.matmul_conv import MatmulConv2d
from sdpy.optimizations.exact.remembering_linear import RememberingLinear
from sdpy.optimizations.exact.replacing import replace_module
from sdpy.optimizations.exact.winograd import (
    DOUBLING,
    TRANSFORMS,
    Keep,
    Transforms,
    WinogradConv2d,
    tiles_together,
)
from sdpy.optimizations.exact.winograd_upsample import WinogradUpsample2D

# The cost model counts in multiplications and additions at the rate of a large matrix product. Its
# constants were fitted to layers of Stable Diffusion 1.5 on two cores with AVX-512, where that rate
# was 320e9 a second. Other processors have other rates, but much the same ratios.
BYTE = 18.0
"""Cost of moving a byte of weights or patches through the caches."""
TILE_BYTE = 30.0
"""Of a byte of transformed tiles."""
KEPT_PRODUCT = 0.93
"""Of a product with kept transformed weights, in proportion to the usual one."""
KEPT_BYTE = 7.0
"""Of reading a byte of them."""
PIECES = 350e6
"""Of transforming weights a piece at a time, however many there are."""
PIECEWISE_PRODUCT = 1.2
"""Of a product with these pieces, in proportion to the usual one."""
TRANSFORMING_BYTE = 10.0
"""Of making a byte of transformed weights."""
ORDERING_BYTE = 100.0
"""Of putting a byte of weights in order before that."""
DIRECT_WEIGHT_BYTE = 84.0
"""Of a byte of weights in torch's convolution, which puts them into another order at every call."""
PAIRED_PRODUCT = 0.55
"""Of a product of bfloat16 pairs, in proportion to the usual one."""
PAIRED_BYTE = 30.0
"""Of splitting a byte into a pair."""
CALL = 60e6
"""Of the dozen calls, each of some microseconds, that a convolution outside torch's own takes."""
FULL_ROWS = 16
"""Rows of the left matrix at which a matrix product reaches half of its rate."""

THIN = 16
"""Channels below which only torch's own convolution is considered."""

BUDGET = 650 * 10**6
"""Bytes that a model's larger weights may take more than the originals did."""


Layer = TypeVar("Layer", bound=nn.Module)
MakeLinear = Callable[[nn.Linear], nn.Linear | PairedLinear]


@dataclass(frozen=True)
class Option:
    """A way to compute a convolution.

    Attributes:
        cost: of a call.
        extra_bytes: of memory that it adds.
        make: makes what takes the place of the convolution, from it.
        doubles: whether that takes the place of the whole `Upsample2D` that the convolution is in,
            and is made from this.
    """

    cost: float
    extra_bytes: int
    make: Callable[..., nn.Module]
    doubles: bool = False


def accelerate_at_first_use(
    model: nn.Module,
    budget: int = BUDGET,
    *,
    keep_weights: bool = True,
    let_go: Callable[[Tensor], None] | None = None,
) -> None:
    """Have ``model`` accelerated when it is first called, for the size that it then sees.

    Args:
        model: a UNet, a ControlNet, or an encoder or decoder; float32 on the CPU.
        budget: bytes that larger weights may take more than the originals.
        keep_weights: whether what was made of the weights may be kept. Otherwise they are read
            anew at each call, and are float32 only then.
        let_go: called with weights that are not needed any more.
    """

    def first_use(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        handle.remove()
        rows = len(args[2] if len(args) > 2 else args[0])  # of UNets, that of the contexts
        shape = torch.Size((rows, *args[0].shape[1:]))
        accelerate(module, shape, budget, keep_weights=keep_weights, let_go=let_go)

    handle = model.register_forward_pre_hook(first_use)


def accelerate(
    model: nn.Module,
    input_shape: torch.Size,
    budget: int = BUDGET,
    *,
    keep_weights: bool = True,
    let_go: Callable[[Tensor], None] | None = None,
) -> None:
    """Replace layers of ``model`` by faster ones, for inputs of that size.

    Args:
        model: as for `accelerate_at_first_use`.
        input_shape: (B, C, H, W), see `find_convolutions`.
        budget: bytes that larger weights may take more than the originals.
        keep_weights, let_go: as for `accelerate_at_first_use`.
    """
    pairs = keep_weights and bfloat16_pairs.is_fast() and _has_transformers(model)
    convolutions = list(find_convolutions(model, input_shape))
    for convolution, option in choose(convolutions, budget, keep_weights, pairs):
        name = convolution.name
        name = name.rpartition(".")[0] if option.doubles else name
        replace_module(model, name, option.make(model.get_submodule(name)))
    _accelerate_transformers(model, _pair if pairs else _as_it_is, keep_weights and not pairs)
    for module in model.modules():
        if isinstance(module, WinogradConv2d | PairedLinear | FoldedAttention):
            module.let_go = let_go


def _has_transformers(model: nn.Module) -> bool:
    """An autoencoder has none, and its products are too many in a row for the rounding of pairs."""
    return any(isinstance(module, Transformer2DModel) for module in model.modules())


def _accelerate_transformers(model: nn.Module, linear: MakeLinear, fold: bool) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, FeedForward):
            replace_module(model, name, ChunkedFeedForward(module, linear))
        elif isinstance(module, Attention):
            if product_attention.is_fast():
                product_attention.attend_by_products(module)
            attends_to_prompt = module.to_k.in_features != module.to_q.in_features
            of_the_context = RememberingLinear if attends_to_prompt else linear
            for part, make in [
                ("to_q", linear),
                ("to_k", of_the_context),
                ("to_v", of_the_context),
                ("to_out.0", linear),
            ]:
                layer = module.get_submodule(part)
                assert isinstance(layer, nn.Linear)
                replace_module(module, part, make(layer))
            if attends_to_prompt and fold:
                replace_module(model, name, FoldedAttention(module))


def choose(
    convolutions: list[Convolution],
    spare_bytes: int,
    keep_weights: bool = True,
    pairs: bool = False,
) -> Iterator[tuple[Convolution, Option]]:
    """The fastest options whose weights fit together into the memory to spare."""
    options = {c.name: find_options(c, keep_weights, pairs) for c in convolutions}
    chosen = {
        name: min((o for o in some if o.extra_bytes <= 0), key=lambda option: option.cost)
        for name, some in options.items()
    }
    while True:
        bargains = [
            ((chosen[name].cost - option.cost) / more, name, option)
            for name, some in options.items()
            for option in some
            if 0 < (more := option.extra_bytes - chosen[name].extra_bytes) <= spare_bytes
            and option.cost < chosen[name].cost
        ]
        if not bargains:
            break
        _, name, option = max(bargains, key=lambda bargain: bargain[0])
        spare_bytes -= option.extra_bytes - chosen[name].extra_bytes
        chosen[name] = option
    for convolution in convolutions:
        yield convolution, chosen[convolution.name]


def find_options(
    convolution: Convolution, keep_weights: bool = True, pairs: bool = False
) -> list[Option]:
    """The ways to compute a convolution, torch's own first."""
    conv = convolution.module
    k = conv.kernel_size[0]
    weight_bytes = conv.weight.nbytes
    work = 2.0 * convolution.positions * conv.weight.numel()
    direct = _in_channels_last if keep_weights else _as_it_is
    options = [Option(work + DIRECT_WEIGHT_BYTE * weight_bytes, 0, direct)]
    thin = min(conv.in_channels, conv.out_channels) < THIN
    if thin or conv.groups > 1 or conv.dilation != (1, 1) or conv.kernel_size != (k, k):
        return options
    patches = 4 * convolution.positions * k * k * conv.in_channels
    product = _product(convolution.positions, work)
    if k > 1:
        cost = product + BYTE * (weight_bytes + 3 * patches) + CALL
        options.append(Option(cost, 0, MatmulConv2d))
    elif conv.stride == (1, 1):
        cost = product + BYTE * 4 * convolution.positions * conv.out_channels
        options.append(Option(cost, 0, MatmulConv2d))
    if pairs and (k > 1 or conv.stride == (1, 1)):
        cost = PAIRED_PRODUCT * product + BYTE * weight_bytes + PAIRED_BYTE * patches + CALL
        options.append(Option(cost, 0, PairedConv2d))
    if k == 3 and conv.stride == (1, 1) and conv.padding == (1, 1):
        kinds = (Keep.TRANSFORMED, Keep.ORDERED) if keep_weights else (Keep.ORIGINAL,)
        options += [_winograd(convolution, m, keep) for m in TRANSFORMS for keep in kinds]
        if convolution.doubled:
            options += [_winograd_upsample(convolution, keep) for keep in kinds]
    return options


def _winograd(convolution: Convolution, m: int, keep: Keep) -> Option:
    transforms, weight_bytes = TRANSFORMS[m], convolution.module.weight.nbytes
    kept = weight_bytes * (transforms.points if keep is Keep.TRANSFORMED else 9) // 9
    make = partial(WinogradConv2d, transforms=transforms, keep=keep)
    return Option(_winograd_cost(convolution, transforms, keep), kept - weight_bytes, make)


def _winograd_upsample(convolution: Convolution, keep: Keep) -> Option:
    weight_bytes = convolution.module.weight.nbytes
    kept = {Keep.TRANSFORMED: weight_bytes * DOUBLING.points // 9, Keep.ORDERED: weight_bytes}
    make = partial(WinogradUpsample2D, keep=keep)
    cost = _winograd_cost(convolution, DOUBLING, keep)
    return Option(cost, kept.get(keep, 0), make, doubles=True)


def _winograd_cost(convolution: Convolution, transforms: Transforms, keep: Keep) -> float:
    conv, points, side = convolution.module, transforms.points, transforms.m * transforms.scale
    B, _, H, W = convolution.input_shape
    tiles = B * -(-H // side) * -(-W // side)
    tile_bytes = 4 * points * tiles * (2 * conv.in_channels + conv.out_channels)
    work = 2.0 * points * tiles * conv.in_channels * conv.out_channels
    weight_bytes = conv.weight.nbytes
    transformed_bytes = weight_bytes * points // 9
    parts = -(-tiles // tiles_together(conv, points, keep))
    moved = TILE_BYTE * tile_bytes
    if keep is Keep.TRANSFORMED:
        return KEPT_PRODUCT * _product(tiles, work) + KEPT_BYTE * transformed_bytes + CALL + moved
    each = TRANSFORMING_BYTE * transformed_bytes
    each += ORDERING_BYTE * weight_bytes if keep is Keep.ORIGINAL else 0
    return PIECEWISE_PRODUCT * _product(tiles, work) + parts * each + PIECES + moved


def _product(rows: int, work: float) -> float:
    """Cost of a matrix product: full rate with many rows only."""
    return work * (1 + FULL_ROWS / rows)


def _in_channels_last(conv: nn.Conv2d) -> nn.Module:
    """The same, so that its result is in channels-last memory, as all the others' are."""
    conv.weight.data = conv.weight.contiguous(memory_format=torch.channels_last)
    return conv


def _as_it_is(layer: Layer) -> Layer:
    return layer


def _pair(layer: nn.Linear) -> PairedLinear:
    return PairedLinear(layer.weight, layer.bias)
