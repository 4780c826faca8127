"""Where the files of a LoRA are: the path of one, of a folder, or a name in a folder of LoRAs."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdpy.checkpoints.base import printable
from sdpy.checkpoints.registry import FORMATS, FileState, fingerprint, read_checkpoint
from sdpy.errors import UsageError, WeightsError

CONFIG = "adapter_config.json"
"""What peft writes beside an adapter's weights."""

NAMES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)
"""Files that diffusers and peft write into the folder of a LoRA; the first that exists is taken."""

SUFFIXES = tuple(suffix for form in FORMATS.values() for suffix in form.suffixes)
_SHOWN = 3


@dataclass(frozen=True)
class Lora:
    """A LoRA, or an adapter of another kind, and how much of it to add.

    Attributes:
        path: its file or folder; see `lora_files`.
        weight: 0 for nothing, 1 for what it was trained to do, below 0 for the contrary.
    """

    path: Path
    weight: float = 1.0


def is_lora_folder(path: Path) -> bool:
    """Whether a path is a folder that diffusers or peft wrote for a LoRA."""
    return any(os.path.isfile(path / name) for name in NAMES)


def lora_files(path: Path) -> tuple[Path, ...]:
    """The weights files of a LoRA.

    Args:
        path: of a file, or of a folder: one that diffusers or peft wrote, one with such a folder
            for each component, or one that holds a single weights file.

    Raises:
        WeightsError: the folder holds none of these.
    """
    if not os.path.isdir(path):
        return (path,)
    found = _files_of(path)
    if not found:
        raise WeightsError(
            f"{path} is a folder without a LoRA: looked for {', '.join(NAMES[:2])}, or a single "
            "weights file"
        )
    if len(found) > 1 and found[0].parent == path:
        names = ", ".join(printable(file.name) for file in found[:_SHOWN])
        more = ", ..." if len(found) > _SHOWN else ""
        raise WeightsError(f"{path} holds several weights files ({names}{more}); name one of them")
    return found


def lora_fingerprint(path: Path) -> tuple[FileState, ...]:
    """What identifies a LoRA: the state of all files that are read of it.

    Raises:
        WeightsError: a file is missing.
    """
    return tuple(
        state
        for file in lora_files(path)
        for one in (file, file.parent / CONFIG)
        if one is file or os.path.isfile(one)
        for state in fingerprint(one)
    )


def find_lora(name: str, folder: Path) -> Path:
    """The LoRA of that name in a folder of LoRAs and in the folders below it.

    Args:
        name: a path in the folder, with or without the extension, or the last part of one; in
            upper or lower case, if nothing else fits. As a last resort, the name under which
            kohya's training program saved it, which people's prompts say.
        folder: of the LoRAs.

    Returns:
        The path of a file, or of a folder as `lora_files` takes it.

    Raises:
        UsageError: there is none of that name, or several.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"the folder of LoRAs, {folder}, does not exist; name it with --lora-dir")
    names: dict[Path, tuple[str, ...]] = {path: _names(path, folder) for path in _loras(folder)}
    wanted = name.replace("\\", "/").strip("/")
    found = [path for path, own in names.items() if wanted in own]
    if not found:
        folded = wanted.casefold()
        found = [p for p, own in names.items() if folded in (one.casefold() for one in own)]
    if not found:
        found = [path for path in names if _trained_name(path) == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(printable(str(path.relative_to(folder))) for path in found[:_SHOWN])
        more = ", ..." if len(found) > _SHOWN else ""
        raise UsageError(f"several LoRAs in {folder} are called '{name}': {listed}{more}")
    near = difflib.get_close_matches(wanted, [own[-1] for own in names.values()], _SHOWN)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise UsageError(f"no LoRA in {folder} is called '{printable(name)}'{hint}")


def _loras(folder: Path) -> Iterator[Path]:
    """The LoRAs in a folder and below it, in alphabetical order."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            if is_lora_folder(entry):
                yield entry
            else:
                yield from _loras(entry)
        elif entry.suffix.lower() in SUFFIXES:
            yield entry


def _names(path: Path, folder: Path) -> tuple[str, ...]:
    """How a LoRA may be called, the usual way last."""
    whole = path.relative_to(folder).as_posix()
    suffix = "" if path.is_dir() else path.suffix
    return whole, whole.removesuffix(suffix), path.name, path.name.removesuffix(suffix)


def _trained_name(path: Path) -> str | None:
    try:
        return read_checkpoint(lora_files(path)[0]).metadata.get("ss_output_name")
    except WeightsError:
        return None


def _files_of(folder: Path) -> tuple[Path, ...]:
    for name in NAMES:
        if (folder / name).is_file():
            return (folder / name,)
    below = [child for child in sorted(folder.iterdir()) if child.is_dir()]
    found = [
        next((child / name for name in NAMES if (child / name).is_file()), None) for child in below
    ]
    parts = tuple(file for file in found if file is not None)
    if parts:
        return parts
    files = (file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES)
    return tuple(file for file in files if file.is_file())
