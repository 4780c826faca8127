"""A1111's web UI, script "Prompts from file": ``--prompt "a cat" --steps 20 --seed 7``.

A line without ``--`` is a prompt. What does not parse is an error here; there it becomes a prompt.

Source: the script's manual.
"""

from __future__ import annotations

import shlex
from typing import Any

from sdpy.errors import UsageError
from sdpy.jobs.dialects.table import Foreign, always, is_nothing, is_off, unknown

COMMENTS = False

_GRIDS = "a batch writes no grids; leave it out"

OPTIONS: dict[str, Foreign] = {
    "prompt": Foreign("prompt"),
    "negative_prompt": Foreign("negative_prompt"),
    "seed": Foreign("seed"),
    "sampler_name": Foreign("scheduler"),
    "scheduler": Foreign("sigmas", lambda text: text.lower().replace(" ", "-")),
    "steps": Foreign("steps"),
    "cfg_scale": Foreign("guidance_scale"),
    "width": Foreign("width"),
    "height": Foreign("height"),
    "outpath_samples": Foreign("output_folder"),
    "batch_size": Foreign("batch_size"),
    "n_iter": Foreign("n_iter"),
    "subseed": Foreign(harmless=always),  # says nothing where its strength is 0
    "subseed_strength": Foreign(harmless=is_nothing),
    "seed_resize_from_h": Foreign(harmless=is_nothing),
    "seed_resize_from_w": Foreign(harmless=is_nothing),
    "styles": Foreign(
        harmless=is_nothing, reason="sdpy has no styles; write their words into the prompt"
    ),
    "restore_faces": Foreign(harmless=is_off),
    "tiling": Foreign(harmless=is_off),
    "prompt_for_display": Foreign(harmless=always),
    "do_not_save_samples": Foreign(harmless=is_off, reason="images are what a batch is for"),
    "do_not_save_grid": Foreign(harmless=lambda text: not is_off(text), reason=_GRIDS),
    "outpath_grids": Foreign(reason=_GRIDS),
}

_TAKES_WORDS = ("prompt", "negative_prompt")


def read_line(line: str) -> dict[str, Any]:
    """The options of a line, by our names.

    Raises:
        UsageError: a line that does not parse, or says what sdpy cannot do.
    """
    if "--" not in line:
        return {"prompt": line}
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"its quotes do not match ({error}); close them") from None
    found: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"'{word}' stands where an option is expected, such as --prompt")
        tag = word[2:]
        if tag not in OPTIONS:
            raise unknown(word, "A1111's prompt files", [f"--{name}" for name in OPTIONS])
        value = [words.pop(0)] if words else []
        while tag in _TAKES_WORDS and words and not words[0].startswith("--"):
            value.append(words.pop(0))
        if not value:
            raise UsageError(f"{word} has no value; write one behind it")
        found |= OPTIONS[tag].read(word, " ".join(value))
    return _with_samples(found)


def _with_samples(found: dict[str, Any]) -> dict[str, Any]:
    """``n_iter`` times ``batch_size`` images, so many of them computed together."""
    count = 1
    for name in ("batch_size", "n_iter"):
        if name not in found:
            continue
        try:
            count *= int(found[name])
        except ValueError:
            raise UsageError(f"--{name} {found[name]}: give a whole number") from None
    found.pop("n_iter", None)
    return {**found, "num_samples": count} if count != 1 else found
