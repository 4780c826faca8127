"""How to compute: in what numbers, how fast, and in how much memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from sdpy.optimizations.base import PassContext
from sdpy.optimizations.weights import ModelWeights
from sdpy.runtime.devices import cpu_has_bfloat16


@dataclass(frozen=True)
class Execution:
    """How to compute. But for ``dtype``, the picture is the same up to rounding.

    Attributes:
        dtype: of the models; see `dtype_on`. Latents and schedulers are in float32 always.
        memory: "auto" to need no more than there is, "low" to need as little as possible, or how
            many bytes this process may take. `sdpy.pipelines.fitting` then sets ``strips``,
            ``streamed``, ``sliced_attention_size`` and ``weight_budget`` before anything is loaded.
        fast_kernels: compute convolutions and others in faster ways where there are such: on the
            CPU in float32.
        sliced_attention_size: heads of a batch computed together; None for all of them.
        strips: run the autoencoder in strips; see `in_strips_on`.
        streamed: have weights in memory, or on the GPU, only while their layer runs.
        offload: keep models that are for a GPU in main memory while they do not run.
        compiled: have torch compile the UNet and the autoencoder for a GPU; see `compiles_on`.
        weight_budget: bytes that may be spent on faster forms of the weights; None for any number.
    """

    dtype: torch.dtype = torch.float32
    memory: str | int = "auto"
    fast_kernels: bool = True
    sliced_attention_size: int | None = None
    strips: bool = False
    streamed: bool = False
    offload: bool = False
    compiled: bool = False
    weight_budget: int | None = None

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """In what the models there compute.

        On the CPU it is float32, unless bfloat16 is asked for and the processor has it: without
        instructions of its own, a shorter dtype is no faster there.
        """
        if device.type != "cpu" or (self.dtype == torch.bfloat16 and cpu_has_bfloat16()):
            return self.dtype
        return torch.float32

    def is_fast_on(self, device: torch.device) -> bool:
        """Whether models there are computed in the faster ways."""
        return self.fast_kernels and device.type == "cpu" and self.dtype_on(device) == torch.float32

    def in_strips_on(self, device: torch.device) -> bool:
        """Whether an autoencoder there runs in strips.

        On a CPU the fast one always does: it takes half of the memory, and memory that a process
        does not have yet costs it more time than the strips do.
        """
        return self.strips or self.is_fast_on(device)

    def compiles_on(self, device: torch.device) -> bool:
        """Whether torch compiles models there, whose weights then have to stay where they are."""
        return self.compiled and device.type != "cpu" and not (self.streamed or self.offload)

    def within(self, budget: float) -> Execution:
        """The same with that `weight_budget`, which may be infinite."""
        return replace(self, weight_budget=None if math.isinf(budget) else int(budget))

    def pass_context(self, device: torch.device, weights: ModelWeights) -> PassContext:
        """What passes are told of a model that is to run on that device.

        Args:
            device: where it is to run.
            weights: where the model's parameters come from.
        """
        return PassContext(
            device=device,
            dtype=self.dtype_on(device),
            fast_kernels=self.is_fast_on(device),
            tiled=self.in_strips_on(device),
            sliced_attention_size=self.sliced_attention_size,
            compiled=self.compiles_on(device),
            streamed=self.streamed,
            weight_budget=self.weight_budget,
            weights=weights,
        )
