"""What can stand in braces in the name of a file, and how a value becomes a part of a path."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

COUNTER = "n"
"""The field that is the next free number; it depends on what lies in the folder."""

FIELDS: dict[str, type] = {
    COUNTER: int,
    "line": int,
    "index": int,
    "sample": int,
    "seed": int,
    "steps": int,
    "scheduler": str,
    "sampler": str,
    "sigmas": str,
    "guidance": float,
    "strength": float,
    "width": int,
    "height": int,
    "model": str,
    "model_hash": str,
    "clip_skip": int,
    "prompt": str,
    "slug": str,
    "words": str,
    "date": datetime,
    "time": datetime,
    "datetime": datetime,
}
"""Field -> kind of its value. ``line`` is of the job file, ``index`` counts the images of a run
from 1, ``sample`` those of a request. ``scheduler`` is sdpy's name, ``sampler`` A1111's label.
``slug`` is the prompt's words with hyphens, ``words`` its first eight."""

DATE_FORMATS = {"date": "%Y-%m-%d", "time": "%H%M%S", "datetime": "%Y%m%d%H%M%S"}
"""How a moment is written where the name does not say it."""

A1111_FIELDS: dict[str, str | None] = {
    "seed": "seed",
    "steps": "steps",
    "cfg": "guidance",
    "sampler": "sampler",
    "scheduler": "sigmas",
    "width": "width",
    "height": "height",
    "model_name": "model",
    "model_hash": "model_hash",
    "clip_skip": "clip_skip",
    "denoising": "strength",
    "date": "date",
    "datetime": "datetime",
    "prompt": "prompt",
    "prompt_no_styles": "prompt",
    "prompt_spaces": "prompt",
    "prompt_words": "words",
    "batch_number": "sample",
    "generation_number": "index",
    "styles": None,
    "job_timestamp": None,
    "prompt_hash": None,
    "negative_prompt_hash": None,
    "full_prompt_hash": None,
    "image_hash": None,
    "batch_size": None,
    "seed_first": None,
    "seed_last": None,
    "hasprompt": None,
    "vae_filename": None,
    "user": None,
    "none": None,
}
"""What A1111's web UI has in square brackets, and our field; None where there is none."""

NOTHING = "none"
"""What stands for a value that is not there, such as the strength of a text-to-image."""

_WORDS = 8
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\<>:"|?*]')
_WEIGHT = re.compile(r":\s*[-+]?[\d.]+\s*(?=[)\]])")


def prompt_fields(prompt: str) -> dict[str, str]:
    """The fields that are made of a prompt."""
    plain = unicodedata.normalize("NFC", _WEIGHT.sub("", prompt))
    words = re.findall(r"\w+(?:['’]\w+)*", plain)
    slug = "-".join(re.findall(r"[^\W_]+", re.sub("['’]", "", plain))).lower()
    return {"prompt": prompt, "slug": slug or "untitled", "words": " ".join(words[:_WORDS])}


def moment_fields(moment: datetime) -> dict[str, datetime]:
    """The fields that are made of the time at which a run began."""
    return dict.fromkeys(DATE_FORMATS, moment)


def shown(name: str, value: Any, spec: str) -> str:
    """A value as text.

    Raises:
        ValueError, TypeError: the format does not suit the value.
    """
    if value is None:
        return NOTHING
    if isinstance(value, datetime):
        return value.strftime(spec or DATE_FORMATS.get(name, DATE_FORMATS["datetime"]))
    if isinstance(value, float) and not spec:
        return f"{value:g}"
    if isinstance(value, str | int | float):
        return format(value, spec)
    if isinstance(value, os.PathLike):
        return format(Path(value).stem, spec)
    if isinstance(value, Mapping) or not hasattr(value, "__iter__"):
        return format(str(value), spec)
    return format(" ".join(map(str, value)), spec)


def path_part(text: str, limit: int) -> str:
    """Text as a part of one component of a path, whatever it says.

    Separators, control characters and what Windows forbids become ``_``; it never begins with a
    dot or ends in one or in a space, and has at most ``limit`` bytes as UTF-8.
    """
    plain = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", text)).strip()
    cut = plain.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")
    return cut.lstrip(". ").rstrip(". ") or "_"
