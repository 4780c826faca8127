"""How far the bytes of files are: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:  # at run time these would import huggingface_hub
    from sdpy.zoo.hub.fetch import Event, Transfer

SECONDS_BETWEEN_LINES = 10.0


class Display(Protocol):
    """Shows how far a transfer is."""

    def show(self, event: Event) -> None:
        """Some bytes more, or a remark."""

    def say(self, text: str) -> None:
        """Print a line."""


def display(quiet: bool) -> AbstractContextManager[Display]:
    """What fits stderr."""
    if quiet:
        return nullcontext(Silence())
    return Bar() if sys.stderr.isatty() else nullcontext(Lines())


class Silence:
    """Shows nothing."""

    def show(self, event: Event) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""


class Lines:
    """A line when a file is whole, and now and then before."""

    def __init__(self) -> None:
        self.current: tuple[str, object] = ("", None)
        self.started = self.printed = 0.0
        self.first = 0

    def show(self, event: Event) -> None:
        """Print a line, unless the last one is recent."""
        from sdpy.zoo.hub.fetch import Remark, gigabytes

        if isinstance(event, Remark):
            self.say(event.text)
            return
        now, size = time.monotonic(), event.item.size
        if self.current != (event.action, event.item):
            self.current = (event.action, event.item)
            self.started = self.printed = now
            self.first = event.done
        whole = event.done == size
        if not whole and now - self.printed < SECONDS_BETWEEN_LINES:
            return
        self.printed = now
        speed = (event.done - self.first) / max(now - self.started, 1e-3)
        left = "" if whole or not speed else f", {(size - event.done) / speed:.0f} s left"
        self.say(
            f"{event.action} {event.item.target}: {gigabytes(event.done)} of {gigabytes(size)}"
            f"{left}"
        )

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A bar for each file, with its speed and the time that is left."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            # Rich would print on stderr what is meant for a file or pipe.
            redirect_stdout=sys.stdout.isatty(),
        )
        self.tasks: dict[tuple[str, object], TaskID] = {}

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, event: Event) -> None:
        """Move the file's bar."""
        from sdpy.zoo.hub.fetch import Remark

        if isinstance(event, Remark):
            self.say(event.text)
            return
        self.bar.update(self._task(event), completed=event.done)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.bar.console.print(text, markup=False, highlight=False)

    def _task(self, event: Transfer) -> TaskID:
        key = (event.action, event.item)
        if key not in self.tasks:
            name = f"{event.action} {event.item.target}"
            self.tasks[key] = self.bar.add_task(name, total=event.item.size)
        return self.tasks[key]
