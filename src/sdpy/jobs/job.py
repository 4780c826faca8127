"""A job: one image to be made, as a line of a file asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdpy.errors import SdpyError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job stands.

    Attributes:
        source: a file as it was named, ``standard input`` or ``command line``.
        line: counted from 1.
    """

    source: str
    line: int

    def __str__(self) -> str:
        """As compilers write it."""
        return f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a line of a file says.

    Attributes:
        place: of the line.
        options: by the names that the file has for them, with values as they stand there.
    """

    place: Place
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Comment:
    """A line that was left out because it begins with ``#``.

    Attributes:
        place: of the line.
    """

    place: Place


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is no job, or a job that cannot work.

    Attributes:
        place: of the line.
        error: what is wrong.
        index: of the job, 0 where the line is none.
    """

    place: Place
    error: SdpyError
    index: int = 0

    def __str__(self) -> str:
        """A line for people."""
        return f"{self.place}: {self.error}"


@dataclass(frozen=True, slots=True)
class Job:
    """One image to be made.

    Attributes:
        place: of its line.
        index: counted from 1 over all jobs of the run.
        sample: its number among the images of its line with the same options, from 0.
        options: of its line, by the names of their fields; see `sdpy.jobs.options.JobOption`. The
            options of the command stand behind them.
        own: values of names with an underscore, which mean nothing but to the names of files.
        axes: which values of lists this job has, by the names of their options.
        template: the prompt before wildcards were replaced; None where there were none.
    """

    place: Place
    index: int
    sample: int
    options: Mapping[str, Any]
    own: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
