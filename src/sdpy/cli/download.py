"""``sdpy download NAME...``."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from sdpy.cli.display import ProgressBar, ProgressDisplay, open_display
from sdpy.cli.terminal import answer
from sdpy.errors import UsageError
from sdpy.zoo.hub.catalog import MODELS, find_hub_model

if TYPE_CHECKING:  # at run time these would import huggingface_hub
    from sdpy.zoo.hub.fetch import Event, FileProgress
    from sdpy.zoo.hub.plan import DownloadPlan, PlannedFile

Result = TypeVar("Result")

_HUB = "Hub"
_DEFAULT_DATA = Path("data")


def download(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="What to download: one of the names that are listed without NAME, OWNER/NAME of "
            "any repository in the layout of diffusers, or OWNER/NAME/FILE.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder for the files.")] = _DEFAULT_DATA,
    dtype: Annotated[
        str,
        typer.Option(help="Precision of the weights: fp32, or fp16, which is half the size."),
    ] = "fp32",
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that differ from the hub's.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the files and their sizes, and download nothing."),
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            show_default="main",
            help="Branch, tag or commit of the repository.",
            rich_help_panel=_HUB,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default="HF_ENDPOINT, or the Hugging Face hub",
            help="Address of the hub, or of a mirror.",
            rich_help_panel=_HUB,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="HF_TOKEN",
            help="File with an access token, for gated and private repositories.",
            rich_help_panel=_HUB,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print a JSON object: the known models; or what is, or would be, downloaded.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Download weights from a model hub into the data folder.

    Without NAME, list the known models. Files that exist already are compared with the hub's
    checksums and not downloaded again. A download that broke off is resumed by running the same
    command again. Files are written atomically, once their checksum has been verified.
    """
    if not names:
        _list_models(as_json)
        return
    models = [find_hub_model(name) for name in names]
    if revision is not None and len(models) > 1:
        raise UsageError("--revision belongs to one repository; give one NAME with it")

    # No statistics for its makers (asked of their hub before it talks to a mirror), and no messages
    # of its own: among them are texts of the hub's, as they came.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
    from sdpy.zoo.hub.client import Hub, find_endpoint, find_token
    from sdpy.zoo.hub.fetch import check_disk_space, fetch_files, find_missing
    from sdpy.zoo.hub.plan import plan_download

    address = find_endpoint(endpoint)
    hub = Hub(address, find_token(token_file, address))
    with open_display(quiet) as display:
        display.line(f"asking {hub.host}")
        plans = [
            plan_download(hub, model, data, dtype=dtype, revision=revision) for model in models
        ]
        for note in (note for plan in plans for note in plan.notes):
            display.line(note)
        bars = _FileBars(display)
        files = [file for plan in plans for file in plan.files]
        missing = _result(find_missing(files, force=force or dry_run), bars)
        facts = _facts(plans, missing)
        if not dry_run:
            check_disk_space(missing, data)
            _fetch(fetch_files(hub, missing), bars)
    if as_json:
        print(json.dumps(facts, indent=2))
    elif dry_run:
        _print_plan(plans, missing, data)
    elif not quiet:
        _print_usages(plans, data)


class _FileBars:
    """A bar for each file that is checked or downloaded."""

    def __init__(self, display: ProgressDisplay) -> None:
        self.display = display
        self.bars: dict[tuple[str, Path], ProgressBar] = {}

    def show(self, progress: FileProgress) -> None:
        key = (progress.action, progress.file.target)
        if key not in self.bars:
            label = f"{progress.action} {progress.file.target}"
            self.bars[key] = self.display.bar(progress.file.size, label, "bytes")
        self.bars[key].update(progress.done)


def _fetch(events: Generator[Event, None, None], bars: _FileBars) -> None:
    from sdpy.zoo.hub.fetch import Notice

    # Closed at once when the user interrupts it, so that everything that has arrived is on disk.
    with closing(events):
        try:
            for event in events:
                if isinstance(event, Notice):
                    bars.display.line(event.text)
                else:
                    bars.show(event)
        except KeyboardInterrupt:
            bars.display.line("the same command resumes from here")
            raise


def _result(steps: Generator[FileProgress, None, Result], bars: _FileBars) -> Result:
    while True:
        try:
            bars.show(next(steps))
        except StopIteration as end:
            result: Result = end.value
            return result


def _list_models(as_json: bool) -> None:
    if as_json:
        facts = {
            model.name: {"summary": model.summary, "repository": model.repository}
            for model in MODELS.values()
        }
        print(json.dumps({"models": facts}, indent=2))
        return
    width = max(map(len, MODELS))
    for model in MODELS.values():
        answer(f"{model.name:{width}}  {model.summary} ({model.repository})")


def _print_plan(plans: list[DownloadPlan], missing: tuple[PlannedFile, ...], data: Path) -> None:
    from sdpy.zoo.hub.fetch import format_size, free_bytes

    wanted = {file.target for file in missing}
    for plan in plans:
        for file in plan.files:
            state = _state(file, wanted)
            answer(f"{state:8} {format_size(file.size):>11}  {file.target}  from {_origin(file)}")
    total = format_size(sum(file.size for file in missing))
    answer(f"to download: {total}; free in {data}: {format_size(free_bytes(data))}")


def _facts(plans: list[DownloadPlan], missing: tuple[PlannedFile, ...]) -> dict[str, object]:
    """What is planned, and the state that each file is in before."""
    wanted = {file.target for file in missing}
    files = [
        {
            "path": str(file.target),
            "size": file.size,
            "state": _state(file, wanted),
            "repository": file.remote.repository,
            "file": file.remote.path,
            "commit": file.remote.commit,
        }
        for plan in plans
        for file in plan.files
    ]
    return {"paths": [str(plan.path) for plan in plans], "files": files}


def _state(file: PlannedFile, wanted: set[Path]) -> str:
    if file.target not in wanted:
        return "present"
    return "differs" if os.path.lexists(file.target) else "missing"


def _origin(file: PlannedFile) -> str:
    return f"{file.remote.repository}/{file.remote.path} at {file.remote.commit[:12]}"


def _print_usages(plans: list[DownloadPlan], data: Path) -> None:
    folder = "" if data == _DEFAULT_DATA else f" --data {shlex.quote(str(data))}"
    for plan in plans:
        path = shlex.quote(str(plan.path))
        answer(plan.usage.format(path=path, data=folder))
