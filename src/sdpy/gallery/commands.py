"""The command that makes an image again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from sdpy.metadata.read import ImageMetadata
from sdpy.metadata.record import ImageRecord
from sdpy.options import given, options_of
from sdpy.pipelines.control_options import ControlOptions
from sdpy.pipelines.inputs import ImageRequest
from sdpy.runtime.options import ModelOptions

COMMANDS = {"text2img": "generate", "img2img": "img2img", "inpaint": "inpaint"}


def command_line(metadata: ImageMetadata, path: Path) -> str:
    """A line for a shell; without sdpy's own record it goes by the file.

    Options that have their defaults are left out.
    """
    if metadata.record is None or metadata.record.task not in COMMANDS:
        return shlex.join(["sdpy", "replay", str(path)])
    return shlex.join(_words(metadata.record))


def _words(record: ImageRecord) -> list[str]:
    options = dict(record.options)
    words = ["sdpy", COMMANDS[record.task]]
    prompt = [record.prompt]
    if record.task != "text2img":
        words += [str(options.get(name) or "-") for name in _inputs(record.task)]
        prompt = [f"--prompt={record.prompt}"]
    flags = _flags()
    for name, value in options.items():
        if name in ("image", "mask") or value in (None, [], "") or _defaults().get(name) == value:
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool):
                words.append(flags[name][0 if one else -1])
            else:
                words.append(f"--{name}={one}")
    dashes = ["--"] if record.prompt.startswith("-") and record.task == "text2img" else []
    return [*words, *dashes, *prompt]


def _inputs(task: str) -> tuple[str, ...]:
    return ("image", "mask") if task == "inpaint" else ("image",)


def _defaults() -> dict[str, Any]:
    values: dict[str, Any] = {}
    for group in (ModelOptions(), ImageRequest(""), ControlOptions()):
        values |= given(group)
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in values.items()
    }


def _flags() -> dict[str, tuple[str, ...]]:
    """The flags of switches, on and off."""
    groups = (ModelOptions, ImageRequest, ControlOptions)
    return {
        one.name: tuple(one.flags[0].split("/"))
        for group in groups
        for _, one in options_of(group)
        if one.flags
    }
