"""Zip archives whose members are mapped, not unpacked: the ground that several formats share."""

from __future__ import annotations

import struct
import zipfile
from typing import BinaryIO

from sdpy.checkpoints.limits import MAX_ENTRIES

ALIGNMENT = 64
LARGE_MEMBER = 2**30
"""From this many bytes on, a member gets zip64's larger header; zip asks for it at 2 GiB."""
MAX_SMALL_BYTES = 16 * 2**20
"""Of a member that is read as a whole."""


def members_of(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's directory. Raises ``ValueError`` where it is ambiguous."""
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise ValueError(f"it has {len(infos)} members, more than any real one")
    members = {info.filename: info for info in infos}
    if len(members) != len(infos):
        raise ValueError("two of its members have one name")
    return members


def read_small(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """All of a member, compressed or not; its checksum is verified.

    Raises:
        ValueError: it is larger than ``MAX_SMALL_BYTES``, whatever the directory says.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed in an unusual way")
    with archive.open(info) as member:
        data = member.read(MAX_SMALL_BYTES + 1)
    if len(data) > MAX_SMALL_BYTES:
        raise ValueError(f"{info.filename} is larger than any real one")
    return data


def stored_range(file: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> range:
    """Where in the file the bytes of a member lie. Raises ``ValueError`` if it is compressed."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(f"{info.filename} is compressed")
    # Sizes come from the directory: local headers that were written as a stream hold zeros.
    file.seek(info.header_offset)
    magic, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    start = info.header_offset + 30 + name_length + extra_length
    if magic != b"PK\x03\x04":
        raise ValueError(f"{info.filename} is not where the directory says")
    if info.file_size != info.compress_size or start + info.file_size > archive.start_dir:
        raise ValueError(f"{info.filename} reaches beyond its place")
    return range(start, start + info.file_size)


def add_member(archive: zipfile.ZipFile, name: str, *parts: bytes | memoryview) -> None:
    """Append a stored member, its data at a multiple of 64 bytes, padded as libtorch does."""
    size = sum(len(part) for part in parts)
    info = zipfile.ZipInfo(name)
    info.file_size = size
    large = size >= LARGE_MEMBER
    start = archive.start_dir + 30 + len(name.encode()) + (20 if large else 0) + 4
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as member:
        for part in parts:
            member.write(part)
    info.extra = b""  # the directory needs no padding
