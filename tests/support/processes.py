"""``sdpy`` as a process of its own, with the tiny models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

RUN_TINY = Path(__file__).parents[1] / "cli" / "run_tiny.py"

PATIENCE = 300.0
"""Seconds for what a busy machine does late; whatever takes longer hangs."""


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's, without what would change how sdpy or rich print."""
    unwanted = ("SDPY_", "COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "SDPY_CACHE" or not name.startswith(unwanted)
    }
    return {**kept, **changes}


def tiny(data: Path, *arguments: str) -> list[str]:
    """The command line of a command with the tiny models."""
    command, *rest = arguments
    return [sys.executable, str(RUN_TINY), command, "--data", str(data), *rest]


def start(
    command: list[str],
    folder: Path,
    prepare: Callable[[], object] = lambda: None,
    **environment: str,
) -> subprocess.Popen[bytes]:
    """Start a process whose output is read with `read_until` and `finish`.

    Its pipes have no buffer on this side: what one of these has read is all that the other lacks.

    Args:
        command: to be run.
        folder: in which.
        prepare: called in the new process before the command.
        environment: variables that differ.
    """

    def begin() -> None:
        # Where the tests run in the background of a shell, signals are ignored by inheritance.
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        prepare()

    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=clean_environment(**environment),
        preexec_fn=begin,
    )


def read_until(stream: IO[bytes] | None, words: str) -> list[str]:
    """The lines of a process's output up to the first one with some words in it."""
    assert stream is not None
    lines: list[str] = []
    while not lines or words not in lines[-1]:
        line = stream.readline().decode()
        assert line, f"ended without {words!r}: {lines}"
        lines.append(line.removesuffix("\n"))
    return lines


def finish(process: subprocess.Popen[bytes], expected: int) -> tuple[list[str], list[str]]:
    """Wait for a process; the lines of its output that were not read yet.

    Args:
        process: that `start` has started.
        expected: its exit code.
    """
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == expected, err.decode()
    return out.decode().splitlines(), err.decode().splitlines()
