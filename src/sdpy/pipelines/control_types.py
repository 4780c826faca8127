"""The kinds of images that a ControlNet-Union may be shown, and what they are called."""

from __future__ import annotations

from sdpy.errors import UsageError
from sdpy.options import either

CONTROL_TYPES: dict[str, tuple[str, ...]] = {
    "openpose": ("pose", "dwpose", "dw_openpose"),
    "depth": ("midas", "zoe"),
    "hed": ("softedge", "pidinet", "pidi", "scribble", "sketch", "ted", "teed"),
    "canny": ("lineart", "lineart_anime", "anime_lineart", "mlsd"),
    "normal": ("normalmap", "normalbae"),
    "segment": ("seg", "segmentation"),
    "tile": ("blur",),
    "repaint": ("inpaint", "outpaint"),
}
"""In the order of their numbers, which are diffusers' ``control_mode``; other names of each, of the
authors, A1111's web UI and preprocessors. The networks first published know the first six."""

OF_PREPROCESSORS = {"canny": "canny"}
"""What kind of image a preprocessor makes."""


def read_control_type(text: str) -> str | None:
    """The control type that a name or number means; None for "none".

    Of several names, as ComfyUI's "hed/pidi/scribble/ted", the first counts.

    Raises:
        UsageError: there is no such.
    """
    name = text.partition("/")[0].strip().lower().replace("-", "_")
    if name == "none":
        return None
    for number, (ours, others) in enumerate(CONTROL_TYPES.items()):
        if name in (ours, str(number), *others):
            return ours
    raise UsageError(
        f"unknown --control-type '{text}': use one of {', '.join(CONTROL_TYPES)}, or none"
    )


def known_types(count: int) -> str:
    """The first ``count`` control types, for people."""
    return either(list(CONTROL_TYPES)[:count])


def number_of(control_type: str) -> int:
    """Of a control type, from 0."""
    return list(CONTROL_TYPES).index(control_type)
