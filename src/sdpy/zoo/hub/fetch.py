"""Bringing files from a hub into the data folder, whole and checked, or not at all.

What has arrived of a file is kept beside its place as ``.NAME.CHECKSUM.part`` until all of it is
there and its checksum is right; a download that broke off goes on from there, in the same run or
in the next. The checksum in the name keeps a file's revisions apart.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from sdpy.errors import HubError, OutputError, UsageError, WeightsError
from sdpy.zoo.hub.client import Hub, PassingError, RemoteFile
from sdpy.zoo.hub.plan import Item

if TYPE_CHECKING:
    from hashlib import _Hash

# Tries in a row that bring no new byte, and the seconds before the second; they double each time.
MAX_TRIES = 6
FIRST_WAIT = 1.0

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Transfer:
    """How far a file is.

    Attributes:
        action: what is done with it.
        item: the file.
        done: bytes of it so far.
    """

    action: Literal["checking", "fetching"]
    item: Item
    done: int


@dataclass(frozen=True)
class Remark:
    """Something that the user should know."""

    text: str


Event = Transfer | Remark


def find_missing(
    items: Sequence[Item], *, force: bool = False
) -> Generator[Event, None, tuple[Item, ...]]:
    """Compare what is there already with the hub's sizes and checksums; return what is missing.

    Raises:
        UsageError: something else is in a file's place, and not to be replaced (`force`).
    """
    missing: dict[Path, Item] = {}
    for item in items:
        if item.target in missing:
            continue
        if not os.path.lexists(item.target):
            missing[item.target] = item
            continue
        if item.target.exists() and not item.target.is_file():
            raise UsageError(f"{item.target} is no plain file; move it away")
        if not (yield from _is_complete(item)):
            if not force:
                raise UsageError(
                    f"{item.target} is there already, and is not the {item.remote.path} of "
                    f"{item.remote.repository}; move it away, or give --force to replace it"
                )
            missing[item.target] = item
    return tuple(missing.values())


def check_room(items: Sequence[Item], folder: Path) -> None:
    """Make sure that the folder can be written to, and that there is room for the files.

    Raises:
        UsageError: the folder cannot be written to.
        OutputError: the disk has too little room.
    """
    existing = _existing(folder)
    try:
        handle, name = tempfile.mkstemp(dir=existing, prefix=".sdpy-")
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise UsageError(
            f"the folder {existing} cannot be written to ({error.strerror}); name another one "
            "with --data"
        ) from error
    needed = sum(item.size - _part_size(item) for item in items)
    free = free_bytes(folder)
    if needed > free:
        raise OutputError(
            f"{gigabytes(needed)} are to be fetched into {folder}, but only {gigabytes(free)} are "
            "free there; make room, or name a folder on another disk with --data"
        )


def fetch_files(hub: Hub, items: Sequence[Item]) -> Generator[Event, None, None]:
    """Fetch files one after the other, telling how far each is.

    Raises:
        HubError: the hub cannot be reached or does not give a file, or its connection broke
            again and again; another run goes on from there.
        WeightsError: what arrived does not have the hub's checksum, and was removed.
        OutputError: a file cannot be written, such as on a full disk.
        UsageError: another process is fetching the same file.
    """
    for item in items:
        try:
            yield from _fetch(hub, item)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"cannot write {item.target}: {reason}; what has arrived is kept, and the same "
                "command goes on from there"
            ) from error


def free_bytes(folder: Path) -> int:
    """Bytes that are free where ``folder`` is or will be."""
    return shutil.disk_usage(_existing(folder)).free


def gigabytes(count: int) -> str:
    """A number of bytes, for people."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _fetch(hub: Hub, item: Item) -> Iterator[Event]:
    final = Path(os.path.realpath(item.target))
    final.parent.mkdir(parents=True, exist_ok=True)
    part = _part(item)
    with _open_alone(part, item) as file:
        digest = yield from _receive(hub, item, file)
        file.flush()
        os.fsync(file.fileno())
    if not _is_right(digest, item.remote):
        part.unlink()
        raise WeightsError(
            f"what {hub.host} gave for {item.target} does not have the checksum that it should "
            "have, and was removed; run the command again, or name another hub with --endpoint"
        )
    if item.remote.checksum is None:
        yield Remark(f"{hub.host} gives no checksum of {item.target}; only its size was checked")
    os.replace(part, final)


