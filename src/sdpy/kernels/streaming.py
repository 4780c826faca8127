"""Weights that come when they are used and go again, for models larger than the memory.

A model is cut into pieces. Before a piece runs, its weights are brought to the device and the dtype
in which it runs, and changed by LoRAs; afterwards they are again what their file holds, and the
memory of its pages is given back. What needs nothing of this is used where it lies in the file.
The result is, bit by bit, that of a model which was loaded as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdpy.checkpoints import Change, MappedFile

PIECE_BYTES = 128 * 2**20
"""Of a piece, at most, unless a single layer has more."""
RESIDENT_BYTES = 2**20
"""A layer of less stays; it tells on which device and in which dtype the model runs."""


def stream_weights(
    model: nn.Module,
    mappings: Sequence[MappedFile],
    *,
    dtype: torch.dtype,
    device: torch.device,
    changes: Mapping[str, Change] | None = None,
) -> None:
    """Have the weights of a model come and go, piece by piece.

    Args:
        model: on the CPU, its parameters the tensors of its files, without buffers.
        mappings: of these files. Weights that lie in none of them stay in memory as they are.
        dtype: in which the model is to run.
        device: on which it is to run.
        changes: what is to be made of some parameters, by their names, once they are in that dtype
            on that device.
    """
    changes = {} if changes is None else changes
    weights = {
        name: _Weight.of(model, name, mappings, dtype, device, changes.get(name))
        for name, _ in model.named_parameters()
    }
    order = _Order()
    for name, module in _cut(model, name="", itemsize=dtype.itemsize):
        within = f"{name}." if name else ""
        piece = _Piece([weights.pop(w) for w in list(weights) if w.startswith(within)])
        order.add(piece)
        module.register_forward_pre_hook(lambda *_, piece=piece: order.begin(piece))
        module.register_forward_hook(lambda *_, piece=piece: piece.drop(), always_call=True)
    for weight in weights.values():
        weight.fetch()


@contextmanager
def moved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The parameters of a model are on another device for the duration of the block."""
    weights = [
        _Weight.of(model, name, (), parameter.dtype, device)
        for name, parameter in model.named_parameters()
    ]
    try:
        for weight in weights:
            weight.fetch()
        yield
    finally:
        for weight in weights:
            weight.drop()


@dataclass(frozen=True)
class _Weight:
    """A parameter of a model.

    Attributes:
        owner: the layer.
        attribute: its name there.
        stored: as it is while its layer does not run.
        prepare: makes of it what the layer computes with; None if that is the same.
        mapping: the file in which it lies; None if it does not.
    """

    owner: nn.Module
    attribute: str
    stored: nn.Parameter
    prepare: Change | None
    mapping: MappedFile | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        name: str,
        mappings: Sequence[MappedFile],
        dtype: torch.dtype,
        device: torch.device,
        change: Change | None = None,
    ) -> _Weight:
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        stored = owner.get_parameter(attribute)

        def prepare(stored: Tensor) -> Tensor:
            tensor = stored.to(device, dtype)
            return tensor if change is None else change(tensor)

        is_ready = (stored.device, stored.dtype, change) == (device, dtype, None)
        mapping = next((one for one in mappings if one.holds(stored)), None)
        return cls(owner, attribute, stored, None if is_ready else prepare, mapping)

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


class _Piece:
    """What comes and goes together."""

    def __init__(self, weights: Sequence[_Weight]) -> None:
        self.weights = weights
        self.next: _Piece | None = None

    def drop(self) -> None:
        for weight in self.weights:
            weight.drop()


class _Order:
    """The pieces in the order in which they were last run, to know which comes next.

    At first it is the order in which they are in the model.
    """

    def __init__(self) -> None:
        self.last: _Piece | None = None

    def add(self, piece: _Piece) -> None:
        if self.last is not None:
            self.last.next = piece
        self.last = piece

    def begin(self, piece: _Piece) -> None:
        """Fetch a piece, and have the next one read from the disk meanwhile."""
        self.add(piece)
        for weight in piece.weights:
            weight.fetch()
        for weight in [] if piece.next is None else piece.next.weights:
            weight.expect()


def _cut(module: nn.Module, name: str, itemsize: int) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules of no more than `PIECE_BYTES`, with their names."""
    size = itemsize * sum(parameter.numel() for parameter in module.parameters())
    if size < RESIDENT_BYTES:
        return
    children = list(module.named_children())
    # A list of modules is never run itself.
    if not isinstance(module, nn.ModuleList) and (size <= PIECE_BYTES or not children):
        yield name, module
        return
    for child_name, child in children:
        yield from _cut(child, f"{name}.{child_name}" if name else child_name, itemsize)
