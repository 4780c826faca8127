"""What a run tells while it goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:  # at run time these would import torch
    from sdpy.pipelines import Event, Painted, Progress

SECONDS_BETWEEN_LINES = 10.0


class Display(Protocol):
    """Shows how far a run is."""

    def show(self, progress: Progress) -> None:
        """Another step is done."""

    def say(self, text: str) -> None:
        """Print a line."""


def follow(events: Iterator[Event], *, quiet: bool) -> Generator[Painted, None, None]:
    """Show the events of a pipeline on stderr; yield its pictures."""
    from sdpy.pipelines import Notice, Progress, PromptRead

    with _display(quiet) as display:
        for event in events:
            if isinstance(event, Notice):
                display.say(event.text)
            elif isinstance(event, PromptRead):
                display.say(f"{event.what}: {event.prompt}")
            elif isinstance(event, Progress):
                display.show(event)
            else:
                yield event


def _display(quiet: bool) -> AbstractContextManager[Display]:
    if quiet:
        return nullcontext(Silence())
    if sys.stderr.isatty():
        return Bar()
    return nullcontext(Lines())


class Silence:
    """Shows nothing."""

    def show(self, progress: Progress) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""


class Lines:
    """A line at the first and last step of a sample, and now and then between them."""

    def __init__(self) -> None:
        self.started = self.printed = time.monotonic()

    def show(self, progress: Progress) -> None:
        """Print a line, unless the last one is recent."""
        now = time.monotonic()
        if progress.step == 0:
            self.started = self.printed = now
            return
        last = progress.step == progress.steps
        if not last and now - self.printed < SECONDS_BETWEEN_LINES:
            return
        self.printed = now
        seconds = now - self.started
        left = seconds / progress.step * (progress.steps - progress.step)
        self.say(
            f"picture {progress.sample} of {progress.samples}: step {progress.step} of "
            f"{progress.steps}, {seconds:.0f} s" + ("" if last else f", {left:.0f} s left")
        )

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A bar for each sample, with the time that is left."""

    def __init__(self) -> None:
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            # Rich would print on stderr what is meant for a file or pipe.
            redirect_stdout=sys.stdout.isatty(),
        )
        self.task: TaskID | None = None

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, progress: Progress) -> None:
        """Move the bar."""
        if progress.step == 0 or self.task is None:
            name = f"picture {progress.sample} of {progress.samples}"
            self.task = self.bar.add_task(name, total=progress.steps)
        self.bar.update(self.task, completed=progress.step)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(text, markup=False, highlight=False)
