"""Other ways to compute the same numbers: passes over a loaded model that it knows nothing of."""

from __future__ import annotations

from sdpy.kernels.acceleration import accelerate_at_first_use
from sdpy.kernels.allocator import keep_freed_memory
from sdpy.kernels.sliced_attention import slice_attention

__all__ = ["accelerate_at_first_use", "keep_freed_memory", "slice_attention"]
