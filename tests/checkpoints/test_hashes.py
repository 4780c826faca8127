"""Hashes of weights: right, computed once, remembered."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event

import pytest

import sdpy.checkpoints.hashes as hashes_module
from sdpy.checkpoints import Hashes, file_state
from sdpy.checkpoints.hashes import cache_folder, find_sha256
from sdpy.errors import WeightsError

CONTENT = os.urandom(3_000_000)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDPY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were opened for hashing."""
    names: list[str] = []

    def noting(path: str, *args: object, **options: object) -> object:
        names.append(Path(path).name)
        return open(path, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(hashes_module, "open", noting, raising=False)
    return names


def test_a_file_is_hashed_once(file: Path, reads: list[str]) -> None:
    wanted = hashlib.sha256(CONTENT).hexdigest()
    state = file_state(file)
    hashes = Hashes()
    hashes.expect([state, state])
    assert hashes.sha256(state) == hashes.sha256(state) == wanted
    assert Hashes().sha256(state) == wanted  # as another process would ask
    assert reads == ["weights.bin"]


@pytest.mark.parametrize("times", [(1, 1), None])
def test_a_file_that_has_changed_is_hashed_again(
    file: Path, reads: list[str], times: tuple[int, int] | None
) -> None:
    find_sha256(file_state(file))
    if times is None:
        file.write_bytes(CONTENT + b"x")
    else:
        os.utime(file, times)
    assert find_sha256(file_state(file)) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert reads == ["weights.bin"] * 2


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"size": 3000000}', b"\xff"])
def test_a_damaged_memory_does_not_matter(file: Path, damage: bytes) -> None:
    wanted = find_sha256(file_state(file))
    (entry,) = (cache_folder() / "hashes").iterdir()
    entry.write_bytes(damage)
    assert find_sha256(file_state(file)) == wanted


def test_without_a_place_to_remember_it_works_all_the_same(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDPY_CACHE", str(file / "impossible"))
    assert find_sha256(file_state(file)) == hashlib.sha256(CONTENT).hexdigest()


def test_a_file_that_changes_meanwhile_is_told(file: Path) -> None:
    state = file_state(file)
    file.write_bytes(b"other")
    with pytest.raises(WeightsError, match="has changed while it was in use"):
        Hashes().sha256(state)


def test_a_closed_one_stops(file: Path) -> None:
    stop = Event()
    stop.set()
    with pytest.raises(CancelledError):
        find_sha256(file_state(file), stop)


def test_where_it_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDPY_CACHE", "/here")
    assert cache_folder() == Path("/here")
    monkeypatch.delenv("SDPY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert cache_folder() == Path("/there/sdpy")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/sdpy")
