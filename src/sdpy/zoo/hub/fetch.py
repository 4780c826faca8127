"""Downloading planned files into the data folder: resumable, verified, written atomically.

What has arrived of a file is kept beside its place as ``.NAME.CHECKSUM.part`` until it is complete
and its checksum verified. A download that broke off is resumed from there, in the same run or in
the next; the checksum in the name keeps a file's revisions apart. `sdpy.zoo.hub.client` says why
`huggingface_hub` does not do this for us.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from sdpy.errors import HubError, OutputError, UsageError, WeightsError
from sdpy.files import try_writing
from sdpy.zoo.hub.client import Hub, RemoteFile, TransientError
from sdpy.zoo.hub.plan import PlannedFile

if TYPE_CHECKING:
    from hashlib import _Hash

# Tries in a row that bring no new byte, and the seconds before the second; they double each time.
MAX_TRIES = 6
FIRST_WAIT = 1.0

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class FileProgress:
    """How far a file is.

    Attributes:
        action: what is done with it.
        file: the file.
        done: bytes of it so far.
    """

    action: Literal["checking", "downloading"]
    file: PlannedFile
    done: int


@dataclass(frozen=True)
class Notice:
    """A line that the user should read."""

    text: str


Event = FileProgress | Notice


def find_missing(
    files: Sequence[PlannedFile], *, force: bool = False
) -> Generator[FileProgress, None, tuple[PlannedFile, ...]]:
    """Compare what is there already with the hub's sizes and checksums; return what is missing.

    Raises:
        UsageError: another file is in the place of one, and is not to be replaced (`force`).
    """
    missing: dict[Path, PlannedFile] = {}
    for file in files:
        if file.target in missing:
            continue
        if os.path.lexists(file.target):
            if file.target.exists() and not file.target.is_file():
                raise UsageError(f"{file.target} is not a regular file; move it away")
            if (yield from _is_complete(file)):
                continue
            if not force:
                raise UsageError(
                    f"{file.target} exists already and differs from {file.remote.path} of "
                    f"{file.remote.repository}; move it away, or give --force to replace it"
                )
        missing[file.target] = file
    return tuple(missing.values())


def check_disk_space(files: Sequence[PlannedFile], folder: Path) -> None:
    """Make sure that the folder can be written to, and that there is room for the files.

    Raises:
        UsageError: the folder cannot be written to.
        OutputError: the disk has too little room.
    """
    existing = _existing(folder)
    try:
        try_writing(existing)
    except OSError as error:
        raise UsageError(
            f"the folder {existing} cannot be written to ({error.strerror}); name another one "
            "with --data"
        ) from error
    needed = sum(file.size - _part_size(file) for file in files)
    free = free_bytes(folder)
    if needed > free:
        raise OutputError(
            f"{format_size(needed)} are to be downloaded into {folder}, but only "
            f"{format_size(free)} are free there; make room, or name a folder on another disk "
            "with --data"
        )


def fetch_files(hub: Hub, files: Sequence[PlannedFile]) -> Generator[Event, None, None]:
    """Download files one after the other, telling how far each is.

    Raises:
        HubError: the hub cannot be reached or does not give a file, or its connection broke
            again and again; another run resumes from there.
        WeightsError: what arrived does not have the hub's checksum, and was removed.
        OutputError: a file cannot be written, such as on a full disk.
        UsageError: another process is downloading the same file.
    """
    for file in files:
        try:
            yield from _fetch(hub, file)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"cannot write {file.target}: {reason}; what has arrived is kept, and the same "
                "command resumes from there"
            ) from error


def free_bytes(folder: Path) -> int:
    """Bytes that are free where ``folder`` is or will be."""
    return shutil.disk_usage(_existing(folder)).free


def format_size(count: int) -> str:
    """A number of bytes, for people."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _fetch(hub: Hub, file: PlannedFile) -> Iterator[Event]:
    final = Path(os.path.realpath(file.target))
    final.parent.mkdir(parents=True, exist_ok=True)
    part = _part(file)
    with _open_exclusively(part, file) as stream:
        digest = yield from _receive(hub, file, stream)
        received = stream.tell()
        stream.flush()
        os.fsync(stream.fileno())
    if received != file.size or not _has_checksum(digest, file.remote):
        part.unlink()
        raise WeightsError(
            f"what {hub.host} gave for {file.target} does not have the checksum that it should "
            "have, and was removed; run the command again, or name another hub with --endpoint"
        )
    if file.remote.checksum is None:
        yield Notice(f"{hub.host} gives no checksum of {file.target}; only its size was checked")
    os.replace(part, final)


