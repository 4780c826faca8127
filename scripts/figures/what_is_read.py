"""``python -m scripts.figures.what_is_read``: tries what sdpy reads, and what it does not.

Each component of a small model is written in each form that other programs write, and looked at. So
are files of other kinds, with what sdpy says of them. The tables are in ``docs/models.md``.
"""

from __future__ import annotations

import json
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.reports import tell, write_between
from sdpy.checkpoints import write_checkpoint
from sdpy.checkpoints.dialects import DIFFUSERS, OLD_DIFFUSERS, ORIGINAL, in_dialect
from sdpy.errors import SdpyError
from sdpy.models import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    CLIPTextConfig,
    ControlNetConfig,
    ControlNetUnionConfig,
    T2IAdapterConfig,
    UNet2DConditionConfig,
)
from sdpy.zoo.classes import make_model
from sdpy.zoo.inspect import inspect_weights
from sdpy.zoo.variants import Config

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
Write = Callable[[Path, Mapping[str, Tensor]], Path]


def _by_suffix(suffix: str) -> Write:
    def write(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
        path = folder / f"x{suffix}"
        write_checkpoint(path, tensors)
        return path

    return write


def _legacy(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    torch.save(dict(tensors), folder / "x.pth", _use_new_zipfile_serialization=False)
    return folder / "x.pth"


def _compressed(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez_compressed(folder / "x.npz", **arrays)
    return folder / "x.npz"


def _shards(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        shard = f"x-{number}.safetensors"
        write_checkpoint(folder / shard, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    path = folder / "x.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


FORMATS: dict[str, Write] = {
    ".safetensors": _by_suffix(".safetensors"),
    "in shards": _shards,
    ".ckpt, .pt, .pth, .bin": _by_suffix(".ckpt"),
    "the same until torch 1.5": _legacy,
    ".ot": _by_suffix(".ot"),
    ".npz": _by_suffix(".npz"),
    ".npz, compressed": _compressed,
}
DIALECTS = {
    "today's diffusers": (DIFFUSERS, "sd1"),
    "diffusers until 0.17": (OLD_DIFFUSERS, "sd1"),
    "original, as of 1.x": (ORIGINAL, "sd1"),
    "original, as of 2.x": (ORIGINAL, "sd2"),
    "original, as of XL": (ORIGINAL, "sdxl"),
}
_TEXT = CLIPTextConfig(514, 16, 32, 2, 2)
_UNET = UNet2DConditionConfig(
    block_out_channels=(16, 16),
    cross_attention=(True, False),
    attention_heads=(2, 2),
    layers_per_block=1,
    cross_attention_dim=16,
    norm_num_groups=8,
)
_XL_UNET = replace(
    _UNET,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=64,
)
_UNION = ControlNetUnionConfig(_XL_UNET, 3, (4, 8), num_trans_channel=16, num_proj_channel=16)
COMPONENTS: dict[str, tuple[str, Config]] = {
    "text encoder": ("text_encoder", _TEXT),
    "second text encoder (XL)": ("text_encoder_2", replace(_TEXT, projection_dim=16)),
    "UNet": ("unet", _UNET),
    "autoencoder": ("vae", AutoencoderKLConfig(block_out_channels=(8, 8), norm_num_groups=8)),
    "TAESD": ("vae", AutoencoderTinyConfig()),
    "ControlNet": ("controlnet", ControlNetConfig(_UNET, 3, (4, 8))),
    "ControlNet-Union": ("controlnet", _UNION),
    "T2I-Adapter": ("t2i_adapter", T2IAdapterConfig(channels=(8, 16, 16, 16))),
}


def is_read(component: str, config: Config, dialect: tuple[str, str], write: Write) -> bool | None:
    """Whether such a file is recognised and fits; None where there are no such files."""
    name, family = dialect
    state = make_model(component, config).state_dict()
    tensors = {key: torch.rand(tensor.shape) for key, tensor in state.items()}
    try:
        recipes = in_dialect(component, list(tensors), name, family=family)
    except ValueError:
        return None
    made = {key: recipe.make(tensors) for key, recipe in recipes.items()}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = inspect_weights(write(Path(folder), made))
        except SdpyError:
            return False
    (one,) = found.components
    same = one.name is not None and one.name.removesuffix("_2") == component.removesuffix("_2")
    return same and not any(one.problems.values())


def table_of_components() -> str:
    """What is read, by component and names; each is tried in all formats."""
    lines = [f"| | {' | '.join(DIALECTS)} |", "|---" * (len(DIALECTS) + 1) + "|"]
    for label, (component, config) in COMPONENTS.items():
        cells = []
        for dialect in DIALECTS.values():
            seen = {name: is_read(component, config, dialect, w) for name, w in FORMATS.items()}
            failing = [name for name, read in seen.items() if read is False]
            if None in seen.values():
                cells.append("–")
            else:
                cells.append("yes" if not failing else f"not {', '.join(failing)}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
        tell(lines[-1])
    return "\n".join(lines)


def _safetensors(dtype: str) -> bytes:
    entry = {"dtype": dtype, "shape": [8], "data_offsets": [0, 4 if dtype == "F4" else 8]}
    text = json.dumps({"conv_in.weight": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


def _zip(names: list[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "text")
        return path.read_bytes()


OTHERS: dict[str, bytes] = {
    "GGUF": b"GGUF\x03\0\0\0" + bytes(100),
    "GGML": b"ggml" + bytes(100),
    "Keras, HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "safetensors with 4-bit numbers": _safetensors("F4"),
    "safetensors with 8-bit scales": _safetensors("F8_E8M0"),
    "a single NumPy array": b"\x93NUMPY\x01\0" + bytes(100),
    "a pickle of other programs": b"\x80\x04K\x01.",
    "a zip archive of something else": _zip(["a.txt"]),
    "gzip": b"\x1f\x8b" + bytes(20),
    "an unfinished download": bytes(5000),
    "git-lfs's pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "a web page": b"<!DOCTYPE html><html>",
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "JSON": b"{}",
}


def answer_to(data: bytes) -> str:
    """What sdpy says of a file, without its name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "FILE"
        path.write_bytes(data)
        try:
            inspect_weights(path)
        except SdpyError as error:
            return re.sub(f"^(cannot read )?{re.escape(str(path))}:? ", "", str(error))
    return "is read"


def table_of_others() -> str:
    """What is not read, and what sdpy says of it."""
    rows = [f"| {label} | {answer_to(data)} |" for label, data in OTHERS.items()]
    return "\n".join(["| file | answer |", "|---|---|", *rows])


TABLES = {"what is read": table_of_components, "what is not read": table_of_others}


def main() -> None:
    """Try everything and write the tables."""
    for name, make in TABLES.items():
        write_between(DOCS, name, make())


if __name__ == "__main__":
    main()
