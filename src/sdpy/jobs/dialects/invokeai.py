"""InvokeAI's old command line: ``"a cat" -n2 -s50 -S42 -C7.5 -W640 -A k_lms -I in.png -f0.7``.

Source: its manual, version 2.
"""

from __future__ import annotations

import re
from typing import Any

from sdpy.errors import UsageError
from sdpy.jobs.dialects.table import Foreign, is_nothing, unknown

COMMENTS = True

SAMPLERS = {
    "ddim": "ddim",
    "plms": "pndm",
    "k_lms": "lms",
    "k_euler": "euler",
    "k_euler_a": "euler-a",
    "k_heun": "heun",
    "k_dpm_2": "kdpm2",
    "k_dpm_2_a": "kdpm2-a",
    "k_dpmpp_2": "dpm++-2m",
    "k_dpmpp_2_a": None,
}


def sampler(name: str) -> str:
    """Our name of a sampler.

    Raises:
        UsageError: there is none.
    """
    ours = SAMPLERS.get(name.lower())
    if ours is None:
        known = ", ".join(theirs for theirs, ours in SAMPLERS.items() if ours is not None)
        raise UsageError(f"-A {name}: is no sampler of InvokeAI that sdpy has; use one of {known}")
    return ours


_UPSCALING = "sdpy does not enlarge or restore images; leave it out"

OPTIONS: dict[str, Foreign] = {
    "n": Foreign("num_samples"),
    "s": Foreign("steps"),
    "S": Foreign("seed"),
    "C": Foreign("guidance_scale"),
    "W": Foreign("width"),
    "H": Foreign("height"),
    "A": Foreign("scheduler", sampler),
    "I": Foreign("image"),
    "f": Foreign("strength"),
    "M": Foreign(
        reason="InvokeAI's masks repaint what is black or transparent, ours what is white; "
        "name it by 'mask' in a job of JSON Lines, with 'invert-mask' if it is black and white"
    ),
    "g": Foreign(reason="a batch writes no grids; leave it out"),
    "G": Foreign(harmless=is_nothing, reason=_UPSCALING),
    "U": Foreign(harmless=is_nothing, reason=_UPSCALING),
    "v": Foreign(harmless=is_nothing, reason="sdpy has no variations; leave it out"),
    "V": Foreign(harmless=is_nothing, reason="sdpy has no variations; leave it out"),
}

LONG_NAMES = {
    "iterations": "n",
    "steps": "s",
    "seed": "S",
    "cfg_scale": "C",
    "width": "W",
    "height": "H",
    "sampler": "A",
    "init_img": "I",
    "init_mask": "M",
    "strength": "f",
    "grid": "g",
    "upscale": "U",
    "variation_amount": "v",
    "with_variations": "V",
}

_OPTION = re.compile(
    r"""(?:^|\s)(?:--(?P<long>[a-z_]+)(?:=|\s|$)|-(?P<short>[A-Za-z])(?=[\s\d.-]|$))\s*"""
)


def read_line(line: str) -> dict[str, Any]:
    """The options of a line, by our names. ``[words]`` are not taken for a negative prompt.

    Raises:
        UsageError: an option that sdpy does not know, or one without a value.
    """
    line = line.strip()
    prompt, rest = "", line
    if line[:1] in "\"'" and (end := line.find(line[0], 1)) > 0:
        prompt, rest = line[1:end], line[end + 1 :]
    matches = list(_OPTION.finditer(rest))
    first = matches[0].start() if matches else len(rest)
    prompt = f"{prompt} {rest[:first].strip()}".strip()
    found: dict[str, Any] = {"prompt": prompt} if prompt else {}
    for k, match in enumerate(matches):
        end = matches[k + 1].start() if k + 1 < len(matches) else len(rest)
        value = rest[match.end() : end].strip().strip("\"'")
        shown = f"--{match['long']}" if match["long"] else f"-{match['short']}"
        name = LONG_NAMES.get(match["long"], "") if match["long"] else match["short"]
        if name not in OPTIONS:
            raise unknown(shown, "InvokeAI", [f"-{name}" for name in OPTIONS])
        if not value and OPTIONS[name].ours is not None:
            raise UsageError(f"{shown} has no value; write one behind it")
        found |= OPTIONS[name].read(shown, value)
    return found
