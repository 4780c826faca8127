"""Other ways to compute the same numbers: passes over a loaded model that it knows nothing of."""

from __future__ import annotations

from sdpy.kernels.acceleration import BUDGET, accelerate_at_first_use
from sdpy.kernels.allocator import give_back_freed_memory, keep_freed_memory
from sdpy.kernels.compiling import compile_network
from sdpy.kernels.sliced_attention import AUTOMATIC, slice_attention
from sdpy.kernels.streaming import PIECE_BYTES, moved, stream_weights
from sdpy.kernels.strips import STRIP_BYTES, compute_in_strips

__all__ = [
    "AUTOMATIC",
    "BUDGET",
    "PIECE_BYTES",
    "STRIP_BYTES",
    "accelerate_at_first_use",
    "compile_network",
    "compute_in_strips",
    "give_back_freed_memory",
    "keep_freed_memory",
    "moved",
    "slice_attention",
    "stream_weights",
]
