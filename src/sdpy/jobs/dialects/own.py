"""Our own: ``PROMPT --steps 20 --scheduler euler``, the options as on the command line."""

from __future__ import annotations

import re
from typing import Any

from sdpy.errors import UsageError
from sdpy.jobs.options import find_option

COMMENTS = True

_OPTION = re.compile(r"(?<!\S)--([A-Za-z_][\w-]*)(?:=|\s+|$)")


def read_line(line: str) -> dict[str, Any]:
    """The prompt and the options behind it.

    A value ends where the next option begins, and may stand in double quotes. An option that
    takes several values may be repeated.

    Raises:
        UsageError: an option that there is not, one without a value, or one that is repeated.
    """
    prompt, *pairs = _OPTION.split(line)
    found: dict[str, Any] = {"prompt": prompt.strip()} if prompt.strip() else {}
    for name, text in zip(pairs[::2], pairs[1::2], strict=True):
        one, value = find_option(name), text.strip()
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if not value:
            if one.type is not bool:
                raise UsageError(f"--{name} has no value; write one behind it")
            value = "true"
        if one.takes_several:
            found[name] = [*found.get(name, []), value]
        elif name in found:
            raise UsageError(f"--{name} stands in the line twice; leave one out")
        else:
            found[name] = value
    return found
