"""``sdpy inspect FILE``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpy.cli.options import EmaOption, VariantOption
from sdpy.cli.terminal import visible
from sdpy.components import label_of

if TYPE_CHECKING:  # at run time these would import torch
    from sdpy.zoo.inspect import InspectedComponent, Inspection

_SHOWN = 5


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A weights file, a diffusers folder or a folder of component files.",
            show_default=False,
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything, for programs.")
    ] = False,
    variant: VariantOption = None,
    ema: EmaOption = False,
) -> None:
    """Say what a weights file is.

    Its format, whose names it uses, its components with their sizes, which Stable Diffusion it is
    of, and what is missing or unexpected in it. Nothing in the file is run, and its numbers are
    not read.
    """
    from sdpy.zoo.inspect import inspect_weights

    found = inspect_weights(path, variant=variant, ema=ema)
    if as_json:
        print(json.dumps(_as_json(found), indent=2, ensure_ascii=False))
    else:
        for line in _lines(found):
            print(visible(line))


def _lines(found: Inspection) -> list[str]:
    size = sum(file.stat().st_size for file in found.files)
    formats = ", ".join(dict.fromkeys(one.weights.checkpoint.format for one in found.components))
    what = formats if found.kind == "file" else f"{found.kind} ({formats})"
    rows = [("path", str(found.path)), ("format", what), ("size", _bytes(size))]
    if found.variant is not None:
        rows.append(("variant", f"{found.variant.name}: {found.variant.summary}"))
        rows.append(("predicts", found.variant.noise.prediction_type))
    rows += [("note", text) for text in found.assumptions]
    if found.kind != "file":
        rows.append(("vocabulary", str(found.vocabulary or "none")))
    for one in found.components:
        rows += _component_rows(one, within_folder=found.kind != "file")
    if found.unexpected:
        listed = f"{len(found.unexpected)} keys: {_some(list(found.unexpected))}"
        rows.append(("unexpected", listed))
    width = max(len(label) for label, _ in rows)
    return [f"{label:{width}}  {text}" for label, text in rows]


def _component_rows(one: InspectedComponent, *, within_folder: bool) -> list[tuple[str, str]]:
    from sdpy.checkpoints import holds_averages
    from sdpy.checkpoints.base import printable

    dtypes = ", ".join(
        dtype if len(one.dtypes) == 1 else f"{dtype} ({count})"
        for dtype, count in one.dtypes.items()
    )
    label = label_of(one.name, "weights")
    rows = [
        (label, printable(one.summary or "of no kind that sdpy knows")),
        ("", f"{one.parameters:,} parameters in {len(one.tensors):,} tensors, {dtypes or 'none'}"),
        ("", f"{one.weights.part.dialect} names"),
    ]
    if one.weights.part.is_averaged:
        rows.append(("", "averaged weights (EMA)"))
    elif one.name == "unet" and holds_averages(one.weights.checkpoint.outline):
        rows.append(("", "averaged weights (EMA) beside these; --ema shows them"))
    if within_folder:
        rows.append(("", str(one.weights.checkpoint.path)))
    dropped = one.weights.part.dropped
    if dropped:
        rows.append(("", f"{len(dropped)} not needed: {_some(list(dropped))}"))
    rows += [("", f"{len(cases)} {fault}: {_some(cases)}") for fault, cases in one.problems.items()]
    return rows


def _some(cases: list[str]) -> str:
    from sdpy.checkpoints.base import printable

    shown = ", ".join(printable(case) for case in cases[:_SHOWN])
    return shown + (", ..." if len(cases) > _SHOWN else "")


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit} ({size:,} bytes)"
    return f"{size} bytes"


def _as_json(found: Inspection) -> dict[str, Any]:
    variant = found.variant
    return {
        "path": str(found.path),
        "kind": found.kind,
        "size": sum(file.stat().st_size for file in found.files),
        "variant": None if variant is None else variant.name,
        "prediction_type": None if variant is None else variant.noise.prediction_type,
        "assumptions": list(found.assumptions),
        "vocabulary": None if found.vocabulary is None else str(found.vocabulary),
        "metadata": dict(found.metadata),
        "unexpected_keys": list(found.unexpected),
        "components": [
            {
                "component": one.name,
                "path": str(one.weights.checkpoint.path),
                "format": one.weights.checkpoint.format,
                "dialect": one.weights.part.dialect,
                "ema": one.weights.part.is_averaged,
                "summary": one.summary,
                "tensors": len(one.tensors),
                "parameters": one.parameters,
                "dtypes": one.dtypes,
                "config": None if one.config is None else asdict(one.config),
                "not_needed": list(one.weights.part.dropped),
                "problems": {fault: list(cases) for fault, cases in one.problems.items()},
            }
            for one in found.components
        ],
    }
