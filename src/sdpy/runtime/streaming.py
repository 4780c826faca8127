"""Weights that come when they are used and go again, for models larger than the memory.

A model is cut into pieces. Before a piece runs, its weights are brought to the device and the dtype
in which it runs, and changed by LoRAs; afterwards they are again what their file holds, and the
memory of its pages is given back. What needs nothing of this is used where it lies in the file.
The result is, bit by bit, that of a model which was loaded as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdpy.checkpoints import Change, MappedFile
from sdpy.optimizations.exact.feed_forward import ChunkedFeedForward

PIECE_BYTES = 128 * 2**20
"""Of a piece, at most, unless a single layer has more."""
RESIDENT_BYTES = 2**20
"""A layer of less stays; it tells on which device and in which dtype the model runs."""


def stream_weights(
    model: nn.Module,
    networks: Iterable[nn.Module],
    mappings: Sequence[MappedFile],
    *,
    dtype: torch.dtype,
    device: torch.device,
    changes: Mapping[nn.Parameter, Change] | None = None,
) -> None:
    """Have the weights of a model come and go, piece by piece.

    A network is cut into pieces when it is first called, so that layers may be replaced until then,
    if what replaces them holds the same parameters and makes no other use of them than when it is
    called. There are to be no buffers.

    Args:
        model: on the CPU, its parameters the tensors of its files.
        networks: those parts of it that are called as a whole.
        mappings: of the files. Weights that lie in none of them stay in memory as they are.
        dtype: in which the model is to run.
        device: on which it is to run.
        changes: what is to be made of some parameters once they are in that dtype on that device.
    """
    needs = _Needs(dtype, device, {} if changes is None else changes, mappings)
    networks = list(networks)
    pieces = [piece for network in networks for piece in _cut(network, dtype.itemsize)]
    needs.fetch_others(model, pieces)
    for network in networks:
        _cut_at_first_use(network, needs)


@contextmanager
def moved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The parameters of a model are on another device for the duration of the block."""
    weights = [
        _Weight(owner, attribute, stored, lambda tensor: tensor.to(device))
        for owner, attribute, stored in _parameters(model)
    ]
    try:
        for weight in weights:
            weight.fetch()
        yield
    finally:
        for weight in weights:
            weight.drop()


# What takes the weights of the layers within it without calling these.
_INDIVISIBLE = (ChunkedFeedForward,)


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
        """Give the layer what it computes with."""
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
    """What is to be made of the weights of a model; see `stream_weights`."""

    dtype: torch.dtype
    device: torch.device
    changes: Mapping[nn.Parameter, Change]
    mappings: Sequence[MappedFile]

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
        change = self.changes.get(stored)

        def prepare(stored: Tensor) -> Tensor:
            tensor = stored.to(self.device, self.dtype)
            return tensor if change is None else change(tensor)

        is_ready = (stored.device, stored.dtype, change) == (self.device, self.dtype, None)
        mapping = next((one for one in self.mappings if one.holds(stored)), None)
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


def _cut_at_first_use(network: nn.Module, needs: _Needs) -> None:
    def first_use(*_: Any) -> None:
        handle.remove()
        modules = list(_cut(network, needs.dtype.itemsize))
        needs.fetch_others(network, modules)
        order = _Order()
        for module in modules:
            _add_piece(module, _Piece(needs.weights(module)), order)

    handle = network.register_forward_pre_hook(first_use)


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
        elif size <= PIECE_BYTES or isinstance(module, _INDIVISIBLE) or not [*module.children()]:
            yield module
        else:
            yield from _cut(module, itemsize)


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each parameter with the layer that owns it and its name there."""
    for owner in model.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            yield owner, name, parameter
