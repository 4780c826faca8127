"""A run's results in pieces that are small enough to be carried around one by one."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

PIECE_BYTES = 16 * 1000 * 1000
"""Greatest size of a piece."""

PIECE_NAME, SUMS_FILE = "results.zip.{}", "SHA256SUMS"


def split(files: Sequence[Path], folder: Path, size: int = PIECE_BYTES) -> list[Path]:
    """Pack files into an archive, and write it as ``results.zip.000`` and so on.

    A file of check sums stands beside the pieces, as ``sha256sum --check`` reads it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, file.name)
    packed = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(PIECE_NAME.format("*")):
        old.unlink()
    pieces, sums = [], []
    for number, start in enumerate(range(0, len(packed), size)):
        piece = folder / PIECE_NAME.format(f"{number:03d}")
        piece.write_bytes(packed[start : start + size])
        pieces.append(piece)
        sums.append(f"{hashlib.sha256(packed[start : start + size]).hexdigest()}  {piece.name}")
    (folder / SUMS_FILE).write_text("\n".join(sums) + "\n", encoding="utf-8")
    return pieces


def join(folder: Path, target: Path) -> list[Path]:
    """Unpack the archive whose pieces lie in a folder, into another.

    Raises:
        ValueError: a piece is missing or damaged.
    """
    packed = bytearray()
    for line in (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines():
        expected, name = line.split()
        piece = folder / name
        if not piece.exists() or hashlib.sha256(piece.read_bytes()).hexdigest() != expected:
            raise ValueError(f"{piece}: the piece is missing or damaged; fetch it again")
        packed += piece.read_bytes()
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(target)
        return [target / name for name in archive.namelist()]
