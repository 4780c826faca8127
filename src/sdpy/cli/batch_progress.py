"""Showing how far a batch is: a bar, plain lines, or JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from sdpy.errors import UsageError

if TYPE_CHECKING:  # at run time these would import torch
    from sdpy.jobs.events import BatchEvent

KINDS = ("auto", "bar", "lines", "json", "none")

SECONDS_BETWEEN_LINES = 30.0

EVENT_NAMES = {
    "Started": "start",
    "StepsDone": "step",
    "ImageDone": "image",
    "JobFailed": "failure",
    "Note": "note",
    "Ended": "end",
}
"""Class of an event -> its name in JSON; others are not written."""


def open_progress(kind: str, descriptor: int | None, *, quiet: bool) -> Progress:
    """The display that ``--progress`` asks for.

    Raises:
        UsageError: an unknown kind, or a file descriptor that is not open.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown --progress '{kind}': use one of {', '.join(KINDS)}")
    if descriptor is not None and kind != "json":
        raise UsageError("--progress-fd is for --progress json: give both")
    if kind == "json":
        return JsonProgress(_open(descriptor))
    if quiet or kind == "none":
        return Progress()
    if kind == "bar" or (kind == "auto" and sys.stderr.isatty()):
        return BarProgress()
    return LineProgress()


def _open(descriptor: int | None) -> TextIO:
    if descriptor is None:
        return sys.stderr
    try:
        return os.fdopen(os.dup(descriptor), "w", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--progress-fd {descriptor}: is not open ({error.strerror}); open it, as with "
            f"{descriptor}>events.jsonl"
        ) from error


class Progress:
    """Shows nothing but failures. The base of the others."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, event: BatchEvent) -> None:
        """Show an event."""
        if type(event).__name__ == "JobFailed":
            self.line(_failure(event))

    def line(self, text: str) -> None:
        """Print a line for people."""
        print(text, file=sys.stderr, flush=True)


class Tally:
    """Counts images, and how fast they come."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.total = self.made = self.gone = 0
        self.began = clock()
        self._running: dict[int, float] = {}
        self._most = 0.0

    def count(self, event: BatchEvent) -> None:
        """Take an event into account."""
        name, known = type(event).__name__, _values(event)
        if name == "Started":
            self.total = known["images"] - known["done"] - known["given_up"]
            self.began = self.clock()
        elif name == "StepsDone":
            share = known["step"] / max(1, known["steps"])
            self._running[known["bundle"]] = share * known["images"]
            if share == 1:  # its images come next, and are counted one by one
                del self._running[known["bundle"]]
        elif name == "ImageDone":
            self.made += 1
        elif name == "JobFailed":
            self.gone += 1

    @property
    def completed(self) -> float:
        """Images that are made, and shares of those in hand."""
        now = self.made + self.gone + sum(self._running.values())
        self._most = max(self._most, min(now, self.total))
        return self._most

    def __str__(self) -> str:
        """Number, rate and time that is left, for people."""
        seconds, done = self.clock() - self.began, self.completed
        shown = f"{self.made + self.gone} of {counted(self.total, 'image')}"
        if self.made and seconds > 0:
            rate = self.made / seconds
            shown += f", {rate:.1f} images/s" if rate >= 1 else f", {1 / rate:.1f} s/image"
        if done > 0 and done < self.total:
            shown += f", {_duration(seconds / done * (self.total - done))} left"
        return shown


class LineProgress(Progress):
    """Prints a line now and then."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.printed = time.monotonic()

    def show(self, event: BatchEvent) -> None:
        """Show an event, if it is time for a line."""
        self.tally.count(event)
        name, now = type(event).__name__, time.monotonic()
        if name == "Note":
            self.line(event.text)  # type: ignore[union-attr]
        elif name == "JobFailed":
            self.line(_failure(event))
        elif name == "Started":
            self.line(_start(event))
        elif self.tally.total and now - self.printed >= SECONDS_BETWEEN_LINES:
            self.printed = now
            self.line(str(self.tally))


class BarProgress(Progress):
    """One bar for the whole."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self.tally = Tally()
        self._bars = Bars(
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            # Rich would print on stderr what is meant for a file or pipe.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task: Any = None

    def __enter__(self) -> BarProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, event: BatchEvent) -> None:
        """Show an event."""
        self.tally.count(event)
        name = type(event).__name__
        if name == "Started":
            self.line(_start(event))
            self._task = self._bars.add_task("", total=max(1, self.tally.total))
        elif name == "Note":
            self.line(event.text)  # type: ignore[union-attr]
        elif name == "JobFailed":
            self.line(_failure(event))
        if self._task is not None:
            self._bars.update(
                self._task, completed=self.tally.completed, description=str(self.tally)
            )

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._bars.console.print(text, markup=False, highlight=False)


class JsonProgress(Progress):
    """Writes each event as a JSON object, a line each."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def show(self, event: BatchEvent) -> None:
        """Write an event."""
        name = EVENT_NAMES.get(type(event).__name__)
        if name is not None:
            self._write({"event": name, "time": round(time.time(), 3), **_values(event)})

    def line(self, text: str) -> None:
        """Write a line for people as an event."""
        self._write({"event": "note", "time": round(time.time(), 3), "text": text})

    def _write(self, values: dict[str, Any]) -> None:
        place = values.pop("place", None)
        if place is not None:
            values |= {"file": place["source"], "line": place["line"]}
        print(json.dumps(values, ensure_ascii=False), file=self.file, flush=True)


def counted(number: int, what: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _values(event: BatchEvent) -> dict[str, Any]:
    return dataclasses.asdict(event)


def _failure(event: Any) -> str:
    return f"{event.place}: {event.reason}"


def _start(event: Any) -> str:
    shown = counted(event.images, "image")
    if event.done:
        shown += f", {event.done} of them there already"
    return shown


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
