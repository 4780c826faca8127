"""kohya's ``gen_img``: ``a cat --n ugly --w 512 --h 512 --s 20 --d 1,2 --l 7 --t 0.8 --f name``.

Source: the script's manual.
"""

from __future__ import annotations

import re
from typing import Any

from sdpy.errors import UsageError
from sdpy.jobs.dialects.table import Foreign, unknown

COMMENTS = True

OPTIONS: dict[str, Foreign] = {
    "n": Foreign("negative_prompt"),
    "w": Foreign("width"),
    "h": Foreign("height"),
    "s": Foreign("steps"),
    "d": Foreign("seed"),
    "l": Foreign("guidance_scale"),
    "t": Foreign("strength"),
    "am": Foreign("lora_weights"),
    "f": Foreign("output_name"),
}


def read_line(line: str) -> dict[str, Any]:
    """The options of a line, by our names; options are split at ``--`` after a space.

    Raises:
        UsageError: an option that sdpy does not know, or one without a value.
    """
    prompt, *options = re.split(r"(?:^|\s)--", line)
    found: dict[str, Any] = {"prompt": prompt.strip()} if prompt.strip() else {}
    for option in options:
        name, _, value = option.strip().partition(" ")
        foreign = OPTIONS.get(name.lower())
        if foreign is None:
            raise unknown(f"--{name}", "kohya's gen_img", [f"--{name}" for name in OPTIONS])
        if not value.strip() and foreign.ours != "negative_prompt":
            raise UsageError(f"--{name} has no value; write one behind it")
        found |= foreign.read(f"--{name}", value.strip())
    return found
