"""Stable Diffusion in plain PyTorch: text-to-image, image-to-image, inpainting.

::

    import sdpy

    with sdpy.load("demo") as model:
        image = model.generate("lighthouse at dark", seed=32)
        image.save("lighthouse.png")

The names below are imported when they are first used, so that ``import sdpy`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdpy import errors as errors
    from sdpy.pipelines.events import Detail as Detail
    from sdpy.pipelines.events import ImageReady as ImageReady
    from sdpy.pipelines.events import Notice as Notice
    from sdpy.pipelines.events import Progress as Progress
    from sdpy.pipelines.events import PromptTokenized as PromptTokenized
    from sdpy.pipelines.inputs import ControlImage as ControlImage
    from sdpy.pipelines.inputs import ImageRequest as ImageRequest
    from sdpy.pipelines.pipeline import Pipeline as Pipeline
    from sdpy.pipelines.pipeline import load as load
    from sdpy.runtime.threads import wait_passively as wait_passively

__version__ = "0.1.0"

_HOMES = {
    "ControlImage": "sdpy.pipelines.inputs",
    "Detail": "sdpy.pipelines.events",
    "ImageReady": "sdpy.pipelines.events",
    "ImageRequest": "sdpy.pipelines.inputs",
    "Notice": "sdpy.pipelines.events",
    "Pipeline": "sdpy.pipelines.pipeline",
    "Progress": "sdpy.pipelines.events",
    "PromptTokenized": "sdpy.pipelines.events",
    "load": "sdpy.pipelines.pipeline",
    "wait_passively": "sdpy.runtime.threads",
}

__all__ = ["__version__", "errors", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "errors":
        return import_module("sdpy.errors")
    raise AttributeError(f"module 'sdpy' has no attribute {name!r}")
