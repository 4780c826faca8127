"""Textual inversions in the text of a PNG image, as A1111's web UI writes them beside the images.

The text's keyword is ``sd-ti-embedding``; it is JSON in base64, with tensors as lists of numbers.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sdpy.checkpoints.base import reading
from sdpy.checkpoints.probe import probe
from sdpy.errors import WeightsError

_PNG = b"\x89PNG\r\n\x1a\n"
_IMAGES = (_PNG, b"\xff\xd8\xff", b"RIFF")
_KEYWORD = b"sd-ti-embedding"
_TENSOR = "TORCHTENSOR"
_MOST_BYTES = 64 * 2**20


def is_card(path: Path) -> bool:
    """Whether a file is an image. Raises ``WeightsError`` if it cannot be read."""
    return probe(path).head.startswith(_IMAGES)


def read_card(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors in an image's text, and the name that it gives the word.

    Raises:
        WeightsError: there are none, or they are broken.
    """
    with reading(path, "embedding card"), path.open("rb") as file:
        texts = [text for keyword, text in _texts(file) if keyword == _KEYWORD]
        if not texts:
            raise WeightsError(
                f"{path} is an image without an embedding in its text; sdpy does not read those "
                "that are hidden in pixels: give the .pt or .safetensors file"
            )
        try:
            stored = json.loads(base64.b64decode(texts[0], validate=True))
        except binascii.Error as error:
            raise ValueError("its text is no base64") from error
        found = {
            str(key): torch.tensor(_numbers(value), dtype=torch.float32)
            for key, value in stored["string_to_param"].items()
        }
        name = stored.get("name")
        return found, name if isinstance(name, str) else None


def _numbers(value: Any) -> list[Any]:
    numbers = value[_TENSOR] if isinstance(value, dict) else value
    if not isinstance(numbers, list):
        raise ValueError("a tensor in it is no list of numbers")
    return numbers


def _texts(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Keywords and texts of a PNG image; none of an image of another kind."""
    if file.read(len(_PNG)) != _PNG:
        return
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if kind != b"tEXt" or length > _MOST_BYTES:
            file.seek(length + 4, 1)
            continue
        keyword, _, text = file.read(length).partition(b"\0")
        yield keyword, text
        file.seek(4, 1)
