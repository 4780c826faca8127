"""The pass that computes convolutions in their fastest forms, planned for each input size.

Which form is the fastest depends on the size of the image: a plan chooses one for each convolution
of a network, by the cost model, for one size of the network's input. Forms that need more memory
for their weights share a budget, the best bargains first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sdpy.models import T2IAdapter
from sdpy.models.resnet import Upsample2D
from sdpy.optimizations.base import PassContext, networks_of, replace_module
from sdpy.optimizations.exact import bfloat16_pairs, cost_model, machine, packed_layers
from sdpy.optimizations.exact.adaptive import (
    AdaptiveConv2d,
    AdaptiveUpsample2D,
    DirectConv2d,
    StoredConv2d,
    is_channels_last_already,
)
from sdpy.optimizations.exact.bfloat16_convolutions import AddedWinogradConv2d, DoublingConv2d
from sdpy.optimizations.exact.bfloat16_pairs import PairedConv2d, uses_pairs
from sdpy.optimizations.exact.convolutions import Convolution, ConvolutionTrace
from sdpy.optimizations.exact.matmul_conv import MatmulConv2d
from sdpy.optimizations.exact.packed_layers import PackedConv2d
from sdpy.optimizations.exact.tiling import TiledUpsample2D
from sdpy.optimizations.exact.winograd import Keep, WinogradConv2d
from sdpy.optimizations.exact.winograd_transforms import DOUBLING, TRANSFORMS, Transforms

FEW = 8
"""Up to so many evaluations, what is made of the weights before the first one counts. With more,
the choice, and with it the rounding, does not depend on their number."""

THIN = 16
"""With fewer channels than this, only torch's own convolution is considered."""

BUDGET = 650 * 10**6
"""The bytes that the larger forms of a network's weights may take beyond the originals' bytes, in
float32; two thirds of it in bfloat16."""


class FastConvolutions:
    """The pass that replaces every convolution by an `AdaptiveConv2d`, planned for each input size.

    The size has to be known before the first layer runs, so a forward pre-hook on the network
    selects the plan: a UNet has no parent in which it could be replaced by a wrapper.
    """

    name = "fast convolutions"
    dtypes = (torch.float32, torch.bfloat16)

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """To every model that has convolutions, and computes more than once for an image.

        For a T2I-Adapter, which does not, the preparation of weights takes longer than it gains,
        and would double the memory.
        """
        has_convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
        is_used_once = isinstance(model, T2IAdapter)
        return context.is_fast_in(self.dtypes) and has_convolutions and not is_used_once

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Replace the convolutions of each network, and have plans selected."""
        for network in networks_of(model):
            planner = ConvolutionPlanner(network, context)
            network.register_forward_pre_hook(planner.before_call, with_kwargs=True)


@dataclass(frozen=True)
class Option:
    """A form in which a convolution may be computed, and what it takes.

    Attributes:
        key: the form's, among those of the convolution.
        cost: of a call.
        preparation: the cost of what is made of the weights before the first.
        kept_bytes: of memory for what is made of the weights.
        needs_original: whether it needs the original weights beside that.
        make: makes the form from the convolution.
    """

    key: str
    cost: float
    preparation: float
    kept_bytes: int
    needs_original: bool
    make: Callable[[nn.Conv2d], nn.Module]


Plan = Mapping[str, str]
"""The key of the form of each convolution, by the convolution's name in the network."""


