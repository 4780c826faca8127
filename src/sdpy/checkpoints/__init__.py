"""Weights files: reading, writing, and strict loading into models.

One module a format, one line each in ``registry.FORMATS``. Nothing in a file is ever executed.
"""

from sdpy.checkpoints.base import Checkpoint, CheckpointFormat, LazyTensors
from sdpy.checkpoints.describe import describe
from sdpy.checkpoints.dialects import COMPONENTS, LABELS, Part, find_parts
from sdpy.checkpoints.folders import (
    ModelFolder,
    config_beside,
    is_model_folder,
    read_model_folder,
)
from sdpy.checkpoints.loading import check_weights, load_weights, misfits, read_part
from sdpy.checkpoints.registry import FORMATS, read_checkpoint, write_checkpoint

__all__ = [
    "COMPONENTS",
    "FORMATS",
    "LABELS",
    "Checkpoint",
    "CheckpointFormat",
    "LazyTensors",
    "ModelFolder",
    "Part",
    "check_weights",
    "config_beside",
    "describe",
    "find_parts",
    "is_model_folder",
    "load_weights",
    "misfits",
    "read_checkpoint",
    "read_model_folder",
    "read_part",
    "write_checkpoint",
]
