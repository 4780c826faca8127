"""A line is a prompt, whatever it says."""

from __future__ import annotations

from typing import Any

COMMENTS = False


def read_line(line: str) -> dict[str, Any]:
    """The prompt."""
    return {"prompt": line}
