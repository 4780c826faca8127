"""The one progress display: bars on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sdpy.cli.terminal import tell, visible

Unit = Literal["steps", "bytes"]

SECONDS_BETWEEN_LINES = 10.0


class ProgressBar(Protocol):
    """How far one piece of work is."""

    def update(self, completed: int) -> None:
        """So much of the total is done; the first call says where the work begins."""


class ProgressDisplay(Protocol):
    """Shows how far a command is."""

    def bar(self, total: int, label: str, unit: Unit = "steps") -> ProgressBar:
        """Begin a piece of work."""

    def line(self, text: str) -> None:
        """Print a line above the bars."""


def open_display(quiet: bool) -> AbstractContextManager[ProgressDisplay]:
    """The display that suits stderr, for the duration of a ``with`` block."""
    if quiet:
        return nullcontext(QuietDisplay())
    return TerminalDisplay() if sys.stderr.isatty() else nullcontext(LineDisplay())


class QuietDisplay:
    """Shows nothing."""

    def bar(self, total: int, label: str, unit: Unit = "steps") -> ProgressBar:
        """A bar that nobody sees."""
        return self

    def update(self, completed: int) -> None:
        """Do nothing."""

    def line(self, text: str) -> None:
        """Do nothing."""


class LineDisplay:
    """Prints a line when a piece of work is complete, and now and then before that."""

    def bar(self, total: int, label: str, unit: Unit = "steps") -> ProgressBar:
        """Begin a piece of work."""
        return _Lines(self, total, label, unit)

    def line(self, text: str) -> None:
        """Print a line."""
        tell(text)


class _Lines:
    """The lines of one piece of work."""

    def __init__(self, display: LineDisplay, total: int, label: str, unit: Unit) -> None:
        self.display, self.total, self.label, self.unit = display, total, label, unit
        self.started = self.printed = time.monotonic()
        self.first: int | None = None

    def update(self, completed: int) -> None:
        if self.first is None:
            self.first = completed
        now = time.monotonic()
        done = completed >= self.total
        if not done and now - self.printed < SECONDS_BETWEEN_LINES:
            return
        self.printed = now
        seconds, advance = now - self.started, completed - self.first
        if self.unit == "bytes":
            shown = f"{decimal(completed)} of {decimal(self.total)}"
        else:
            shown = f"step {completed} of {self.total}, {seconds:.0f} s"
        if not done and advance > 0:
            shown += f", {seconds / advance * (self.total - completed):.0f} s left"
        self.display.line(f"{self.label}: {shown}")


class TerminalDisplay:
    """A bar for each piece of work, with the time that is left."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _ByUnit(steps=MofNCompleteColumn(), bytes=DownloadColumn()),
            _ByUnit(steps=TimeElapsedColumn(), bytes=TransferSpeedColumn()),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            # Rich would print on stderr what is meant for a file or pipe.
            redirect_stdout=sys.stdout.isatty(),
        )

    def __enter__(self) -> TerminalDisplay:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def bar(self, total: int, label: str, unit: Unit = "steps") -> ProgressBar:
        """Begin a piece of work."""
        return _Bar(self.progress, total, label, unit)

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self.progress.console.print(visible(text), markup=False, highlight=False)


class _Bar:
    """One bar of a terminal."""

    def __init__(self, progress: Progress, total: int, label: str, unit: Unit) -> None:
        self.progress = progress
        self.task = progress.add_task(visible(label), total=total, unit=unit)

    def update(self, completed: int) -> None:
        self.progress.update(self.task, completed=completed)


class _ByUnit(ProgressColumn):
    """A column whose kind depends on the unit of the bar."""

    def __init__(self, **columns: ProgressColumn) -> None:
        super().__init__()
        self.columns = columns

    def render(self, task: Task) -> RenderableType:
        return self.columns[task.fields["unit"]].render(task)
