"""The components of a model, and where their files are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdpy.errors import WeightsError
from sdpy.zoo.variants import ModelVariant


@dataclass(frozen=True)
class ModelFiles:
    """The files of one set of models."""

    text_encoder: Path
    unet: Path
    vae: Path
    vocabulary: Path


def find_files(
    variant: ModelVariant, folder: Path, given: Mapping[str, Path | None] | None = None
) -> ModelFiles:
    """Where a variant's files are.

    Args:
        variant: gives the names that are looked for.
        folder: the data folder; a bundled variant has its own.
        given: files named by the user, by the fields of `ModelFiles`; None where none is.

    Raises:
        WeightsError: files are missing; says which, where, and what to do.
    """
    folder = folder if variant.bundled is None else variant.bundled
    found: dict[str, Path] = {}
    missing: list[str] = []
    for name, candidates in vars(variant.files).items():
        chosen = None if given is None else given.get(name)
        paths = [folder / candidate for candidate in candidates] if chosen is None else [chosen]
        existing = [path for path in paths if os.path.exists(path)]  # False also for a bad name
        if existing:
            found[name] = existing[0]
        else:
            missing.append(str(paths[0]))
    if missing:
        raise WeightsError(
            f"no weights for {variant.name}: looked for {', '.join(missing)}; `sdpy download "
            f"{variant.name}` fetches them (see data/README.md), --data names another folder, "
            "--model demo paints without them"
        )
    return ModelFiles(**found)
