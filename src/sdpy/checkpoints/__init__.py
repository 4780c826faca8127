"""Weights files: reading, writing, and strict loading into models.

One module a format, one line each in ``registry.FORMATS``. Nothing in a file is ever executed.
"""

from sdpy.checkpoints.base import Checkpoint, CheckpointFormat
from sdpy.checkpoints.describe import describe
from sdpy.checkpoints.loading import check_weights, load_weights
from sdpy.checkpoints.registry import FORMATS, read_checkpoint, write_checkpoint
from sdpy.checkpoints.textual_inversion import TextualInversion, read_textual_inversion

__all__ = [
    "FORMATS",
    "Checkpoint",
    "CheckpointFormat",
    "TextualInversion",
    "check_weights",
    "describe",
    "load_weights",
    "read_checkpoint",
    "read_textual_inversion",
    "write_checkpoint",
]
