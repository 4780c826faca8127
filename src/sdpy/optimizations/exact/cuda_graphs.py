"""CUDA graphs: what a GPU is to do is captured once, and then launched as a whole.

A step of a UNet is hundreds of small launches, which take the CPU longer than a fast GPU takes to
do them. A graph is launched at once. It does what it did when it was captured, with tensors in the
same places: what differs from one launch to the next has to be written into these before. Whoever
captures something keeps the tensors, and sees to that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdpy.models import UNet2DConditionModel
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact.cached_linear import CachedLinear

Work = Callable[[], None]

WARM_UPS = 2
"""Runs before a capture, in which libraries set themselves up and blocks are compiled."""

KEPT = 4
"""Graphs are kept for so many kinds of loops, which differ in the size or number of images."""


class CudaGraphs:
    """Captures work on a GPU, and keeps what belongs to the graphs while a network lives.

    All graphs share one pool of memory for what they compute on their way, since no two of them run
    at the same time. Their results have to be in tensors that were there before.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._pool: Any = None

    def capture(self, work: Work, changed: Sequence[Tensor]) -> Work:
        """Run ``work`` a few times to warm up, capture it, and return what launches the graph.

        Args:
            work: takes its inputs from tensors that stay in place, and writes its results into
                such. It neither waits for the GPU nor draws random numbers.
            changed: tensors that it both reads and changes; they are put back after the runs.

        Raises:
            RuntimeError: something in it cannot be captured, or there is not enough memory.
        """
        current = torch.cuda.current_stream(self.device)
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        before = [tensor.clone() for tensor in changed]
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    work()
        finally:
            current.wait_stream(side)
            for tensor, saved in zip(changed, before, strict=True):
                tensor.copy_(saved)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=side, capture_error_mode="thread_local"
        ):
            work()
        self._pool = graph.pool()
        return graph.replay

    def keep(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is kept for ``key``, made if it is not there; too many drop the oldest."""
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]

    def clear(self) -> None:
        """Drop all graphs, and with them their memory."""
        self._kept.clear()
        self._pool = None


class GraphCapturing:
    """The pass that lets the steps of a UNet be captured.

    It replaces nothing: the denoising loop asks for the UNet's graphs.
    """

    name = "CUDA graphs"

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """To UNets that are to be captured."""
        return context.captured and isinstance(model, UNet2DConditionModel)

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Give the UNet what captures and keeps."""
        model.cuda_graphs = CudaGraphs(context.device)  # type: ignore[assignment]


def graphs_of(model: nn.Module) -> CudaGraphs | None:
    """The graphs of a network; None where nothing is captured."""
    found = getattr(model, "cuda_graphs", None)
    return found if isinstance(found, CudaGraphs) else None


def addresses(networks: Iterable[nn.Module]) -> tuple[int, ...]:
    """Where the weights are, by which a graph knows them."""
    return tuple(one.data_ptr() for network in networks for one in network.parameters())


class PromptProducts:
    """What `CachedLinear` layers keep of a prompt, in the places where a graph reads it.

    Args:
        networks: that have been run with the prompt.
        prompt: which stays where it is.
    """

    def __init__(self, networks: Iterable[nn.Module], prompt: Tensor) -> None:
        modules = (module for network in networks for module in network.modules())
        layers = [one for one in modules if isinstance(one, CachedLinear) and one.keeps(prompt)]
        self._prompt = prompt
        self._kept = [(one.original, one.cached) for one in layers if one.cached is not None]

    def renew(self) -> None:
        """Compute it anew, since the prompt has been changed in its place."""
        for layer, cached in self._kept:
            cached.copy_(layer(self._prompt))