def _receive(hub: Hub, file: PlannedFile, stream: BinaryIO) -> Generator[Event, None, _Hash]:
    """Append to ``stream`` until it is as long as the file; return the digest of its content."""
    if os.fstat(stream.fileno()).st_size > file.size:
        stream.truncate(0)
    digest = yield from _read(stream, file, "downloading")
    position = farthest = stream.tell()
    tries = 1
    while position < file.size:
        try:
            with hub.open(file.remote, position) as (start, chunks):
                if start != position:
                    stream.seek(0)
                    stream.truncate()
                    digest, position = _new_digest(file), 0
                for chunk in chunks:
                    stream.write(chunk)
                    digest.update(chunk)
                    position += len(chunk)
                    if position > farthest:
                        farthest, tries = position, 1
                    yield FileProgress("downloading", file, min(position, file.size))
                    if position > file.size:
                        return digest  # this is another file, and may never end
            if position < file.size:
                raise TransientError(f"{hub.host} sent less than it should; check the network")
        except TransientError as error:
            if tries == MAX_TRIES:
                raise HubError(
                    f"{error}; {format_size(position)} of {format_size(file.size)} of "
                    f"{file.target} have arrived, and the same command resumes from there"
                ) from error
            wait = FIRST_WAIT * 2 ** (tries - 1)
            wait = wait if error.retry_after is None else error.retry_after
            tries += 1
            yield Notice(f"{error}; trying again in {wait:.0f} s")
            time.sleep(wait)
    return digest


def _is_complete(file: PlannedFile) -> Generator[FileProgress, None, bool]:
    """Whether a file is in its place, with the hub's size and checksum."""
    try:
        if not file.target.exists() or file.target.stat().st_size != file.size:
            return False
        with file.target.open("rb") as stream:
            digest = yield from _read(stream, file, "checking")
    except OSError as error:
        raise UsageError(f"cannot read {file.target}: {error.strerror}; move it away") from error
    return _has_checksum(digest, file.remote)


def _read(
    stream: BinaryIO, file: PlannedFile, action: Literal["checking", "downloading"]
) -> Generator[FileProgress, None, _Hash]:
    """Read to the end; return the digest of what was read."""
    digest, done = _new_digest(file), 0
    while chunk := stream.read(_READ_BYTES):
        digest.update(chunk)
        done += len(chunk)
        yield FileProgress(action, file, done)
    return digest


def _new_digest(file: PlannedFile) -> _Hash:
    """The beginning of the kind of checksum that the hub gives for a file."""
    if file.remote.checksum is not None and len(file.remote.checksum) == 40:
        return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    return hashlib.sha256()


def _has_checksum(digest: _Hash, remote: RemoteFile) -> bool:
    return remote.checksum is None or digest.hexdigest() == remote.checksum


def _part(file: PlannedFile) -> Path:
    final = Path(os.path.realpath(file.target))
    version = file.remote.checksum or file.remote.commit.replace("/", "-")
    return final.with_name(f".{final.name}.{version[:16]}.part")


def _part_size(file: PlannedFile) -> int:
    try:
        return min(_part(file).stat().st_size, file.size)
    except OSError:
        return 0


def _existing(folder: Path) -> Path:
    """The innermost folder on the way to ``folder`` that exists."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)


@contextmanager
def _open_exclusively(part: Path, file: PlannedFile) -> Iterator[BinaryIO]:
    """Open a partial file to read and append to, locked where the file system has locks."""
    with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"another process is downloading {file.target}; let it finish"
                ) from error
            except OSError:
                pass  # Some network file systems have no locks; the checksum tells in the end.
        yield stream
