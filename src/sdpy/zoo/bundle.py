"""What the bundled model says of itself: ``model.json``, beside its weights.

Its sizes stand there alone, so that the files of another training take its place as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdpy.models import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    CLIPTextConfig,
    UNet2DConditionConfig,
)

BUNDLE = Path(__file__).parents[1] / "demo"
"""The folder inside the package."""

BUNDLE_FILE = "model.json"

TURBO = "unet_turbo"
"""The UNet for few steps, among the configurations of a bundle that has one."""

_CLASSES: Mapping[str, type] = {
    "text_encoder": CLIPTextConfig,
    "unet": UNet2DConditionConfig,
    TURBO: UNet2DConditionConfig,
    "vae": AutoencoderKLConfig,
    "tiny_vae": AutoencoderTinyConfig,
}


@dataclass(frozen=True)
class Bundle:
    """A bundled model.

    Attributes:
        recipe: by which it was trained, one of `scripts.demo.recipes`.
        summary: a line for people.
        sample_size: side of its images, in pixels.
        configs: sizes of its networks: ``text_encoder``, ``unet``, ``vae``, ``tiny_vae``, and
            `TURBO` if there is one.
    """

    recipe: str
    summary: str
    sample_size: int
    configs: Mapping[str, Any] = field(hash=False)


def read_bundle(folder: Path) -> Bundle:
    """What the model in a folder says of itself."""
    values = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    configs = {
        name: _CLASSES[name](**{key: _frozen(value) for key, value in sizes.items()})
        for name, sizes in values.pop("configs").items()
    }
    return Bundle(**values, configs=configs)


def write_bundle(folder: Path, bundle: Bundle) -> None:
    """Write what `read_bundle` reads."""
    values = {**vars(bundle), "configs": {k: asdict(v) for k, v in bundle.configs.items()}}
    text = json.dumps(values, indent=1)
    (folder / BUNDLE_FILE).write_text(text + "\n", encoding="utf-8")


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that the configurations have."""
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value
