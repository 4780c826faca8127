"""``sdpy info IMAGE...``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdpy.components import COMPONENTS

if TYPE_CHECKING:  # at run time this would import Pillow
    from sdpy.metadata.read import ImageMetadata

ImageFiles = Annotated[
    list[Path],
    typer.Argument(metavar="IMAGE", help="Image files.", show_default=False),
]


def info(
    images: ImageFiles,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a line for each image.")
    ] = False,
) -> None:
    """Say how images were made.

    That is what sdpy and A1111's web UI write into PNG, JPEG and WebP files; images of ComfyUI,
    InvokeAI and others are read with pip install 'sdpy\\[metadata]'.
    """
    from sdpy.metadata.read import can_read_others, read_metadata

    for k, path in enumerate(images):
        found = read_metadata(path)
        if as_json:
            facts = {} if found is None else found.as_json()
            print(json.dumps({"path": str(path), "program": None, **facts}))
            continue
        if k:
            print()
        print(_plain(f"{path}: " + ("made by " + found.program if found else "says nothing")))
        if found is not None:
            for line in _lines(found, can_read_others()):
                print(f"  {line}")


def _lines(found: ImageMetadata, can_read_others: bool) -> list[str]:
    if found.parameters is None:
        if not can_read_others:
            return ["to read more: pip install 'sdpy[metadata]'"]
        return [f"{key}: {_plain(text)[:200]}" for key, text in found.texts.items()]
    facts = dict(found.parameters.facts)
    lines = [f"prompt: {_plain(found.parameters.prompt)}"]
    if found.parameters.negative_prompt:
        lines.append(f"negative prompt: {_plain(found.parameters.negative_prompt)}")
    lines += [f"{_plain(label)}: {_plain(value)}" for label, value in facts.items()]
    if found.record is not None:
        for file in found.record.files:
            label = COMPONENTS[file.role].label if file.role in COMPONENTS else file.role
            name = _plain(file.name) or "(no file)"
            lines.append(f"{_plain(label)}: {name}, SHA-256 {_plain(file.sha256)}")
        environment = found.record.environment.items()
        lines.append("computed with: " + _plain(", ".join(f"{k} {v}" for k, v in environment)))
    return lines


def _plain(text: str) -> str:
    """Text of a file without what a terminal would obey; line breaks are shown as ``\\n``."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )
