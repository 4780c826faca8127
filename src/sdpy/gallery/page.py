"""The page: one file that needs no other, but for the images in full size."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sdpy.gallery.images import GalleryImage

TEMPLATE = Path(__file__).with_name("page.html")
THUMBNAIL = 192
"""Pixels of the longer side."""


def page_text(title: str, entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The page, in pieces.

    Args:
        title: of the page.
        entries: what `entry` says of each image.
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


def entry(
    image: GalleryImage, page: Path, thumbnail: bytes, size: tuple[int, int]
) -> dict[str, Any]:
    """What the page knows of an image.

    Args:
        image: the image.
        page: the file of the page, from which the image's file is found.
        thumbnail: a WebP file.
        size: the image's width and height.
    """
    place = os.path.relpath(os.path.abspath(image.path), os.path.abspath(page.parent))
    return {
        "name": _text(image.path.name),
        "path": quote(os.fsencode(place.replace(os.sep, "/"))),
        "prompt": image.prompt,
        "negative": image.negative_prompt,
        "facts": dict(image.facts),
        "command": _text(image.command),
        "changed": image.modified,
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
