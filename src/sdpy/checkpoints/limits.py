"""What an honest weights file stays within: the same limits for every reader.

A reader takes no more time and memory than a small multiple of the file's size, whatever the file
says. So shapes, names and sums are checked before any number is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor

from sdpy.errors import WeightsError

# Far above any real file (Stable Diffusion XL has 2,500 tensors), far below any harm.
MAX_ENTRIES = 200_000
MAX_NAME_LENGTH = 1000
MAX_DIMENSIONS = 25
MAX_NUMBERS = 2**48
MAX_METADATA_ENTRIES = 1000
MAX_METADATA_LENGTH = 4000

MAX_GROWTH = 16
"""How many times larger than their file tensors may be, which are compressed or overlap there."""
ROOM = 16 * 2**20
"""Bytes that tensors may take in any case."""
SPARE = 100
"""So many blocks may be missing: a file may hold a part of a network only."""

_NUMBERED = re.compile(
    r"(?:blocks|resblocks|layers|resnets|attentions|convs|block|down|up|attn)\.(\d+)(?![^.])"
)
"""Places in names, here and in other programs, where blocks and layers are numbered."""


def check_numbers(values: Any) -> tuple[int, ...]:
    """Whole numbers such as sizes and places, as a file gives them.

    Raises:
        ValueError: they are none, negative, or larger than in any real file.
    """
    if not isinstance(values, (list, tuple)) or len(values) > MAX_DIMENSIONS:
        raise ValueError("a tensor has an impossible shape")
    if not all(type(n) is int and 0 <= n < MAX_NUMBERS for n in values):
        raise ValueError("a tensor has impossible sizes")
    return tuple(values)


def check_shape(shape: Any) -> tuple[int, ...]:
    """A tensor's sizes, as a file gives them. Raises ``ValueError`` for what is none."""
    sizes = check_numbers(shape)
    # Without the zeros, which would hide the others from whoever multiplies these.
    if math.prod(n for n in sizes if n) >= MAX_NUMBERS:
        raise ValueError("a tensor has impossible sizes")
    return sizes


def check_name(*parts: str) -> None:
    """Raises ``ValueError`` if a tensor's name is longer than any real one."""
    if sum(map(len, parts)) > MAX_NAME_LENGTH:
        raise ValueError(f"a tensor's name has more than {MAX_NAME_LENGTH} characters")


def check_growth(tensors: Iterable[Tensor], file_size: int) -> None:
    """Raises ``ValueError`` if tensors are far larger than the file that they are in."""
    total = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)
    if total > MAX_GROWTH * file_size + ROOM:
        raise ValueError(f"its tensors would take {total} bytes, the file has {file_size}")


def check_names(names: Collection[str]) -> None:
    """Raises ``ValueError`` for a block or layer with a higher number than there are names."""
    for name in names:
        for digits in _NUMBERED.findall(name):
            if len(digits) > 9 or int(digits) > len(names) + SPARE:
                raise ValueError(f"one of only {len(names)} tensors is called {name}")


def check_blocks(count: int, names: Collection[str]) -> None:
    """Refuse a network of more blocks than there are names for.

    Raises:
        WeightsError: it has more.
    """
    if count > len(names) + SPARE:
        raise WeightsError(
            f"{len(names)} tensors are too few for a network of {count} blocks; the file is "
            "damaged or was cut short"
        )
