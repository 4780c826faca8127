from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdpy.errors import UsageError
from sdpy.images.paths import check_outputs, numbered


@pytest.mark.parametrize(
    ("path", "number", "expected"),
    [
        ("sd_final.png", 2, "sd_final.2.png"),
        ("out.d/a.b.JPG", 3, "out.d/a.b.3.JPG"),
        ("/tmp/x.webp", 1, "/tmp/x.1.webp"),
    ],
)
def test_one_of_several_has_a_number(path, number, expected):
    assert numbered(Path(path), number) == Path(expected)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.Jpeg", "a.webp", "ä b.png"])
def test_check_outputs_accepts_and_leaves_nothing_behind(tmp_path, name):
    check_outputs([tmp_path / name])
    assert list(tmp_path.iterdir()) == []


def test_check_outputs_accepts_the_current_folder_and_an_older_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"old")
    check_outputs(["a.png"])
    assert Path("a.png").read_bytes() == b"old"
    assert os.listdir() == ["a.png"]


def refusal(path: str | Path, **options: bool) -> str:
    with pytest.raises(UsageError) as caught:
        check_outputs([path], **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["a", "a.gif", "a.png.bak", ".png", "a.", "", "-", "a.tar.gz"])
def test_unknown_kinds_are_refused(tmp_path, name):
    assert "one of .png, .jpg, .jpeg, .webp" in refusal(os.path.join(tmp_path, name))


def test_a_missing_folder_is_refused(tmp_path):
    message = refusal(tmp_path / "no" / "a.png")
    assert f"the folder {tmp_path / 'no'} does not exist" in message
    assert not (tmp_path / "no").exists()


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert "is not a folder" in refusal(tmp_path / "file" / "a.png")


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert "is a folder" in refusal(tmp_path / "a.png")


def test_every_file_is_looked_at(tmp_path):
    (tmp_path / "b.png").mkdir()
    check_outputs([tmp_path / "a.png"])
    with pytest.raises(UsageError, match=r"b.png: is a folder"):
        check_outputs([tmp_path / "a.png", tmp_path / "b.png"])


def test_folders_that_will_be_made_need_not_exist(tmp_path):
    check_outputs([tmp_path / "new" / "deep" / "a.png"], makes_folders=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    assert "is not a folder" in refusal(tmp_path / "file" / "new" / "a.png", makes_folders=True)


def test_too_long_a_name_is_refused(tmp_path):
    check_outputs([tmp_path / ("a" * 251 + ".png")])
    assert "too long" in refusal(tmp_path / ("a" * 252 + ".png"))


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="no folder that not even root writes to"
)
def test_a_folder_that_takes_no_files_is_refused():
    assert "cannot be written to" in refusal("/proc/self/a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "is not a plain file" in refusal(tmp_path / "a.png")


@pytest.mark.skipif(sys.platform == "win32", reason="links need privileges there")
def test_a_link_is_followed_to_the_folder_that_is_written(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "a.png").symlink_to(tmp_path / "good" / "b.png")
    check_outputs([tmp_path / "a.png"])
    (tmp_path / "c.png").symlink_to(tmp_path / "bad" / "b.png")
    assert "does not exist" in refusal(tmp_path / "c.png")


def test_importing_needs_neither_torch_nor_pillow():
    code = (
        "import sys, sdpy.images.paths; "
        "sys.exit(bool({'torch', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
