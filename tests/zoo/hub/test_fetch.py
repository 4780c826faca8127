"""Fetching through broken connections, wrong bytes and full disks."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest

from sdpy.errors import HubError, OutputError, UsageError, WeightsError
from sdpy.zoo.hub import fetch
from sdpy.zoo.hub.client import Hub, RemoteFile
from sdpy.zoo.hub.fetch import FileProgress, Notice, check_disk_space, fetch_files, find_missing
from sdpy.zoo.hub.plan import PlannedFile
from support.hub_contents import weights
from support.loopback import (
    Break,
    Endless,
    Extra,
    LoopbackHub,
    Silence,
    Status,
    checksum_of,
    commit_of,
)

REPOSITORY = "owner/name"
UNET = "unet.safetensors"
CONTENT = weights("unet", 200_000)


@pytest.fixture
def item(hub: LoopbackHub, tmp_path: Path) -> PlannedFile:
    files = hub.repositories[REPOSITORY] = {UNET: CONTENT, "merges.txt": b"#version: 0.2\n"}
    return item_of(files, UNET, tmp_path / "data" / "sub" / UNET)


def item_of(files: dict[str, bytes], path: str, target: Path) -> PlannedFile:
    content = files[path]
    remote = RemoteFile(
        REPOSITORY, commit_of(files), path, len(content), checksum_of(path, content)
    )
    return PlannedFile(remote, target)


def run(hub: LoopbackHub, *items: PlannedFile) -> list[FileProgress | Notice]:
    return list(fetch_files(Hub(hub.address), items))


def finish(steps: Generator[Any, None, tuple[PlannedFile, ...]]) -> tuple[PlannedFile, ...]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def beside(item: PlannedFile) -> list[str]:
    """What lies in the folder of an item."""
    return sorted(path.name for path in item.target.parent.iterdir())


def ranges(hub: LoopbackHub) -> list[str | None]:
    return [request.headers["Range"] for request in hub.fetched(UNET)]


def test_a_file_arrives(hub: LoopbackHub, item: PlannedFile) -> None:
    events = run(hub, item)

    assert item.target.read_bytes() == CONTENT
    assert beside(item) == [UNET]
    transfers = [event for event in events if isinstance(event, FileProgress)]
    assert [event.done for event in transfers] == sorted({event.done for event in transfers})
    assert transfers[-1] == FileProgress("downloading", item, len(CONTENT))
    assert events == transfers
    umask = os.umask(0o022)
    os.umask(umask)
    assert item.target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_small_and_empty_files(hub: LoopbackHub, tmp_path: Path) -> None:
    files = hub.repositories[REPOSITORY] = {"merges.txt": b"#version: 0.2\n", "nothing.txt": b""}
    items = [item_of(files, path, tmp_path / path) for path in files]

    run(hub, *items)

    assert [item.target.read_bytes() for item in items] == list(files.values())


def test_a_broken_connection_goes_on_where_it_broke(hub: LoopbackHub, item: PlannedFile) -> None:
    hub.faults[UNET] = [Break(100_000), Break(50_000)]

    events = run(hub, item)

    assert item.target.read_bytes() == CONTENT
    assert ranges(hub) == [None, "bytes=100000-", "bytes=150000-"]
    remarks = [event.text for event in events if isinstance(event, Notice)]
    assert len(remarks) == 2
    assert all("trying again in" in remark for remark in remarks)


def test_a_hub_that_knows_no_ranges_begins_again(hub: LoopbackHub, item: PlannedFile) -> None:
    hub.whole_only = True
    hub.faults[UNET] = [Break(150_000), Break(100_000)]

    run(hub, item)

    assert item.target.read_bytes() == CONTENT
    assert len(hub.fetched(UNET)) == 3


def test_busy_hubs_and_silences_are_waited_for(
    hub: LoopbackHub, item: PlannedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        # The answer that is waited for in vain is the third.
        patience = 0.1 if len(waits) == 2 else 30.0
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", patience)

    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=wait))
    hub.faults[UNET] = [Status(503), Status(429, (("Retry-After", "5"),)), Silence()]

    run(hub, item)

    assert item.target.read_bytes() == CONTENT
    assert waits == [fetch.FIRST_WAIT, 5.0, 4 * fetch.FIRST_WAIT]


def test_a_connection_that_keeps_breaking_is_given_up_and_resumed_by_the_next_run(
    hub: LoopbackHub, item: PlannedFile
) -> None:
    hub.faults[UNET] = [Break(120_000), *[Break(0)] * (fetch.MAX_TRIES - 1)]

    with pytest.raises(HubError, match=r"120.0 kB of 200.0 kB.*the same command resumes"):
        run(hub, item)
    assert not item.target.exists()
    assert len(beside(item)) == 1
    assert len(hub.fetched(UNET)) == fetch.MAX_TRIES

    hub.requests.clear()
    run(hub, item)
    assert ranges(hub) == ["bytes=120000-"]
    assert item.target.read_bytes() == CONTENT
    assert beside(item) == [UNET]


def test_tries_are_counted_from_the_last_byte_that_came(
    hub: LoopbackHub, item: PlannedFile
) -> None:
    failures = [Break(1000), *[Break(0)] * (fetch.MAX_TRIES - 2)]
    hub.faults[UNET] = failures * 3

    run(hub, item)

    assert item.target.read_bytes() == CONTENT


def test_a_wrong_checksum_removes_the_file(hub: LoopbackHub, item: PlannedFile) -> None:
    hub.corrupt.add(UNET)

    with pytest.raises(WeightsError, match=rf"{UNET} does not have the checksum.*was removed"):
        run(hub, item)
    assert beside(item) == []

    hub.corrupt.clear()
    run(hub, item)
    assert item.target.read_bytes() == CONTENT


def test_the_checksums_of_small_files_are_gits(hub: LoopbackHub, tmp_path: Path) -> None:
    files = hub.repositories[REPOSITORY] = {"merges.txt": b"#version: 0.2\n"}
    hub.corrupt.add("merges.txt")

    with pytest.raises(WeightsError, match="does not have the checksum"):
        run(hub, item_of(files, "merges.txt", tmp_path / "merges.txt"))


def test_a_damaged_rest_of_an_earlier_run_is_found(hub: LoopbackHub, item: PlannedFile) -> None:
    hub.faults[UNET] = [Break(100_000)] + [Break(0)] * fetch.MAX_TRIES
    with pytest.raises(HubError):
        run(hub, item)
    (part,) = item.target.parent.iterdir()
    part.write_bytes(b"\0" * 100_000)
    hub.faults.clear()

    with pytest.raises(WeightsError):
        run(hub, item)
    run(hub, item)

    assert item.target.read_bytes() == CONTENT


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 1])
def test_a_rest_that_is_whole_or_too_long(hub: LoopbackHub, item: PlannedFile, length: int) -> None:
    hub.faults[UNET] = [Break(0)] * fetch.MAX_TRIES
    with pytest.raises(HubError):
        run(hub, item)
    (part,) = item.target.parent.iterdir()
    part.write_bytes((CONTENT + b"\0")[:length])
    hub.requests.clear()

    run(hub, item)

    assert item.target.read_bytes() == CONTENT
    assert len(hub.fetched(UNET)) == length - len(CONTENT)


def test_more_bytes_than_there_should_be(hub: LoopbackHub, item: PlannedFile) -> None:
    hub.faults[UNET] = [Extra(b"more")]

    with pytest.raises(WeightsError):
        run(hub, item)
    assert beside(item) == []


@pytest.mark.parametrize("checksum", [True, False])
def test_a_file_that_never_ends(hub: LoopbackHub, item: PlannedFile, checksum: bool) -> None:
    if not checksum:  # its size tells
        item = PlannedFile(replace(item.remote, checksum=None), item.target)
    hub.faults[UNET] = [Endless()]

    with pytest.raises(WeightsError, match="was removed"):
        run(hub, item)
    assert beside(item) == []


def test_a_revision_with_a_slash_and_no_checksum(hub: LoopbackHub, item: PlannedFile) -> None:
    hub.faults[UNET] = [Break(100_000)] + [Break(0)] * fetch.MAX_TRIES
    remote = replace(item.remote, commit="refs/pr/1", checksum=None)

    with pytest.raises(HubError):
        run(hub, PlannedFile(remote, item.target))
    assert len(beside(item)) == 1


def test_another_revision_does_not_go_on_from_the_rest_of_this_one(
    hub: LoopbackHub, item: PlannedFile
) -> None:
    hub.faults[UNET] = [Break(100_000)] + [Break(0)] * fetch.MAX_TRIES
    with pytest.raises(HubError):
        run(hub, item)
    hub.faults.clear()
    hub.requests.clear()
    files = hub.repositories[REPOSITORY] = {UNET: weights("newer", 200_000)}

    run(hub, item_of(files, UNET, item.target))

    assert item.target.read_bytes() == files[UNET]
    assert ranges(hub) == [None]


def test_a_file_without_a_checksum_is_taken_and_said(hub: LoopbackHub, item: PlannedFile) -> None:
    remote = RemoteFile(REPOSITORY, item.remote.commit, UNET, len(CONTENT), None)

    events = run(hub, PlannedFile(remote, item.target))

    assert item.target.read_bytes() == CONTENT
    assert any(isinstance(event, Notice) and "no checksum" in event.text for event in events)


def test_a_file_that_vanished(hub: LoopbackHub, item: PlannedFile) -> None:
    del hub.repositories[REPOSITORY]["merges.txt"]
    gone = PlannedFile(RemoteFile(REPOSITORY, "main", "merges.txt", 14, None), item.target)

    with pytest.raises(HubError, match="has no file merges.txt"):
        run(hub, gone)
    assert not item.target.exists()


def test_interrupted_runs_are_resumed(hub: LoopbackHub, item: PlannedFile) -> None:
    steps = fetch_files(Hub(hub.address), [item])
    arrived = next(steps)
    assert isinstance(arrived, FileProgress)
    steps.close()
    assert not item.target.exists()

    run(hub, item)

    assert ranges(hub) == [None, f"bytes={arrived.done}-"]
    assert item.target.read_bytes() == CONTENT


def test_a_disk_that_fills_up(
    hub: LoopbackHub, item: PlannedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_exclusively = fetch._open_exclusively

    class Full:
        """A file on a disk with room for 100 kB."""

        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, chunk: bytes) -> int:
            if self.file.tell() + len(chunk) > 100_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(chunk)

    @fetch.contextmanager
    def open_full(part: Path, item: PlannedFile) -> Any:
        with open_exclusively(part, item) as file:
            yield Full(file)

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_open_exclusively", open_full)
        with pytest.raises(OutputError, match=rf"{UNET}: No space left.*resumes from there"):
            run(hub, item)
    assert not item.target.exists()

    run(hub, item)
    assert item.target.read_bytes() == CONTENT
    assert 0 < int((ranges(hub)[-1] or "bytes=0-")[6:-1]) <= 100_000


def test_too_little_room_is_said_before(
    hub: LoopbackHub, item: PlannedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(item.target.anchor)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=150_000))

    with pytest.raises(OutputError, match=r"200.0 kB .*only 150.0 kB are free.*--data"):
        check_disk_space([item], item.target.parent)

    # What an earlier run has fetched needs no room any more.
    hub.faults[UNET] = [Break(100_000)] + [Break(0)] * fetch.MAX_TRIES
    with pytest.raises(HubError):
        run(hub, item)
    check_disk_space([item], item.target.parent)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_to(item: PlannedFile, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)

    with pytest.raises(UsageError, match=r"locked cannot be written to .*--data"):
        check_disk_space([item], tmp_path / "locked" / "data")


def test_a_file_in_the_place_of_the_folder(item: PlannedFile, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")

    with pytest.raises(UsageError, match=r"data cannot be written to .*--data"):
        check_disk_space([item], tmp_path / "data" / "sub")


def test_what_is_there_is_not_fetched_again(hub: LoopbackHub, item: PlannedFile) -> None:
    item.target.parent.mkdir(parents=True)
    item.target.write_bytes(CONTENT)

    events = list(find_missing([item]))

    assert finish(find_missing([item])) == ()
    assert events[-1] == FileProgress("checking", item, len(CONTENT))
    assert hub.requests == []


@pytest.mark.parametrize("other", [b"", CONTENT[:-1], CONTENT[:-1] + b"\0", CONTENT + b"\0"])
def test_what_is_another_file_is_replaced_by_force_only(
    hub: LoopbackHub, item: PlannedFile, other: bytes
) -> None:
    item.target.parent.mkdir(parents=True)
    item.target.write_bytes(other)

    with pytest.raises(UsageError, match=rf"{UNET} exists already.*--force"):
        finish(find_missing([item]))
    assert item.target.read_bytes() == other

    assert finish(find_missing([item], force=True)) == (item,)
    run(hub, item)
    assert item.target.read_bytes() == CONTENT


def test_a_folder_in_the_place_of_a_file(item: PlannedFile) -> None:
    item.target.mkdir(parents=True)

    with pytest.raises(UsageError, match="is not a regular file"):
        finish(find_missing([item], force=True))


def test_a_file_that_two_models_share_is_fetched_once(item: PlannedFile) -> None:
    assert finish(find_missing([item, item])) == (item,)


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_link_stays_a_link(hub: LoopbackHub, item: PlannedFile, tmp_path: Path) -> None:
    real = tmp_path / "disk" / "unet"
    real.parent.mkdir()
    item.target.parent.mkdir(parents=True)
    item.target.symlink_to(real)

    assert finish(find_missing([item], force=True)) == (item,)
    run(hub, item)

    assert item.target.is_symlink()
    assert real.read_bytes() == CONTENT
    assert sorted(path.name for path in real.parent.iterdir()) == ["unet"]


@pytest.mark.skipif(os.name != "posix", reason="files are locked on POSIX only")
def test_two_runs_at_once_do_not_mix(hub: LoopbackHub, item: PlannedFile) -> None:
    first = fetch_files(Hub(hub.address), [item])
    next(first)

    with pytest.raises(UsageError, match="another process is downloading"):
        run(hub, item)

    list(first)
    assert item.target.read_bytes() == CONTENT
