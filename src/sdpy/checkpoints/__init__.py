"""Weights files: reading, writing, and strict loading into models.

One module a format, one line each in ``registry.FORMATS``. Nothing in a file is ever executed.
"""

from sdpy.checkpoints.adapters import (
    Change,
    Lora,
    adapter_dialect,
    check_loras,
    describe_adapter,
    find_lora,
    is_adapter,
    is_lora_folder,
    lora_changes,
    lora_files,
    lora_fingerprint,
    merge_loras,
)
from sdpy.checkpoints.base import (
    DTYPES_BY_NAME,
    Checkpoint,
    CheckpointFormat,
    LazyTensors,
    MappedFile,
)
from sdpy.checkpoints.conversion import Output, plan_output, write_output
from sdpy.checkpoints.dialects import (
    DIFFUSERS,
    OLD_DIFFUSERS,
    ORIGINAL,
    Origin,
    Part,
    find_parts,
)
from sdpy.checkpoints.ema import holds_averages, holds_only_averages, without_plain
from sdpy.checkpoints.folders import (
    ModelFolder,
    config_beside,
    find_weights,
    is_model_folder,
    read_model_folder,
)
from sdpy.checkpoints.hashes import Hashes
from sdpy.checkpoints.kinds import guess_kind
from sdpy.checkpoints.loading import (
    Weights,
    check_weights,
    load_weights,
    misfits,
    open_weights,
    outline_of,
)
from sdpy.checkpoints.registry import (
    FORMATS,
    FileState,
    file_state,
    fingerprint,
    read_checkpoint,
    write_checkpoint,
)
from sdpy.checkpoints.textual_inversion import (
    TextualInversion,
    bundled_textual_inversions,
    describe_textual_inversion,
    read_textual_inversions,
)

__all__ = [
    "DIFFUSERS",
    "DTYPES_BY_NAME",
    "FORMATS",
    "OLD_DIFFUSERS",
    "ORIGINAL",
    "Change",
    "Checkpoint",
    "CheckpointFormat",
    "FileState",
    "Hashes",
    "LazyTensors",
    "Lora",
    "MappedFile",
    "ModelFolder",
    "Origin",
    "Output",
    "Part",
    "TextualInversion",
    "Weights",
    "adapter_dialect",
    "bundled_textual_inversions",
    "check_loras",
    "check_weights",
    "config_beside",
    "file_state",
    "describe_adapter",
    "describe_textual_inversion",
    "find_lora",
    "find_parts",
    "find_weights",
    "fingerprint",
    "guess_kind",
    "holds_averages",
    "holds_only_averages",
    "is_adapter",
    "is_lora_folder",
    "is_model_folder",
    "load_weights",
    "lora_changes",
    "lora_files",
    "lora_fingerprint",
    "merge_loras",
    "misfits",
    "open_weights",
    "outline_of",
    "plan_output",
    "read_checkpoint",
    "read_model_folder",
    "read_textual_inversions",
    "without_plain",
    "write_checkpoint",
    "write_output",
]
