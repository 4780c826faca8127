"""Standard streams as they may be: closed, of any encoding, a terminal or not."""

from __future__ import annotations

import codecs
import io
import os
import re
import signal
import sys
from types import FrameType

# What moves the cursor, changes colours, or turns the direction of writing. Names in files, paths
# and on hubs may hold it.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_AS_BYTES = "sdpy-as-bytes"


class Terminated(KeyboardInterrupt):
    """A signal asks the process to end; cleaning up is the same as after Ctrl-C.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


received: list[int] = []
"""Signals that asked the process to end."""


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the process as Ctrl-C does, so that nothing is left behind.

    A signal that is ignored, as SIGHUP is under ``nohup``, stays so.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    received.append(number)
    signal.signal(number, signal.SIG_IGN)  # another one would disturb the cleaning up
    raise Terminated(number)


def prepare_streams() -> None:
    """Make standard streams usable whatever the process was started with.

    Closed ones become those of the null device: otherwise the next file that is opened would get
    their number, and `print` would write to standard output what is meant for standard error.
    Paths on standard output are written byte by byte as they are, in whatever encoding.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            assert opened == descriptor, "the lowest number that is free"
        else:
            # A shell's script that was started without them has its own text in their place.
            if descriptor > 0 and _is_for_reading(descriptor):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)
    codecs.register_error(_AS_BYTES, _as_bytes)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_AS_BYTES)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def _is_for_reading(descriptor: int) -> bool:
    """Whether a file can only be read, where the system says so."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def _as_bytes(error: UnicodeError) -> tuple[bytes, int]:
    """What a file's name is on disk, where the encoding has no characters for it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return text.encode("utf-8", "surrogateescape"), error.end


def visible(text: str) -> str:
    """A line of text without characters that a terminal would obey; they are written as escapes."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def tell(text: str) -> None:
    """Print a line for people, on standard error."""
    print(visible(text), file=sys.stderr, flush=True)


def answer(text: str) -> None:
    """Print a line of the result, on standard output; scripts get it as it is."""
    print(visible(text) if sys.stdout.isatty() else text, flush=True)
