"""The page: one file that needs no other, but for the pictures in full size."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sdpy.gallery.pictures import Picture

TEMPLATE = Path(__file__).with_name("page.html")
THUMBNAIL = 192
"""Pixels of the longer side."""


def page_text(title: str, entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The page, in pieces.

    Args:
        title: of the page.
        entries: what `entry` says of each picture.
    """
    before, after = (
        TEMPLATE.read_text("utf-8").replace("@TITLE@", html.escape(title)).split("@DATA@")
    )
    yield before
    yield "["
    for k, one in enumerate(entries):
        yield ("," if k else "") + _script_json(one)
    yield "]"
    yield after


def entry(picture: Picture, page: Path, thumbnail: bytes, size: tuple[int, int]) -> dict[str, Any]:
    """What the page knows of a picture.

    Args:
        picture: the picture.
        page: the file of the page, from which the picture's file is found.
        thumbnail: a WebP file.
        size: the picture's width and height.
    """
    place = os.path.relpath(os.path.abspath(picture.path), os.path.abspath(page.parent))
    return {
        "name": _text(picture.path.name),
        "path": quote(os.fsencode(place.replace(os.sep, "/"))),
        "prompt": picture.prompt,
        "negative": picture.negative_prompt,
        "facts": dict(picture.facts),
        "command": _text(picture.command),
        "changed": picture.modified,
        "width": size[0],
        "height": size[1],
        "thumbnail": base64.b64encode(thumbnail).decode("ascii"),
    }


def _text(name: str) -> str:
    """A name that need not be text, as text."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _script_json(value: Any) -> str:
    """JSON that ends no script, whatever it says."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
