"""The three tasks as functions, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from sdpy.pipelines.events import Event, ImageDecoded
from sdpy.pipelines.generate import generate
from sdpy.pipelines.request import Request
from sdpy.runtime.session import Session


def text2img(session: Session, request: Request, **options: Any) -> Iterator[Event]:
    """Text-to-image; ``options`` are fields of the request."""
    return generate(session, [replace(request, **options)])


def img2img(session: Session, request: Request, image: Tensor, **options: Any) -> Iterator[Event]:
    """Image-to-image."""
    return text2img(session, request, image=image, **options)


def inpaint(
    session: Session, request: Request, image: Tensor, mask: Tensor, **options: Any
) -> Iterator[Event]:
    """Inpainting."""
    return text2img(session, request, image=image, mask=mask, **options)


def decoded(events: Iterator[Event]) -> list[ImageDecoded]:
    """The images among some events."""
    return [event for event in events if isinstance(event, ImageDecoded)]


def one_image(events: Iterator[Event]) -> Tensor:
    """The only image among some events, (1, 3, H, W)."""
    (one,) = decoded(events)
    return one.pixels
