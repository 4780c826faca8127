"""Weights that are in memory only while they are used, for models larger than the memory.

A model is cut into pieces. Before a piece runs, its weights are brought to the device and the dtype
in which it runs, and changed by LoRAs; afterwards they are again what their file holds, and the
memory of its pages is given back. What needs nothing of this is used where it lies in the file.
The result is, bit by bit, that of a model which was loaded as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sdpy.checkpoints import Change, MappedFile
from sdpy.optimizations.base import PassContext, networks_of
from sdpy.optimizations.exact.adaptive import AdaptiveConv2d, AdaptiveUpsample2D
from sdpy.optimizations.exact.feed_forward import ChunkedFeedForward
from sdpy.optimizations.weights import ModelWeights

PIECE_BYTES = 128 * 2**20
"""The most bytes of a piece, unless a single layer has more."""

RESIDENT_BYTES = 2**20
"""A layer with fewer bytes than this stays in memory."""

INDIVISIBLE = (ChunkedFeedForward, AdaptiveConv2d, AdaptiveUpsample2D)
"""Modules that use the weights of the layers within them without calling these."""


class WeightStreaming:
    """The pass that has the weights of a model come and go, piece by piece.

    Forward hooks on the pieces fetch and drop their weights. Wrappers would do so as well, but a
    piece may be a whole block of a UNet, whose parts others look for by name.

    It is the last pass: what replaces a layer holds the same parameters, and makes no other use of
    them than when it is called. Weights that lie in no mapped file stay in memory as they are.
    """

    name = "weight streaming"

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """To every model."""
        return context.streamed

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Cut the model, whose parameters are those of its file, on the CPU."""
        needs = _Needs(context.dtype, context.device, context.weights)
        cut = [list(_cut(network, context.dtype.itemsize)) for network in networks_of(model)]
        needs.fetch_others(model, [piece for pieces in cut for piece in pieces])
        for pieces in cut:
            order = _Order()
            for module in pieces:
                _add_piece(module, _Piece(needs.weights(module)), order)


@dataclass(frozen=True)
class _Weight:
    """A parameter of a model.

    Attributes:
        owner: the layer.
        attribute: its name there.
        stored: as it is while its layer does not run.
        prepare: makes of it what the layer computes with; None if that is the same.
        mapping: in which it lies; None for none.
    """

    owner: nn.Module
    attribute: str
    stored: nn.Parameter
    prepare: Change | None
    mapping: MappedFile | None = None

    def expect(self) -> None:
        """It will soon be needed."""
        if self.mapping is not None:
            self.mapping.expect(self.stored)

    def fetch(self) -> None:
        """Give the layer what it computes with.

        Raises:
            WeightsError: the file was changed since, and might even be shorter now.
        """
        if self.mapping is not None:
            self.mapping.check_unchanged()
        if self.prepare is not None:
            made = nn.Parameter(self.prepare(self.stored.detach()), requires_grad=False)
            setattr(self.owner, self.attribute, made)

    def drop(self) -> None:
        """Take it back."""
        if self.prepare is not None:
            setattr(self.owner, self.attribute, self.stored)
        if self.mapping is not None:
            self.mapping.forget(self.stored)


@dataclass(frozen=True)
class _Needs:
    """What is to be made of the weights of a model while they are used."""

    dtype: torch.dtype
    device: torch.device
    origins: ModelWeights

    def weights(self, module: nn.Module) -> list[_Weight]:
        """All that a module has."""
        return [self._weight(*place) for place in _parameters(module)]

    def fetch_others(self, module: nn.Module, pieces: Iterable[nn.Module]) -> None:
        """Fetch for good what is in none of the pieces."""
        come_and_go = {id(parameter) for piece in pieces for parameter in piece.parameters()}
        for weight in self.weights(module):
            if id(weight.stored) not in come_and_go:
                weight.fetch()

    def _weight(self, owner: nn.Module, attribute: str, stored: nn.Parameter) -> _Weight:
        change = self.origins.change_of(stored)

        def prepare(stored: Tensor) -> Tensor:
            tensor = stored.to(self.device, self.dtype)
            return tensor if change is None else change(tensor)

        is_ready = (stored.device, stored.dtype, change) == (self.device, self.dtype, None)
        mapping = self.origins.mapping_of(stored)
        return _Weight(owner, attribute, stored, None if is_ready else prepare, mapping)


@dataclass
class _Piece:
    """What comes and goes together, and what is expected to run next."""

    weights: list[_Weight]
    next: _Piece | None = None

    def drop(self) -> None:
        for weight in self.weights:
            weight.drop()


@dataclass
class _Order:
    """The pieces of a network in the order in which they last ran; at first, as they are in it."""

    last: _Piece | None = field(default=None)

    def add(self, piece: _Piece) -> None:
        if self.last is not None:
            self.last.next = piece
        self.last = piece

    def begin(self, piece: _Piece) -> None:
        """Fetch a piece, and have the next one read from the disk meanwhile."""
        self.add(piece)
        for weight in piece.weights:
            weight.fetch()
        if piece.next is not None:
            for weight in piece.next.weights:
                weight.expect()


def _add_piece(module: nn.Module, piece: _Piece, order: _Order) -> None:
    order.add(piece)
    module.register_forward_pre_hook(lambda *_: order.begin(piece))
    module.register_forward_hook(lambda *_: piece.drop(), always_call=True)


def _cut(network: nn.Module, itemsize: int) -> Iterator[nn.Module]:
    """The largest modules below a network of no more than `PIECE_BYTES`."""
    for module in network.children():
        size = itemsize * sum(parameter.numel() for parameter in module.parameters())
        if size < RESIDENT_BYTES:
            continue
        if isinstance(module, nn.ModuleList):  # which is never called itself
            yield from _cut(module, itemsize)
        elif size <= PIECE_BYTES or isinstance(module, INDIVISIBLE) or not [*module.children()]:
            yield module
        else:
            yield from _cut(module, itemsize)


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each parameter with the layer that owns it and its name there."""
    for owner in model.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            yield owner, name, parameter
