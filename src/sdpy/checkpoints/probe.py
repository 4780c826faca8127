"""Telling files apart by what is in them, never by their names."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sdpy.errors import WeightsError
from sdpy.files import open_input

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Probe:
    """What can be seen of a file or folder without parsing it.

    Attributes:
        path: the file or folder.
        size: bytes; 0 for a folder.
        head: the first ``HEAD_BYTES`` bytes; empty for a folder.
        members: names in a zip archive's directory; None for what is no readable archive.
        folder: whether it is a folder.
    """

    path: Path
    size: int
    head: bytes
    members: tuple[str, ...] | None
    folder: bool = False

    @property
    def is_zip(self) -> bool:
        """Whether it starts like a zip archive, readable or not."""
        return self.head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def probe(path: Path) -> Probe:
    """Look at a file. Raises ``WeightsError`` if it is missing, empty or not to be read."""
    try:
        if path.is_dir():
            return Probe(path, 0, b"", None, folder=True)
        with open_input(path) as file:
            head, size = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist; check the name of the weights file") from error
    except OSError as error:
        raise WeightsError(
            f"cannot read {path}: {error.strerror or error}; give the name of a weights file"
        ) from error
    if not head:
        raise WeightsError(f"{path} is empty; download it again")
    found = Probe(path, size, head, None)
    return Probe(path, size, head, _zip_members(path)) if found.is_zip else found


def _zip_members(path: Path) -> tuple[str, ...] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.namelist())
    except Exception:
        return None


# First bytes (lower-cased, leading blanks skipped) to what such a file is and what to do.
_TELLTALES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the weights; run `git lfs pull`"),
    (b"<!doctype", "is an HTML page saved as weights; download the file itself"),
    (b"<html", "is an HTML page saved as weights; download the file itself"),
    (b"<?xml", "is an XML page saved as weights; download the file itself"),
    (b"{", "is JSON text, not weights; give the weights file that belongs to it"),
    (b"gguf", "is a GGUF file, which sdpy does not read; convert it to .safetensors"),
    (b"ggml", "is a GGML file, which sdpy does not read; convert it to .safetensors"),
    (b"\x80", "is a Python pickle, but none of torch.save's; fetch the weights as .safetensors"),
    (b"\x1f\x8b", "is gzip-compressed; decompress it first"),
    (b"\x89hdf", "is an HDF5 file (Keras?); convert it to .safetensors"),
    (b"\x89png", "is an image, not weights"),
    (b"\xff\xd8\xff", "is an image, not weights"),
    (b"\x93numpy", "is a single NumPy array (.npy), not a set of named weights"),
)


def looks_like(probe: Probe) -> str:
    """What a file that no format recognises looks like, as the end of "FILE ...", one line."""
    if probe.folder:
        return "is the folder of a whole model; give it as --model, or the folder of one component"
    if probe.is_zip and probe.members is None:
        return (
            "starts like an archive of weights, but its end is missing or broken; download it again"
        )
    if probe.members is not None:
        return "is a zip archive without weights in it; unpack it and give the weights file"
    if not probe.head.strip(b"\0"):
        return "starts with zeros only (an interrupted download?); download it again"
    start = probe.head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for telltale, meaning in _TELLTALES:
        if start.startswith(telltale):
            return meaning
    return (
        "is not a weights file that sdpy knows (.ot, .safetensors, .ckpt, .npz); download it again"
    )
