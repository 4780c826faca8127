"""Stable Diffusion in plain torch: text to picture, picture to picture, inpainting.

::

    from pathlib import Path
    from sdpy import Components, Painted, Settings, find_files, find_variant, generate
    from sdpy.images.files import save_image
    from sdpy.images.tensors import tensor_to_image

    variant = find_variant("demo")
    components = Components(variant, find_files(variant, Path("data")))
    settings = Settings("lighthouse at dark", steps=30, seed=32)
    for event in generate(components, settings, width=128, height=128):
        if isinstance(event, Painted):
            save_image(tensor_to_image(event.picture), "lighthouse.png")

The names below are imported when they are first used, so that ``import sdpy`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdpy.checkpoints import Lora as Lora
    from sdpy.checkpoints import read_textual_inversion as read_textual_inversion
    from sdpy.errors import SdpyError as SdpyError
    from sdpy.optimizations.approximate import DeepCache as DeepCache
    from sdpy.optimizations.approximate import TokenMerging as TokenMerging
    from sdpy.pipelines import Components as Components
    from sdpy.pipelines import Control as Control
    from sdpy.pipelines import Notice as Notice
    from sdpy.pipelines import Painted as Painted
    from sdpy.pipelines import Progress as Progress
    from sdpy.pipelines import PromptRead as PromptRead
    from sdpy.pipelines import Settings as Settings
    from sdpy.pipelines import generate as generate
    from sdpy.pipelines import img2img as img2img
    from sdpy.pipelines import inpaint as inpaint
    from sdpy.runtime.devices import Placement as Placement
    from sdpy.runtime.devices import place as place
    from sdpy.zoo.files import find_files as find_files
    from sdpy.zoo.variants import find_variant as find_variant

__version__ = "0.1.0"

_HOMES = {
    "Components": "sdpy.pipelines",
    "Control": "sdpy.pipelines",
    "DeepCache": "sdpy.optimizations.approximate",
    "Lora": "sdpy.checkpoints",
    "Notice": "sdpy.pipelines",
    "Painted": "sdpy.pipelines",
    "Placement": "sdpy.runtime.devices",
    "Progress": "sdpy.pipelines",
    "PromptRead": "sdpy.pipelines",
    "SdpyError": "sdpy.errors",
    "Settings": "sdpy.pipelines",
    "TokenMerging": "sdpy.optimizations.approximate",
    "find_files": "sdpy.zoo.files",
    "find_variant": "sdpy.zoo.variants",
    "generate": "sdpy.pipelines",
    "img2img": "sdpy.pipelines",
    "inpaint": "sdpy.pipelines",
    "place": "sdpy.runtime.devices",
    "read_textual_inversion": "sdpy.checkpoints",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sdpy' has no attribute {name!r}")
