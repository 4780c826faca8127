"""What the dialects share: an option of another program, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdpy.errors import UsageError

Convert = Callable[[str], Any]


@dataclass(frozen=True)
class Foreign:
    """An option of another program.

    Attributes:
        ours: our name for it; None where there is none.
        convert: makes our value of the text.
        harmless: values that say what sdpy does anyway, so that they can be left out.
        reason: why another value is refused.
    """

    ours: str | None = None
    convert: Convert = str
    harmless: Callable[[str], bool] = lambda text: False
    reason: str = "sdpy has no such thing; leave it out"

    def read(self, shown: str, text: str) -> dict[str, Any]:
        """Our option and its value; empty where there is nothing to be said.

        Raises:
            UsageError: a value that sdpy cannot do.
        """
        if self.ours is not None:
            return {self.ours: self.convert(text)}
        if self.harmless(text):
            return {}
        raise UsageError(f"{shown}{f' {text}' if text else ''}: {self.reason}")


def is_off(text: str) -> bool:
    """Whether a switch is off."""
    return text.strip().lower() in ("false", "0", "no", "off")


def is_nothing(text: str) -> bool:
    """Whether a number is none, zero or less, or text is empty."""
    text = text.strip()
    try:
        return float(text) <= 0
    except ValueError:
        return text.lower() in ("", "none")


def always(text: str) -> bool:
    """For what has no effect on an image or its file."""
    return True


def unknown(shown: str, program: str, known: list[str]) -> UsageError:
    """The error for an option that the other program has not, as far as sdpy knows."""
    return UsageError(
        f"{shown} is no option of {program} that sdpy knows; use {', '.join(known)}, or "
        "--dialect plain if it is a part of the prompt"
    )
