"""``sdpy download NAME...``"""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from sdpy.cli.transfers import Display, display
from sdpy.errors import UsageError
from sdpy.zoo.hub.catalog import MODELS, find_model

if TYPE_CHECKING:  # at run time these would import huggingface_hub
    from sdpy.zoo.hub.fetch import Event
    from sdpy.zoo.hub.plan import Item, Plan

Result = TypeVar("Result")

_HUB = "Hub"
_DEFAULT_DATA = Path("data")


def download(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="What to fetch: one of the names that are listed without NAME, OWNER/NAME of any "
            "repository laid out for diffusers, or OWNER/NAME/FILE.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder that the files go to.")] = _DEFAULT_DATA,
    dtype: Annotated[
        str,
        typer.Option(help="Numbers of the weights: fp32, or fp16, which is half the size."),
    ] = "fp32",
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that differ from the hub's.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the files and their sizes, and fetch nothing."),
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Fetch weights from a model hub into the data folder.

    Without NAME, list what there is. Files that are there already are compared with the hub's
    checksums and not fetched again. A download that broke off goes on where it was when the same
    command is run again. A file appears in its place when it is whole and its checksum right.
    """
    if not names:
        _list_models()
        return
    models = [find_model(name) for name in names]
    if revision is not None and len(models) > 1:
        raise UsageError("--revision belongs to one repository; fetch one NAME at a time with it")

    # What huggingface_hub tells its makers (and asks of their hub before it talks to a mirror).
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from sdpy.zoo.hub.client import Hub, find_endpoint, find_token
    from sdpy.zoo.hub.fetch import check_room, fetch_files, find_missing
    from sdpy.zoo.hub.plan import plan_model

    address = find_endpoint(endpoint)
    hub = Hub(address, find_token(token_file, address))
    with display(quiet) as shown:
        shown.say(f"asking {hub.host}")
        plans = [plan_model(hub, model, data, dtype=dtype, revision=revision) for model in models]
        for note in (note for plan in plans for note in plan.notes):
            shown.say(note)
        items = [item for plan in plans for item in plan.items]
        missing = _watch(find_missing(items, force=force or dry_run), shown)
        if not dry_run:
            check_room(missing, data)
            _fetch(fetch_files(hub, missing), shown)
    if dry_run:
        _print_plan(plans, missing, data)
    elif not quiet:
        _print_usages(plans, data)


def _fetch(events: Generator[Event, None, None], shown: Display) -> None:
    # Closed at once when the user ends it, so that what has arrived is kept whole.
    with closing(events):
        try:
            for event in events:
                shown.show(event)
        except KeyboardInterrupt:
            shown.say("the same command goes on from here")
            raise


def _watch(events: Generator[Event, None, Result], shown: Display) -> Result:
    while True:
        try:
            shown.show(next(events))
        except StopIteration as end:
            result: Result = end.value
            return result


def _list_models() -> None:
    width = max(map(len, MODELS))
    for model in MODELS.values():
        print(f"{model.name:{width}}  {model.summary} ({model.repository})")


def _print_plan(plans: list[Plan], missing: tuple[Item, ...], data: Path) -> None:
    from sdpy.zoo.hub.fetch import free_bytes, gigabytes

    wanted = {item.target for item in missing}
    for plan in plans:
        for item in plan.items:
            state = _state(item, wanted)
            print(f"{state:8} {gigabytes(item.size):>11}  {item.target}  from {_origin(item)}")
    total = gigabytes(sum(item.size for item in missing))
    print(f"to fetch: {total}; free in {data}: {gigabytes(free_bytes(data))}")


def _state(item: Item, wanted: set[Path]) -> str:
    if item.target not in wanted:
        return "present"
    return "differs" if os.path.lexists(item.target) else "missing"


def _origin(item: Item) -> str:
    return f"{item.remote.repository}/{item.remote.path} at {item.remote.commit[:12]}"


def _print_usages(plans: list[Plan], data: Path) -> None:
    folder = "" if data == _DEFAULT_DATA else f" --data {shlex.quote(str(data))}"
    for plan in plans:
        path = shlex.quote(str(plan.path))
        print(plan.usage.format(path=path, data=folder))
