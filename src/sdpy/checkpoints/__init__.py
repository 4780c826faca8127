"""Weights files: reading, writing, and strict loading into models.

One module a format, one line each in ``registry.FORMATS``. Nothing in a file is ever executed.
"""

from sdpy.checkpoints.base import Checkpoint, CheckpointFormat
from sdpy.checkpoints.describe import describe
from sdpy.checkpoints.loading import check_weights, load_weights
from sdpy.checkpoints.lora import Lora, check_loras, merge_loras
from sdpy.checkpoints.registry import FORMATS, read_checkpoint, write_checkpoint

__all__ = [
    "FORMATS",
    "Checkpoint",
    "CheckpointFormat",
    "Lora",
    "check_loras",
    "check_weights",
    "describe",
    "load_weights",
    "merge_loras",
    "read_checkpoint",
    "write_checkpoint",
]
