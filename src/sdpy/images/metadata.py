"""Metadata: how an image was made, as other Stable Diffusion programs write it into files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image, PngImagePlugin

PARAMETERS = "parameters"
"""Key of the text in a PNG file."""


def parameters_text(prompt: str, negative_prompt: str, facts: Mapping[str, object]) -> str:
    """The text that A1111's web UI writes: prompt, negative prompt, and a line of facts."""
    lines = [prompt]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return "\n".join(lines)


def png_info(parameters: str) -> PngImagePlugin.PngInfo:
    """The text chunk of a PNG file."""
    info = PngImagePlugin.PngInfo()
    info.add_text(PARAMETERS, parameters)
    return info


class GeneratedImage(Image.Image):
    """A PIL image that carries its metadata: `save` writes it into PNG files.

    Images that PIL makes of it, by `resize` for example, are ordinary ones, with the text in their
    ``info``.

    Attributes:
        parameters: how it was made; see `parameters_text`.
        seed: of its noise.
    """

    parameters: str = ""
    seed: int = 0

    @classmethod
    def of(cls, image: Image.Image, parameters: str, seed: int) -> GeneratedImage:
        """An image with its metadata.

        Args:
            image: the pixels, which are copied.
            parameters: how it was made.
            seed: of its noise.
        """
        made = cls()
        made.__setstate__(image.__getstate__())
        made.info[PARAMETERS] = parameters
        made.parameters, made.seed = parameters, seed
        return made

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Write a file as PIL does, with the metadata where it is a PNG."""
        suffix = str(getattr(fp, "name", fp)).lower().rpartition(".")[2]
        if (format or suffix).lower() == "png":
            params.setdefault("pnginfo", png_info(self.parameters))
        super().save(fp, format, **params)
