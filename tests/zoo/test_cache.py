"""Models by the names that hubs have for them, and by paths with ``~``."""

import os
import shutil
from pathlib import Path

import pytest

from sdpy.errors import UsageError, WeightsError
from sdpy.options import path_of
from sdpy.zoo.cache import snapshot_in
from sdpy.zoo.find import find_path, find_source
from support.folders import demo_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the hub's library lays it out, files as links."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub/models--x--y"
    plain = demo_folder(tmp_path / "plain")
    (folder / "blobs").mkdir(parents=True)
    for number, file in enumerate(path for path in plain.rglob("*") if path.is_file()):
        blob = folder / "blobs" / f"b{number}"
        shutil.move(file, blob)
        link = folder / "snapshots/abc" / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


def test_a_model_in_the_hubs_cache(cache: Path, tmp_path: Path) -> None:
    assert find_path("x/y", tmp_path) == cache / "snapshots/abc"
    assert find_path(str(cache), tmp_path) == cache / "snapshots/abc"
    found = find_source("x/y", tmp_path)
    assert found.files.weights["unet"].is_relative_to(cache / "snapshots/abc")


def test_the_main_branchs_snapshot_counts(cache: Path) -> None:
    (cache / "snapshots/newer").mkdir()
    assert snapshot_in(cache) == cache / "snapshots/newer"
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("abc\n")
    assert snapshot_in(cache) == cache / "snapshots/abc"
    (cache / "refs/main").write_text("../../..")
    assert snapshot_in(cache) == cache / "snapshots/newer"


def test_an_empty_cache(cache: Path) -> None:
    shutil.rmtree(cache / "snapshots")
    assert snapshot_in(cache) == cache
    (cache / "snapshots").mkdir()
    with pytest.raises(WeightsError, match="is empty; download the model again"):
        snapshot_in(cache)


def test_what_was_downloaded_is_found_by_the_hubs_name(tmp_path: Path) -> None:
    (tmp_path / "data/name").mkdir(parents=True)
    assert find_path("owner/name", tmp_path / "data") == tmp_path / "data/name"


def test_an_unknown_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="`sdpy download owner/name` fetches it"):
        find_path("owner/name", tmp_path)
    with pytest.raises(UsageError, match="unknown model") as caught:
        find_path("/owner/name/x", tmp_path)
    assert "download" not in str(caught.value)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_path("~/model", tmp_path) == tmp_path / "model"
    with pytest.raises(UsageError, match=f"{tmp_path}/nothing, in your home folder"):
        find_path("~/nothing", tmp_path)
    assert path_of("~/x.png") == tmp_path / "x.png"
    assert path_of("a~b") == Path("a~b")
