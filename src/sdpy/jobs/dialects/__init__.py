"""Options in a line of text, as several programs write them: one module each; their registry."""

from __future__ import annotations

import re
from types import ModuleType

from sdpy.jobs.dialects import a1111, invokeai, kohya, own, plain

DIALECTS: dict[str, ModuleType] = {
    "plain": plain,
    "sdpy": own,
    "a1111": a1111,
    "kohya": kohya,
    "invokeai": invokeai,
}
"""Each has ``COMMENTS``, whether lines may begin with ``#`` and then say nothing, and
``read_line(line)``: options by our names."""

_SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a1111", re.compile(r"--[a-z]")),
    ("kohya", re.compile(r".* --[a-z]{1,2}(?:\s|$)", re.IGNORECASE)),
    ("sdpy", re.compile(r".*? --[a-z][a-z_-]{2,}(?:[\s=]|$)", re.IGNORECASE)),
    ("invokeai", re.compile(r".*\s-[sSnCWHAIMfgGvVU](?:\s*[-\d.]+|\s+\S+)(?:\s|$)")),
)


def guess(line: str) -> str:
    """The dialect that a line seems to be in.

    One that begins with ``--`` is A1111's; ``--x`` with one or two letters after a space is
    kohya's, with a longer word our own; ``-S42`` InvokeAI's; any other is a prompt alone.
    """
    return next((name for name, sign in _SIGNS if sign.match(line)), "plain")
