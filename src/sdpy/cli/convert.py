"""``sdpy convert IN OUT``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdpy.cli.options import EmaOption, VariantOption
from sdpy.cli.terminal import answer, tell
from sdpy.components import COMPONENTS
from sdpy.errors import OutputError, UsageError
from sdpy.options import either

if TYPE_CHECKING:  # at run time this would import torch
    from sdpy.zoo.inspect import Inspection


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="A weights file, a diffusers folder or a folder of component files.",
            show_default=False,
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A file in .ot, .safetensors, .npz, .bin, .pt or .ckpt; or a folder.",
            show_default=False,
        ),
    ],
    layout: Annotated[
        str | None,
        typer.Option(
            show_default="what suits IN and OUT",
            help="diffusers: a folder, or one component by these names. original: the names of "
            "the first programs, all components in one file. ot: the names that the OCaml and "
            "the Rust program need, .ot files in a folder.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(show_default="all", help=f"Convert only {either(COMPONENTS)}."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(show_default="that of IN", help="Numbers of OUT: fp32, fp16 or bf16."),
    ] = None,
    prediction: Annotated[
        str | None,
        typer.Option(
            "--prediction-type",
            "--prediction",
            metavar="TEXT",
            show_default="what IN says",
            help="What the UNet predicts, for a folder: epsilon, v_prediction or sample.",
        ),
    ] = None,
    vocab_file: Annotated[
        Path | None,
        typer.Option(
            show_default="IN's, or bpe_simple_vocab_16e6.txt in DATA",
            help="CLIP's merges, for a folder.",
        ),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder of the vocabulary.")] = Path("data"),
    variant: VariantOption = None,
    ema: EmaOption = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace what is there already.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Convert weights into another format or layout.

    Every number stays as it is, to the last bit, unless --dtype asks for others. Memory holds a
    few tensors at a time, however large the files are. Each file is written atomically.

    \b
    sdpy convert v1-5.ckpt v1-5.safetensors            one file, the same names
    sdpy convert v1-5.safetensors sd15                 a diffusers folder
    sdpy convert v1-5.safetensors data --layout ot     .ot files for sdpy's DATA
    sdpy convert sd15 v1-5.safetensors --dtype fp16    one file, half the size
    sdpy convert v1-5.safetensors vae.ot --part vae    one component
    """
    from sdpy.checkpoints import DTYPES_BY_NAME
    from sdpy.schedulers import PREDICTION_TYPES
    from sdpy.zoo.convert import plan_conversion
    from sdpy.zoo.inspect import inspect_weights

    if dtype is not None and dtype not in DTYPES_BY_NAME:
        raise UsageError(f"unknown --dtype '{dtype}': use one of {', '.join(DTYPES_BY_NAME)}")
    if prediction is not None and prediction not in PREDICTION_TYPES:
        raise UsageError(
            f"unknown --prediction-type '{prediction}': use one of {', '.join(PREDICTION_TYPES)}"
        )
    if os.path.isfile(target) and not force:
        raise OutputError(f"{target} exists; --force replaces it")
    found = inspect_weights(source, variant=variant, ema=ema)
    done = _Done()
    plan = plan_conversion(
        found,
        target,
        layout=layout,
        part=part,
        dtype=None if dtype is None else DTYPES_BY_NAME[dtype],
        vocabulary=_vocabulary(found, vocab_file, data),
        prediction=prediction,
        advance=done,
    )
    written = [output.path for output in plan.outputs] + list(plan.texts)
    existing = [path for path in written if os.path.exists(path)]
    if existing and not force:
        raise OutputError(f"{existing[0]} exists; --force replaces it")
    if not quiet:
        for notice in plan.notices:
            tell(notice)
    with _bar(plan.size, quiet) as show:
        done.show = show
        for _ in plan.run():
            pass
        show(plan.size)
    if not quiet:
        answer(str(target))


def _vocabulary(found: Inspection, given: Path | None, data: Path) -> Path | None:
    from sdpy.zoo.variants import SD15

    if given is not None:
        return given
    candidates = [data / name for name in SD15.files.vocabulary]
    if found.vocabulary is not None:
        candidates.insert(0, found.vocabulary)
    return next((path for path in candidates if os.path.isfile(path)), None)


class _Done:
    """Counts the bytes that are written."""

    def __init__(self) -> None:
        self.bytes = 0
        self.show: Callable[[int], None] = lambda done: None

    def __call__(self, more: int) -> None:
        self.bytes += more
        self.show(self.bytes)


@contextmanager
def _bar(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how many of the bytes are written; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("converting"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)
