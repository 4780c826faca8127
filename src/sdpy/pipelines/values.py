"""Values of a request's options: how they are read from words, and shown in metadata."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpy.errors import UsageError
from sdpy.options import number_text, path_of
from sdpy.schedulers.registry import SCHEDULERS, SIGMA_LABELS

if TYPE_CHECKING:  # at run time these would import torch before the command line needs it
    from sdpy.checkpoints import Lora, TextualInversion

AUTO = "auto"
RANDOM = "random"
"""The seed for which one is to be drawn."""
LARGEST_SEED = 2**63 - 1


def sampler_label(scheduler: str) -> str:
    """What metadata calls a sampler; unknown ones by their own name."""
    return SCHEDULERS[scheduler].label if scheduler in SCHEDULERS else scheduler


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as metadata has it: as it was given, but ``~`` for the home folder's name."""
    text, home = os.fspath(path), os.path.expanduser("~")
    inside = home not in ("", "/", "~") and text.startswith(home + os.sep)
    return "~" + text[len(home) :] if inside else text


def is_random(value: object) -> bool:
    """Whether a seed says that one is to be drawn: ``random`` or -1."""
    return not isinstance(value, bool) and str(value).strip().lower() in (RANDOM, "-1")


def draw_seed() -> int:
    """A seed at random, below 2^32 as in other programs."""
    return secrets.randbelow(2**32)


def read_seed(value: int | str) -> int:
    """A seed, drawn where `is_random` says so.

    Raises:
        UsageError: it is neither.
    """
    if is_random(value):
        return draw_seed()
    text = str(value).strip().lower()
    if not text.isascii() or not text.isdigit() or int(text) > LARGEST_SEED:
        raise UsageError(f"--seed {value}: use random, -1 for the same, or 0 to {LARGEST_SEED}")
    return int(text)


def read_batch_size(value: int | str) -> int | str:
    """``auto``, or a number of images.

    Raises:
        UsageError: it is neither.
    """
    text = str(value).strip().lower()
    if text == AUTO:
        return AUTO
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise UsageError(f"--batch-size {value}: use auto, or 1 to 1024")
    return int(text)


def read_interval(value: str | tuple[float, float]) -> tuple[float, float]:
    """The two shares that ``LO,HI`` names.

    Raises:
        UsageError: they are not two numbers.
    """
    try:
        low, high = map(float, value.split(",") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise UsageError(
            f"--guidance-interval {value}: give two numbers with a comma, such as 0.2,0.8"
        ) from None
    return (low, high)


def read_size(value: str | Iterable[int]) -> tuple[int, int]:
    """Width and height that ``WIDTHxHEIGHT`` names.

    Raises:
        UsageError: they are not two whole numbers from 1 on.
    """
    found = _two_numbers(value, "x")
    if found is None or min(found) < 1:
        raise UsageError(f"size {value}: give width and height in pixels, such as 1024x1024")
    return found


def read_crop(value: str | Iterable[int]) -> tuple[int, int]:
    """The numbers of pixels that ``LEFT,TOP`` names.

    Raises:
        UsageError: they are not two whole numbers from 0 on.
    """
    found = _two_numbers(value, ",")
    if found is None or min(found) < 0:
        raise UsageError(f"--crop {value}: give two numbers of pixels with a comma, such as 0,0")
    return found


def show_image_size(size: tuple[int, int]) -> str:
    """What `read_size` takes."""
    return "{}x{}".format(*size)


def _two_numbers(value: str | Iterable[int], separator: str) -> tuple[int, int] | None:
    try:
        first, second = value.lower().split(separator) if isinstance(value, str) else value
        return int(first), int(second)
    except (TypeError, ValueError):
        return None


def read_sigmas(values: str | Iterable[float]) -> str | tuple[float, ...]:
    """The name of a schedule, or numbers with commas between them, which end in 0 or before it.

    Raises:
        UsageError: numbers that do not fall, or are no noise.
    """
    if isinstance(values, str) and not any(character.isdigit() for character in values):
        return values
    given = values.strip("[] ").split(",") if isinstance(values, str) else values
    try:
        numbers = [float(value) for value in given]
    except (TypeError, ValueError):
        raise UsageError(
            f"--sigmas {values}: give a name, or numbers with commas, such as 14.6,2.7,0.3"
        ) from None
    if numbers and numbers[-1] == 0:
        del numbers[-1]  # where every schedule ends
    falls = all(a > b for a, b in pairwise(numbers))
    if not numbers or not falls or numbers[-1] <= 0 or not math.isfinite(numbers[0]):
        raise UsageError(f"--sigmas {values}: give positive numbers that fall from step to step")
    return tuple(numbers)


def show_sigmas(sigmas: str | Iterable[float]) -> str:
    """For people; numbers as `read_sigmas` takes them."""
    if isinstance(sigmas, str):
        return SIGMA_LABELS.get(sigmas, sigmas)
    return ",".join(map(number_text, sigmas))


def read_loras(values: str | Iterable[str | Lora]) -> tuple[Lora, ...]:
    """The LoRAs that ``PATH`` or ``PATH:WEIGHT`` name; a file may have a colon in its name.

    Raises:
        UsageError: a weight that is not a finite number, or no path.
    """
    return tuple(_read_lora(value) for value in _listed(values))


def _read_lora(value: str | Path | Lora) -> Lora:
    from sdpy.checkpoints import Lora

    if isinstance(value, Lora):
        return value
    text = os.fspath(value)
    path, colon, weight = text.rpartition(":")
    if not colon or os.path.exists(text):
        return Lora(path_of(text))
    try:
        share = float(weight)
    except ValueError:
        return Lora(path_of(text))
    if not path or not math.isfinite(share):
        raise UsageError(f"--lora {text}: give a path, or a path, a colon and a finite number")
    return Lora(path_of(path), share)


def show_loras(loras: Iterable[Lora]) -> list[str]:
    """The inverse of `read_loras`."""
    return [f"{shown_path(lora.path)}:{number_text(lora.weight)}" for lora in loras]


def read_embeddings(
    values: str | Iterable[str | TextualInversion],
) -> tuple[TextualInversion, ...]:
    """The textual inversions that ``PATH`` or ``NAME=PATH`` name.

    Raises:
        UsageError: no name before the equals sign.
        WeightsError: a file that holds no textual inversion.
    """
    return tuple(one for value in _listed(values) for one in _read_embedding(value))


def _read_embedding(value: str | Path | TextualInversion) -> tuple[TextualInversion, ...]:
    from sdpy.checkpoints import TextualInversion, read_textual_inversions

    if isinstance(value, TextualInversion):
        return (value,)
    text = os.fspath(value)
    name, equals, path = text.partition("=")
    if not equals or os.path.exists(text):
        return read_textual_inversions(path_of(text))
    if not name.strip():
        raise UsageError(f"--embedding {text}: no name before the =; use NAME=PATH or PATH")
    return read_textual_inversions(path_of(path), name.strip())


def show_embeddings(embeddings: Iterable[TextualInversion]) -> list[str]:
    """The inverse of `read_embeddings`; without words that a LoRA brings."""
    shown = (
        f"{one.names[0]}={shown_path(one.path)}" if one.is_named else shown_path(one.path)
        for one in embeddings
        if not one.is_bundled
    )
    return list(dict.fromkeys(shown))


def _listed(values: Any) -> list[Any]:
    """A single value as a list of one."""
    single = isinstance(values, str | os.PathLike) or not isinstance(values, Iterable)
    return [values] if single else list(values)