class ConvolutionPlanner:
    """Plans the forms of a network's convolutions for each size of its input, once.

    Args:
        network: a UNet, a ControlNet, or an encoder or decoder; its convolutions are replaced.
        context: see `PassContext`.

    Attributes:
        plans: those that were made, by the shape (rows, C, H, W) of the input, of whose rows there
            are as many as the batch has within the network.
    """

    def __init__(self, network: nn.Module, context: PassContext) -> None:
        self.plans: dict[torch.Size, Plan] = {}
        self._current: torch.Size | None = None
        self._streamed, self._preparations = context.streamed, context.preparations
        self._pairs = bfloat16_pairs.gain() if uses_pairs(network, context) else 0.0
        self._dtype = context.dtype
        evaluations = context.evaluations
        self._few = evaluations if evaluations is not None and evaluations <= FEW else None
        most = BUDGET if context.dtype == torch.float32 else BUDGET * 2 // 3
        self._budget = most if context.weight_budget is None else min(context.weight_budget, most)
        self._trace = ConvolutionTrace(network)
        self._layers = _replace_convolutions(network, context)
        self._made: dict[str, dict[str, Option]] = {name: {} for name in self._layers}

    def before_call(
        self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Select the plan for the input with which the network is called; a forward pre-hook."""
        del network
        shape = input_shape_of(args, kwargs)
        if shape == self._current:
            return
        if shape not in self.plans:
            self.plans[shape] = self._make_plan(shape)
            self._preparations.plans += 1
        for name, key in self.plans[shape].items():
            self._layers[name].select(key)
        self._current = shape

    def _make_plan(self, shape: torch.Size) -> Plan:
        convolutions = self._trace.at(shape, self._dtype.itemsize)
        if self._dtype == torch.bfloat16:
            find = partial(find_bfloat16_options, balance=machine.bfloat16_balance())
        else:
            find = partial(find_options, few=self._few is not None, pairs=self._pairs)
        keep = not self._streamed
        options = {c.name: self._weighed(c.name, find(c, keep_weights=keep)) for c in convolutions}
        present = {name: tuple(made.values()) for name, made in self._made.items()}
        chosen = choose(convolutions, options, self._budget, present)
        for name, option in chosen.items():
            layer = self._layers[name]
            if option.key not in self._made[name]:
                layer.add(option.key, option.make(layer.original))
                self._made[name][option.key] = option
        return {name: option.key for name, option in chosen.items()}

    def _weighed(self, name: str, options: Sequence[Option]) -> Sequence[Option]:
        """Options whose cost includes their share of what is made before the first evaluation."""
        if self._few is None:
            return options
        return [
            option
            if option.key in self._made[name]
            else replace(option, cost=option.cost + option.preparation / self._few)
            for option in options
        ]


def _replace_convolutions(network: nn.Module, context: PassContext) -> dict[str, AdaptiveConv2d]:
    """Returns what took the place of each convolution, by its name before."""
    weights = None if context.streamed else context.weights
    layers: dict[str, AdaptiveConv2d] = {}
    modules = list(network.named_modules())
    for name, module in modules:
        if isinstance(module, nn.Conv2d):
            layers[name] = AdaptiveConv2d(module, weights, context.preparations)
            replace_module(network, name, layers[name])
    for name, module in modules:
        if isinstance(module, Upsample2D | TiledUpsample2D):
            replace_module(network, name, AdaptiveUpsample2D(module))
    return layers


def input_shape_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Size:
    """(rows, C, H, W) of a network's input, of which there may be several contexts a sample."""
    sample: Tensor = args[0] if args else next(iter(kwargs.values()))
    context = args[2] if len(args) > 2 else kwargs.get("encoder_hidden_states")
    rows = len(sample) if context is None else max(len(sample), len(context))
    return torch.Size((rows, *sample.shape[1:]))


def choose(
    convolutions: Sequence[Convolution],
    options: Mapping[str, Sequence[Option]],
    budget: int,
    present: Mapping[str, Collection[Option]] | None = None,
) -> dict[str, Option]:
    """The fastest options whose weights fit together into the budget.

    Args:
        convolutions: of the network.
        options: of each, by its name.
        budget: bytes that all forms together may take beyond the original weights.
        present: options that were taken for other sizes, whose forms cost no memory any more.

    Returns:
        One option for each convolution, by its name.
    """
    present = {} if present is None else present
    more: dict[str, dict[str, int]] = {}  # bytes, by convolution and form
    for convolution in convolutions:
        name, weight_bytes = convolution.name, convolution.weight_bytes
        there = {option.key: option for option in present.get(name, ())}
        before = _extra_bytes(there.values(), weight_bytes)
        budget -= before
        more[name] = {
            option.key: _extra_bytes({**there, option.key: option}.values(), weight_bytes) - before
            for option in options[name]
        }
    chosen = {
        name: min((o for o in some if more[name][o.key] <= 0), key=lambda option: option.cost)
        for name, some in options.items()
    }
    while True:
        bargains = [
            ((chosen[name].cost - option.cost) / added, name, option)
            for name, some in options.items()
            for option in some
            if 0 < (added := more[name][option.key] - more[name][chosen[name].key]) <= budget
            and option.cost < chosen[name].cost
        ]
        if not bargains:
            return chosen
        _, name, option = max(bargains, key=lambda bargain: bargain[0])
        budget -= more[name][option.key] - more[name][chosen[name].key]
        chosen[name] = option


def _extra_bytes(options: Collection[Option], weight_bytes: int) -> int:
    """What a convolution's forms take together, beyond its original weights."""
    if not options:
        return 0
    kept = sum(option.kept_bytes for option in options)
    needs_original = any(option.needs_original for option in options)
    return kept - (0 if needs_original else weight_bytes)


def find_options(
    convolution: Convolution, *, keep_weights: bool = True, few: bool = False, pairs: float = 0.0
) -> list[Option]:
    """The forms in which a convolution may be computed, torch's own first.

    Args:
        convolution: with the shape of its input.
        keep_weights: whether what is made of the weights may be kept. Otherwise they are read anew
            at each call, and are float32 only then.
        few: whether there are few calls, in which it may not pay off to keep anything.
        pairs: how much faster products of bfloat16 pairs are; 0 for none.
    """
    conv, k = convolution.module, convolution.kernel
    weight_bytes = convolution.weight_bytes
    direct = cost_model.direct_cost(convolution)
    if not keep_weights:
        options = [Option("stored", direct, 0, 0, True, StoredConv2d)]
    elif is_channels_last_already(conv):
        options = [Option("direct", direct, 0, 0, True, DirectConv2d)]
    else:
        before = cost_model.direct_preparation(convolution)
        options = [Option("direct", direct, before, weight_bytes, False, DirectConv2d)]
    thin = min(conv.in_channels, conv.out_channels) < THIN
    if thin or conv.groups > 1 or conv.dilation != (1, 1) or conv.kernel_size != (k, k):
        return options
    if k > 1 or conv.stride == (1, 1):
        cost = cost_model.matmul_cost(convolution)
        options.append(Option("matmul", cost, 0, 0, True, MatmulConv2d))
        if pairs:
            cost = cost_model.paired_cost(convolution, pairs)
            before = cost_model.direct_preparation(convolution)
            options.append(Option("pairs", cost, before, weight_bytes, False, PairedConv2d))
    if k == 3 and conv.stride == (1, 1) and conv.padding == (1, 1):
        keeps = [Keep.TRANSFORMED, Keep.ORDERED] if keep_weights else []
        keeps += [Keep.ORIGINAL] if few or not keep_weights else []
        for keep in keeps:
            for transforms in TRANSFORMS.values():
                options.append(_winograd(convolution, transforms, keep))
            if convolution.doubled:
                options.append(_winograd(convolution, DOUBLING, keep))
    return options


def find_bfloat16_options(
    convolution: Convolution, *, keep_weights: bool = True, balance: float = 1.0
) -> list[Option]:
    """The forms in which a convolution may be computed in bfloat16, the plain one first.

    Args:
        convolution: with the shape of its input.
        keep_weights: whether what is made of the weights may be kept.
        balance: how much faster products are beside all else; see `machine.bfloat16_balance`.
    """
    conv, weight_bytes = convolution.module, convolution.weight_bytes
    cost = cost_model.bfloat16_cost(convolution, balance)
    if not keep_weights:
        return [Option("stored", cost, 0, 0, True, StoredConv2d)]
    before = cost_model.direct_preparation(convolution)
    if packed_layers.is_fast():
        packed = partial(PackedConv2d, input_shape=convolution.input_shape)
        options = [Option("packed", cost, before, weight_bytes, False, packed)]
    elif is_channels_last_already(conv):
        options = [Option("direct", cost, 0, 0, True, DirectConv2d)]
    else:
        options = [Option("direct", cost, before, weight_bytes, False, DirectConv2d)]
    thin = min(conv.in_channels, conv.out_channels) < THIN
    plain = (conv.kernel_size, conv.stride, conv.padding, conv.groups, conv.dilation)
    if not thin and plain == ((3, 3), (1, 1), (1, 1), 1, (1, 1)):
        cost, more = cost_model.added_winograd_cost(convolution, balance), weight_bytes * 16 // 9
        before = cost_model.summing_preparation(convolution)
        form = Option("added-winograd", cost, before, more, False, AddedWinogradConv2d)
        options.append(form)
        if convolution.doubled:
            cost = cost_model.doubling_cost(convolution, balance)
            before = cost_model.direct_preparation(convolution)
            form = Option("doubling", cost, before, weight_bytes, False, DoublingConv2d)
            options.append(form)
    return options


def _winograd(convolution: Convolution, transforms: Transforms, keep: Keep) -> Option:
    weight_bytes = convolution.weight_bytes
    kept_bytes = {
        Keep.TRANSFORMED: weight_bytes * transforms.points // 9,
        Keep.ORDERED: weight_bytes,
        Keep.ORIGINAL: 0,
    }
    kind = "doubling" if transforms.scale == 2 else f"winograd{transforms.m}"
    return Option(
        f"{kind}-{keep.value}",
        cost_model.winograd_cost(convolution, transforms, keep),
        cost_model.winograd_preparation(convolution, transforms, keep),
        kept_bytes[keep],
        keep is Keep.ORIGINAL,
        partial(WinogradConv2d, transforms=transforms, keep=keep),
    )
