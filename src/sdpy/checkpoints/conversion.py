"""Components from one file into another: other formats, other names, other dtypes.

Everything streams: a tensor is made when the writer asks for it, and what was read of the source
is given back to the system before much has gathered, so that memory holds a few tensors at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sdpy.checkpoints.base import LazyTensors, printable
from sdpy.checkpoints.dialects import Recipe, in_dialect
from sdpy.checkpoints.loading import Weights
from sdpy.checkpoints.registry import write_checkpoint
from sdpy.components import COMPONENTS
from sdpy.errors import WeightsError

FORGET_EVERY = 32 * 2**20
"""Bytes that are read, about, before their memory is given back."""

Advance = Callable[[int], None]
"""Told how many more bytes are made."""


@dataclass(frozen=True)
class Output:
    """A file to be written."""

    path: Path
    tensors: LazyTensors
    metadata: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of its numbers."""
        return sum(t.numel() * t.dtype.itemsize for t in self.tensors.outline.values())


def plan_output(
    path: Path,
    weights: Sequence[Weights],
    dialect: str,
    *,
    dtype: torch.dtype | None = None,
    family: str = "sd1",
    marks: Sequence[str] = (),
    advance: Advance = lambda size: None,
) -> Output:
    """A file with these components, under the names of ``dialect``. Reads no numbers.

    Args:
        path: of the file; its extension names the format.
        weights: the components; of one that is of no known kind, the names stay.
        dialect: one of `sdpy.checkpoints.dialects`.
        dtype: of the floating-point numbers; None for the source's.
        family: of the original's single files; see `in_dialect`.
        marks: names of empty tensors to be added, which say something of the model.
        advance: told of every tensor's bytes.

    Raises:
        WeightsError: a tensor that has no name in ``dialect``.
    """
    memory = _Memory(tuple(one.checkpoint.forget for one in weights), advance)
    makers: dict[str, Callable[[], Tensor]] = {}
    outline: dict[str, Tensor] = {}
    for one in weights:
        shapes = {name: _empty(tensor) for name, tensor in one.checkpoint.outline.items()}
        for name, recipe in _recipes(one, dialect, family).items():
            make = partial(_made, one, recipe, dtype)
            outline[name] = _empty(make(shapes))
            makers[name] = partial(memory.make, make, one.checkpoint.tensors)
    for mark in marks:
        outline[mark] = torch.empty(0, device="meta")
        makers[mark] = partial(torch.empty, 0)
    metadata = weights[0].checkpoint.metadata if len(weights) == 1 else {}
    return Output(path, LazyTensors(makers, outline), metadata)


def write_output(output: Output) -> None:
    """Write the file atomically.

    Raises:
        UsageError, WeightsError, OutputError: as of `write_checkpoint`.
    """
    write_checkpoint(output.path, output.tensors, output.metadata)


def _recipes(weights: Weights, dialect: str, family: str) -> dict[str, Recipe]:
    part = weights.part
    if part.component is None:
        return {name: Recipe((name,)) for name in part.origins}
    try:
        return in_dialect(part.component, list(part.origins), dialect, family=family)
    except ValueError as error:
        raise WeightsError(
            f"{weights.checkpoint.path} has a tensor {printable(str(error))}, for which the "
            f"original programs have no name in a {COMPONENTS[part.component].label}"
        ) from error


def _made(
    weights: Weights, recipe: Recipe, dtype: torch.dtype | None, tensors: Mapping[str, Tensor]
) -> Tensor:
    tensor = recipe.make(_OurTensors(weights, tensors))
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


class _OurTensors(Mapping[str, Tensor]):
    """A component's tensors under our names."""

    def __init__(self, weights: Weights, tensors: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._tensors = tensors

    def __getitem__(self, ours: str) -> Tensor:
        return self._weights.tensor(ours, self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights.part.origins)

    def __len__(self) -> int:
        return len(self._weights.part.origins)


class _Memory:
    """Makes tensors one after the other, each when the one before is written."""

    def __init__(self, forget: tuple[Callable[[], None], ...], advance: Advance) -> None:
        self.forget = forget
        self.advance = advance
        self.read = 0
        self.last = 0

    def make(
        self, make: Callable[[Mapping[str, Tensor]], Tensor], tensors: Mapping[str, Tensor]
    ) -> Tensor:
        self.advance(self.last)
        if self.read >= FORGET_EVERY:
            for forget in self.forget:
                forget()
            self.read = 0
        tensor = make(tensors)
        self.last = tensor.numel() * tensor.dtype.itemsize
        self.read += max(self.last, tensor.numel() * torch.float32.itemsize)
        return tensor
