"""Diffusers folders to try things on."""

from __future__ import annotations

from pathlib import Path

from sdpy.zoo.convert import plan_conversion
from sdpy.zoo.inspect import inspect_weights
from sdpy.zoo.variants import DEMO


def demo_folder(folder: Path) -> Path:
    """The demo model as a diffusers folder."""
    assert DEMO.bundled is not None
    found = inspect_weights(DEMO.bundled)
    for _ in plan_conversion(found, folder, vocabulary=DEMO.bundled / "merges.txt").run():
        pass
    return folder
