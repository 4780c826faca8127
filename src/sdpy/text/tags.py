"""Tags in prompts, ``<kind:name:numbers>``, as A1111's web UI has them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sdpy.errors import UsageError

_TAG = re.compile(r"<(?P<kind>\w+):(?P<arguments>[^<>]+)>")

LORA_KINDS = ("lora", "lyco")


@dataclass(frozen=True)
class LoraTag:
    """A LoRA that a prompt asks for.

    Attributes:
        name: of its file, in the folder of LoRAs.
        weight: how much of it to add.
    """

    name: str
    weight: float = 1.0


def take_lora_tags(text: str) -> tuple[str, tuple[LoraTag, ...]]:
    """A prompt without its tags of LoRAs, and what these say. Other tags stay where they are.

    Raises:
        UsageError: a tag whose weights are no numbers, or are others for the text encoder than for
            the UNet.
    """
    tags: list[LoraTag] = []

    def take(match: re.Match[str]) -> str:
        if match["kind"].lower() not in LORA_KINDS:
            return match[0]
        tags.append(_read(match[0], match["arguments"]))
        return ""

    stripped = _TAG.sub(take, text)
    return (stripped.strip() if tags else text), tuple(tags)


def other_tags(text: str) -> list[str]:
    """The tags in a prompt that are not of LoRAs."""
    return [match[0] for match in _TAG.finditer(text) if match["kind"].lower() not in LORA_KINDS]


def _read(tag: str, arguments: str) -> LoraTag:
    name, *rest = (part.strip() for part in arguments.split(":"))
    try:
        weights = [float(part.rpartition("=")[2]) for part in rest]
    except ValueError:
        weights = [math.nan]
    names = [part.rpartition("=")[0] for part in rest]
    if not all(map(math.isfinite, weights)) or set(names) - {"", "te", "unet"} or len(rest) > 2:
        raise UsageError(f"{tag} in the prompt: give a name and a number, as in <lora:name:0.8>")
    if len(set(weights)) > 1:
        raise UsageError(
            f"{tag} in the prompt: text encoder and UNet take the same weight here; give one, as "
            f"in <lora:{name}:{weights[0]:g}>"
        )
    return LoraTag(name, weights[0] if weights else 1.0)
