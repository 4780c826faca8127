"""Reading how an image was made, whichever program made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdpy.images.files import read_texts
from sdpy.images.metadata import PARAMETERS, RECORD
from sdpy.metadata.parameters import Parameters, parse_parameters
from sdpy.metadata.record import ImageRecord

A1111 = "A1111's web UI, or a program that writes as it does"

OTHER_PROGRAMS = {
    "workflow": "ComfyUI",
    "prompt": "ComfyUI",
    "invokeai_metadata": "InvokeAI",
    "invokeai_graph": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "Dream": "InvokeAI",
    "fooocus_scheme": "Fooocus",
    "Software": "",
}
"""Keys of texts that tell another program by which an image was made; "" for what they say."""


@dataclass(frozen=True)
class ImageMetadata:
    """What a file says of how its image was made.

    Attributes:
        program: that made it.
        parameters: prompt and facts; None where they could not be read.
        record: sdpy's own; None where there is none.
        texts: all texts of the file by their keys.
    """

    program: str
    parameters: Parameters | None = None
    record: ImageRecord | None = None
    texts: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            "program": self.program,
            "parameters": None if self.parameters is None else asdict(self.parameters),
            "record": None if self.record is None else json.loads(self.record.to_json()),
            "texts": dict(self.texts),
        }


def read_metadata(path: str | Path) -> ImageMetadata | None:
    """How the image of a file was made; None where the file does not say it.

    Raises:
        ImageError: missing, unreadable or no image.
    """
    texts = read_texts(path)
    record: ImageRecord | None = None
    if RECORD in texts:
        try:
            record = ImageRecord.from_json(texts[RECORD])
        except ValueError:
            pass  # somebody else uses the same key, or has changed the text
    if PARAMETERS in texts:
        parameters = parse_parameters(texts[PARAMETERS])
        if record is not None:
            return ImageMetadata(f"sdpy {record.sdpy}", parameters, record, texts)
        if parameters.facts:
            version = parameters.facts.get("Version", "")
            program = version if version.startswith("sdpy ") else A1111
            return ImageMetadata(program, parameters, None, texts)
    if record is not None:
        return ImageMetadata(f"sdpy {record.sdpy}", Parameters(record.prompt), record, texts)
    return _other_programs(Path(path), texts)


def can_read_others() -> bool:
    """Whether the package that reads other programs' metadata is installed."""
    try:
        import sd_parsers  # noqa: F401
    except ImportError:
        return False
    return True


def _other_programs(path: Path, texts: Mapping[str, str]) -> ImageMetadata | None:
    """By sd-parsers; without it, or where it fails, only which program it was."""
    try:
        from sd_parsers import ParserManager
    except ImportError:
        return _by_keys(texts)
    try:
        info = ParserManager().parse(path)
    except Exception:  # whatever it makes of texts that make no sense
        info = None
    if info is None:
        return _by_keys(texts)
    facts: dict[str, str] = {}
    for sampler in info.samplers:
        found = {"Sampler": sampler.name, **sampler.parameters}
        if sampler.model is not None:
            found |= {"Model": sampler.model.name, "Model hash": sampler.model.hash}
        for name, value in found.items():
            if value is not None:
                facts.setdefault(str(name), str(value))
    for name, value in info.metadata.items():
        facts.setdefault(str(name), str(value))
    parameters = Parameters(info.full_prompt, info.full_negative_prompt, facts)
    return ImageMetadata(str(info.generator.value), parameters, None, texts)


def _by_keys(texts: Mapping[str, str]) -> ImageMetadata | None:
    for key, program in OTHER_PROGRAMS.items():
        if key in texts:
            return ImageMetadata(program or texts[key], None, None, texts)
    if PARAMETERS in texts:  # a prompt, at least
        return ImageMetadata(A1111, parse_parameters(texts[PARAMETERS]), None, texts)
    return None