def _receive(hub: Hub, item: Item, file: BinaryIO) -> Generator[Event, None, _Hash]:
    """Append to ``file`` until it is as long as it should be; return the digest of its content."""
    digest, position = yield from _read_part(item, file)
    farthest, tries = position, 1
    while position < item.size:
        try:
            with hub.open(item.remote, position) as (start, chunks):
                if start != position:
                    file.seek(0)
                    file.truncate()
                    digest, position = _digest(item.remote), 0
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    position += len(chunk)
                    if position > farthest:
                        farthest, tries = position, 1
                    yield Transfer("fetching", item, min(position, item.size))
                    if position > item.size:
                        break  # whatever this is, its checksum is wrong
            if position < item.size:
                raise PassingError(f"{hub.host} sent less than it should; check the network")
        except PassingError as error:
            if tries == MAX_TRIES:
                raise HubError(
                    f"{error}; {gigabytes(position)} of {gigabytes(item.size)} of {item.target} "
                    "have arrived, and the same command goes on from there"
                ) from error
            wait = FIRST_WAIT * 2 ** (tries - 1) if error.wait is None else error.wait
            tries += 1
            yield Remark(f"{error}; trying again in {wait:.0f} s")
            time.sleep(wait)
    return digest


def _read_part(item: Item, file: BinaryIO) -> Generator[Event, None, tuple[_Hash, int]]:
    """Digest and length of what an earlier run has left of a file."""
    digest, position = _digest(item.remote), 0
    while chunk := file.read(_READ_BYTES):
        digest.update(chunk)
        position += len(chunk)
        yield Transfer("fetching", item, min(position, item.size))
    if position > item.size:
        file.seek(0)
        file.truncate()
        return _digest(item.remote), 0
    return digest, position


def _is_complete(item: Item) -> Generator[Event, None, bool]:
    try:
        if not item.target.exists() or item.target.stat().st_size != item.size:
            return False
        digest, done = _digest(item.remote), 0
        with item.target.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
                done += len(chunk)
                yield Transfer("checking", item, done)
    except OSError as error:
        raise UsageError(f"cannot read {item.target}: {error.strerror}; move it away") from error
    return _is_right(digest, item.remote)


def _digest(remote: RemoteFile) -> _Hash:
    """The beginning of the kind of checksum that the hub gives for a file."""
    if remote.checksum is not None and len(remote.checksum) == 40:
        return hashlib.sha1(b"blob %d\0" % (remote.size or 0), usedforsecurity=False)
    return hashlib.sha256()


def _is_right(digest: _Hash, remote: RemoteFile) -> bool:
    return remote.checksum is None or digest.hexdigest() == remote.checksum


def _part(item: Item) -> Path:
    final = Path(os.path.realpath(item.target))
    version = item.remote.commit if item.remote.checksum is None else item.remote.checksum
    return final.with_name(f".{final.name}.{version[:16]}.part")


def _part_size(item: Item) -> int:
    try:
        return min(_part(item).stat().st_size, item.size)
    except OSError:
        return 0


def _existing(folder: Path) -> Path:
    """The innermost folder on the way to ``folder`` that exists."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


@contextmanager
def _open_alone(part: Path, item: Item) -> Iterator[BinaryIO]:
    """Open a partial file to read and append to, for this process only where that can be had."""
    with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"another process is fetching {item.target}; let it finish"
                ) from error
            except OSError:
                pass  # Some network file systems have no locks; the checksum tells in the end.
        yield file
