"""What every pass over a loaded model has in common: the protocol, and what a pass is told."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from sdpy.models import AutoencoderKL, AutoencoderTiny
from sdpy.optimizations.weights import ModelWeights


@dataclass
class Preparations:
    """How often something was prepared that is meant to be prepared once.

    Attributes:
        plans: made for an input size of a network.
        forms: in which a layer's weights were laid out anew, transformed ones for example.
    """

    plans: int = 0
    forms: int = 0


@dataclass(frozen=True)
class PassContext:
    """How a model is to compute, as far as passes bring it about.

    Attributes:
        device: where the model runs.
        dtype: in what the model computes.
        fast_kernels: whether to use the faster forms of layers on a CPU, of which each pass says
            in which dtypes it is faster.
        tiled: whether an autoencoder computes in tiles.
        sliced_attention_size: heads of a batch that are computed together; None for all of them.
        compiled: whether torch compiles the networks; their weights then have to stay in place.
        captured: whether the steps of a UNet are captured as CUDA graphs; see `GraphCapturing`.
        streamed: whether weights are in memory, or on the GPU, only while their layer runs.
        weight_budget: bytes that all larger forms of a network's weights may take together beyond
            what the originals took; None for as many as are worthwhile.
        evaluations: how often the model is going to compute; None for many times, or unknown.
            What is made of its weights is to pay off within so many.
        weights: the parameters' origins, through which those that are not needed are released.
        preparations: counts what is prepared.
    """

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    fast_kernels: bool = False
    tiled: bool = False
    sliced_attention_size: int | None = None
    compiled: bool = False
    captured: bool = False
    streamed: bool = False
    weight_budget: int | None = None
    evaluations: int | None = None
    weights: ModelWeights = field(default_factory=ModelWeights)
    preparations: Preparations = field(default_factory=Preparations)

    def is_fast_in(self, dtypes: Collection[torch.dtype]) -> bool:
        """Whether faster forms of layers are wanted that are for the CPU in these dtypes."""
        return self.fast_kernels and self.device.type == "cpu" and self.dtype in dtypes


class Pass(Protocol):
    """A change of a loaded model that leaves its results the same, but for rounding.

    Its only means is to replace submodules by modules with the same interface.
    """

    @property
    def name(self) -> str:
        """What it is called in the README beside it."""
        ...

    # A pass that makes layers faster has ``dtypes``, too: those in which it does so on a CPU.

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """Whether there is anything to do."""
        ...

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Change the model."""
        ...


class PackingModule(nn.Module):
    """A layer that keeps weights in a form which torch knows as neither parameter nor buffer.

    Like these, they go when the model is sent to the meta device, by which its memory is released
    while somebody still holds it. So it is with any other change of all tensors, after which there
    may be nothing left to pack.
    """

    def __init__(self) -> None:
        super().__init__()
        self.packed: Any = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.packed = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``model`` has one of that dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def networks_of(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that are called as a whole: the model itself for most."""
    if isinstance(model, AutoencoderKL | AutoencoderTiny):
        return [model.encoder, model.decoder]
    return [model]
