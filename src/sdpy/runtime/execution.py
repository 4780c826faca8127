"""How the models compute: in which dtype, how fast, and in how much memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from sdpy.runtime.devices import cpu_has_bfloat16


@dataclass(frozen=True)
class Execution:
    """How to compute. But for ``dtype``, an image is the same up to rounding.

    Attributes:
        dtype: of the models; see `dtype_on`. Latents and schedulers are always in float32.
        memory: "auto" to need no more than there is, "low" to need as little as possible, or how
            many bytes this process may take. `sdpy.runtime.planner` then sets ``tiled``,
            ``streamed``, ``sliced_attention_size`` and ``weight_budget`` before anything is loaded.
        fast_kernels: compute convolutions and others in faster ways where there are such: on the
            CPU in float32 and in bfloat16.
        sliced_attention_size: heads of a batch computed together; None for all of them.
        tiled: run the autoencoder in tiles; see `is_tiled_on`.
        streamed: have weights in memory, or on the GPU, only while their layer runs.
        offload: keep models that are for a GPU in main memory while they do not run.
        compile: have torch compile the UNet and the autoencoder for a GPU; see `compiles_on`.
        cuda_graphs: have each step of the denoising loop launched as one; see `captures_on`.
        weight_budget: bytes that may be spent on faster forms of the weights; None for any number.
    """

    dtype: torch.dtype = torch.float32
    memory: str | int = "auto"
    fast_kernels: bool = True
    sliced_attention_size: int | None = None
    tiled: bool = False
    streamed: bool = False
    offload: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    weight_budget: int | None = None

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """In what the models on this device compute.

        On the CPU it is float32, unless bfloat16 is asked for and the processor has it: without
        instructions of its own, a shorter dtype is no faster there.
        """
        if device.type != "cpu" or (self.dtype == torch.bfloat16 and cpu_has_bfloat16()):
            return self.dtype
        return torch.float32

    def is_fast_on(self, device: torch.device) -> bool:
        """Whether models on this device are computed with the fast kernels."""
        return self.fast_kernels and device.type == "cpu"

    def is_tiled_on(self, device: torch.device) -> bool:
        """Whether an autoencoder on this device runs in tiles.

        With the fast kernels of a CPU it always does: it takes half of the memory, and memory that
        a process does not have yet costs it more time than the tiles do.
        """
        return self.tiled or self.is_fast_on(device)

    def compiles_on(self, device: torch.device) -> bool:
        """Whether torch compiles models there, whose weights then have to stay where they are."""
        return self.compile and device.type != "cpu" and not (self.streamed or self.offload)

    def captures_on(self, device: torch.device) -> bool:
        """Whether steps are captured there as CUDA graphs, as they are of compiled models, too."""
        wanted = self.cuda_graphs or self.compile
        return wanted and device.type == "cuda" and not (self.streamed or self.offload)

    def offloads_on(self, device: torch.device) -> bool:
        """Whether models for this device stay in main memory while they do not run."""
        return self.offload and device.type != "cpu" and not self.streamed

    def within(self, budget: float) -> Execution:
        """The same with that `weight_budget`, which may be infinite."""
        return replace(self, weight_budget=None if math.isinf(budget) else int(budget))
