"""What peft says of an adapter beside its weights: scale, and what it was trained on.

In a file of diffusers this is an entry of its metadata, in a folder of peft it is the file
``adapter_config.json``. Every setting is used here, known to be without effect on weights that are
merged, or refused where it is not at its default.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from sdpy.checkpoints.adapters.files import CONFIG
from sdpy.checkpoints.base import Checkpoint, printable
from sdpy.errors import WeightsError

METADATA = "lora_adapter_metadata"
"""The entry in which diffusers keeps the settings of all components, the names before a dot."""

PEFT_PREFIX = "base_model.model."
"""Before all names in a file of peft; no other file has a configuration beside it."""

KINDS = {"LORA", "LOHA", "LOKR"}
"""The types of peft that sdpy merges."""

USED = {
    *("peft_type", "r", "rank_pattern", "lora_alpha", "alpha", "alpha_pattern", "use_rslora"),
    *("init_lora_weights", "init_weights", "fan_in_fan_out"),
}

# They say which layers were trained, which the names of the tensors do as well; how; or by whom.
WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "peft_version", "revision", "task_type"),
    *("inference_mode", "runtime_config", "ensure_weight_tying", "use_effective_conv2d"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "rank_dropout", "rank_dropout_scale", "module_dropout"),
    *("decompose_both", "decompose_factor", "megatron_core", "qalora_group_size"),
    *("eva_config", "lora_ga_config", "velora_config"),
    # What these add is in tensors of its own, and refused or merged there.
    *("bias", "lora_bias", "use_dora", "modules_to_save"),
}

# Values by which the factors begin and nothing else. Others change the model's weights first.
INITIAL_VALUES = (None, True, False, "gaussian", "eva", "orthogonal", "lycoris")

_PATTERN_SECONDS = 1.0


@dataclass(frozen=True)
class Settings:
    """The settings of the adapter of one component.

    Attributes:
        source: the file that they come from, for errors.
        values: by their names; empty where there are none.
    """

    source: Path
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would change the result and is not known."""
        kind = self.values.get("peft_type", "LORA")
        if kind is not None and kind not in KINDS:
            raise self._error(f"is of the kind {printable(str(kind))}, which sdpy does not merge")
        for name, value in self.values.items():
            if name not in USED | WITHOUT_EFFECT and value not in (None, False, 0, "", [], {}):
                raise self._error(f"sets {printable(name)}, which sdpy does not know")
        for name in ("init_lora_weights", "init_weights"):
            value = self.values.get(name, True)
            if value not in INITIAL_VALUES:
                raise self._error(
                    f"began with {name} {printable(str(value))}, for which the model's own weights "
                    "were changed; save it with peft's path_initial_model_for_weight_conversion"
                )
        if self.values.get("fan_in_fan_out") not in (None, False):
            raise self._error("sets fan_in_fan_out, which no layer of Stable Diffusion has")

    def scale(self, layer: str, rank: int | None) -> float:
        """The factor of a layer for which no alpha is stored beside its tensors.

        Args:
            layer: its name.
            rank: of its factors; None where they do not tell.
        """
        alpha = self._number("lora_alpha", "alpha", "alpha_pattern", layer)
        if rank is None:
            rank = self._number("r", "r", "rank_pattern", layer)
        if alpha is None or not rank:
            return 1.0
        return alpha / (math.sqrt(rank) if self.values.get("use_rslora") else rank)

    def _number(self, name: str, other: str, patterns: str, layer: str) -> Any:
        value = self.values.get(name, self.values.get(other))
        listed = self.values.get(patterns)
        if listed is not None and not isinstance(listed, dict):
            raise self._error(f"has no object for {patterns}")
        for pattern, own in (listed or {}).items():
            if self._matches(pattern, layer):
                value = own
                break
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self._error(f"gives no number for {name}")
        return value

    def _matches(self, pattern: str, layer: str) -> bool:
        """Whether a pattern means a layer: a regular expression of the end of its name."""
        try:
            found = regex.match(rf"(?:.*\.)?(?:{pattern})$", layer, timeout=_PATTERN_SECONDS)
        except (regex.error, TimeoutError) as error:
            raise self._error(f"has a pattern that cannot be read: {printable(pattern)}") from error
        return found is not None

    def _error(self, problem: str) -> WeightsError:
        return WeightsError(f"{self.source} cannot be merged: its configuration {problem}")


def read_settings(source: Checkpoint) -> tuple[Settings, dict[str, Settings]]:
    """The settings of an adapter's file.

    Returns:
        Those of a file that peft wrote, for whichever component it is for; and those that diffusers
        wrote, by component.

    Raises:
        WeightsError: they are broken, or hold something that sdpy does not know.
    """
    own = Settings(source.path)
    beside = source.path.parent / CONFIG
    if any(name.startswith(PEFT_PREFIX) for name in source.outline) and os.path.isfile(beside):
        own = Settings(beside, _object(beside, _text(beside), str(beside)))
    place = f"{source.path}: its entry {METADATA}"
    merged = _object(source.path, source.metadata.get(METADATA, "{}"), place)
    by_component: dict[str, dict[str, Any]] = {}
    for key, value in merged.items():
        component, _, name = key.partition(".")
        by_component.setdefault(component, {})[name] = value
    return own, {name: Settings(source.path, values) for name, values in by_component.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error


def _object(path: Path, text: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{place} is no JSON; download {path.name} again") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{place} holds no object of settings; download {path.name} again")
    return found
