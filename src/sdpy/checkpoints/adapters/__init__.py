"""Adapters: LoRAs and their kin, small changes to a model's weights in files of their own.

Each kind is a module with a class that says by which tensors one knows it and what it adds to a
weight; `registry` lists them. `names` knows whose layer a tensor is for, `settings` what peft wrote
beside it, `files` where a LoRA is, and `merging` brings these together.

Every kind adds a share, its weight, of what it would add as a whole. So 0 changes nothing, 1 is
what it was trained to do, and in between all kinds are linear.
"""

from sdpy.checkpoints.adapters.files import (
    Lora,
    find_lora,
    is_lora_folder,
    lora_files,
    lora_fingerprint,
)
from sdpy.checkpoints.adapters.kinds import adapter_dialect, describe_adapter
from sdpy.checkpoints.adapters.merging import Change, check_loras, lora_changes, merge_loras
from sdpy.checkpoints.adapters.registry import is_adapter

__all__ = [
    "Change",
    "Lora",
    "adapter_dialect",
    "check_loras",
    "describe_adapter",
    "find_lora",
    "is_adapter",
    "is_lora_folder",
    "lora_changes",
    "lora_files",
    "lora_fingerprint",
    "merge_loras",
]
