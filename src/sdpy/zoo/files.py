"""The files of a model, and where they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sdpy.components import COMPONENTS
from sdpy.errors import WeightsError
from sdpy.zoo.variants import VOCABULARY, ModelVariant


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model.

    Attributes:
        weights: by component.
        vocabulary: CLIP's byte-pair merges.
        own_vocabulary: of the model's folder, where the user names another; None otherwise.
    """

    weights: Mapping[str, Path] = field(hash=False)
    vocabulary: Path
    own_vocabulary: Path | None = None

    def with_weights(self, **weights: Path) -> ModelFiles:
        """The same files but for the weights of these components."""
        return replace(self, weights={**self.weights, **weights})


def find_files(
    variant: ModelVariant, folder: Path, given: Mapping[str, Path | None] | None = None
) -> ModelFiles:
    """Where a variant's files are.

    Args:
        variant: gives the names that are looked for.
        folder: the data folder; a bundled variant has its own.
        given: files named by the user, by component and `VOCABULARY`; None where none is.

    Raises:
        WeightsError: files are missing; says which, where, and what to do.
    """
    folder = folder if variant.bundled is None else variant.bundled
    found: dict[str, Path] = {}
    missing: list[str] = []
    for name, candidates in variant.files.all.items():
        chosen = None if given is None else given.get(name)
        if name != VOCABULARY and name not in variant.configs:
            if chosen is not None:
                row = COMPONENTS[name]
                raise WeightsError(f"{variant.name} has no {row.label}: leave {row.option} out")
            continue
        paths = [folder / candidate for candidate in candidates] if chosen is None else [chosen]
        existing = [path for path in paths if os.path.exists(path)]  # False also for a bad name
        if existing:
            found[name] = existing[0]
        else:
            missing.append(str(paths[0]))
    if missing:
        raise WeightsError(
            f"no weights for {variant.name}: looked for {', '.join(missing)}; `sdpy download "
            f"{variant.name}` downloads them (see data/README.md), --data names another folder, "
            "--model demo needs none of them"
        )
    vocabulary = found.pop(VOCABULARY)
    return ModelFiles(found, vocabulary)
