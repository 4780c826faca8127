"""LoRAs that prompts ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sdpy.checkpoints import Lora, find_lora
from sdpy.errors import UsageError
from sdpy.text.tags import take_lora_tags

if TYPE_CHECKING:  # it imports this module
    from sdpy.pipelines.inputs import ImageRequest


def with_prompt_loras(given: ImageRequest) -> ImageRequest:
    """The request with the LoRAs that its prompt names as options, and its prompt without them.

    Raises:
        UsageError: a tag that cannot be read, no folder of LoRAs, or none of that name in it.
    """
    if given.prompt_syntax == "plain":
        return given
    prompt, tags = take_lora_tags(given.prompt)
    if not tags:
        return given
    if given.lora_dir is None:
        raise UsageError(
            f"the prompt asks for the LoRA '{tags[0].name}': say with --lora-dir in which folder "
            "it is, or leave <lora:...> out"
        )
    loras = [Lora(find_lora(tag.name, given.lora_dir), tag.weight) for tag in tags]
    return replace(given, prompt=prompt, lora=(*given.lora, *loras))
