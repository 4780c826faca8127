"""sdpy's own record of an image: all that it takes to generate it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sdpy import __version__

NUMERICS = 1
"""Raised whenever the same record gives other pixels than before, by more than rounding."""


@dataclass(frozen=True)
class RecordedFile:
    """A file that went into an image.

    Attributes:
        role: what it is: a component, "vocabulary", "lora", "embedding", "image", "mask" or
            "control image".
        name: without folders, which are nobody's business; empty for an image that was no file.
        sha256: of its content in hexadecimal digits; of the RGB pixels of an image that was no
            file.
    """

    role: str
    name: str
    sha256: str


@dataclass(frozen=True)
class ImageRecord:
    """How one image was made. The same image made alone or among others has the same record.

    Attributes:
        task: "text2img", "img2img" or "inpaint".
        prompt: what was to be generated.
        options: every option by its name on the command line, without dashes in front, as JSON has
            it; what was left to the model is filled in.
        size: width and height of the finished image in pixels.
        model: name and prediction type of the model, and what else is known of it.
        files: all weights and input images.
        environment: what rounding depends on: torch's version, device, dtype.
        sdpy: the version that made it.
        numerics: see `NUMERICS`.
        job: where it comes from, of an image of a batch: file, line, key; see `sdpy.jobs`.
    """

    task: str
    prompt: str
    options: Mapping[str, Any]
    size: tuple[int, int]
    model: Mapping[str, Any]
    files: tuple[RecordedFile, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    sdpy: str = __version__
    numerics: int = NUMERICS
    job: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Of its noise."""
        return int(self.options["seed"])

    def files_of(self, role: str) -> tuple[RecordedFile, ...]:
        """The files of one role, in their order."""
        return tuple(file for file in self.files if file.role == role)

    def to_json(self) -> str:
        """The record as a text of one line."""
        values = asdict(self)
        if not self.job:
            del values["job"]
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ImageRecord:
        """Read a record.

        Raises:
            ValueError: it is none.
        """
        try:
            read = json.loads(text)
            known = {one.name for one in fields(cls)}
            values: dict[str, Any] = {name: read[name] for name in read if name in known}
            width, height = read["size"]
            files = tuple(
                RecordedFile(str(file["role"]), str(file["name"]), str(file["sha256"]))
                for file in read["files"]
            )
            record = cls(**{**values, "size": (int(width), int(height)), "files": files})
            int(record.options["seed"])
            if not (isinstance(record.prompt, str) and isinstance(record.numerics, int)):
                raise TypeError
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise ValueError("not a record of sdpy") from error
        return record
