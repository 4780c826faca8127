"""Files appear whole or not at all."""

import itertools
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import sdpy.files
from sdpy.errors import OutputError
from sdpy.files import atomic_write


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with atomic_write(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert names(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x.bin"]


def interrupt_at_line(number: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that raises KeyboardInterrupt once, before a line of sdpy.files."""
    lines = itertools.count()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != sdpy.files.__file__:
            return None
        if event == "line" and next(lines) == number:
            raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # interrupted as it opened
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("unnamed", [True, False])
def test_ctrl_c_at_any_moment_leaves_nothing_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, unnamed: bool
) -> None:
    if not unnamed:  # as on Windows
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    path = tmp_path / "x.bin"
    usual = sys.gettrace()
    interrupted, left = 0, set()
    for number in itertools.count():
        path.unlink(missing_ok=True)
        if overwrite:
            path.write_bytes(b"old")
        try:
            sys.settrace(interrupt_at_line(number))
            with atomic_write(path, overwrite=overwrite) as file:
                file.write(b"new")
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        finally:
            sys.settrace(usual)
        sdpy.files.remove_unfinished()  # as at the end of the process
        assert names(tmp_path) in ([], ["x.bin"])
        left.add(path.read_bytes() if path.exists() else None)
    assert path.read_bytes() == b"new"
    assert interrupted > 15
    assert left == {b"old" if overwrite else None, b"new"}


def test_a_process_leaves_nothing_unfinished(tmp_path: Path) -> None:
    code = """
import gc, sys
from sdpy.files import atomic_write
write = atomic_write(sys.argv[1])
write.__enter__().write(b"new")
gc.freeze()
write.myself = write  # never collected as garbage, as with an exception that holds it
sys.exit("the end")
"""
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.bin")], capture_output=True, text=True
    )
    assert process.stderr == "the end\n"
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_gives_the_permissions(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "x.bin") as file:
            file.write(b"abc")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.bin").stat().st_mode) == 0o666 & ~umask


@pytest.mark.skipif(os.name != "posix", reason="symbolic links of POSIX")
def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "real")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "real").read_bytes() == b"new"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder"), atomic_write(tmp_path):
        pytest.fail("the block must not run")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_device_or_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="not a plain file"), atomic_write(tmp_path / "pipe"):
        pytest.fail("the block must not run")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "x.bin"
    with pytest.raises(OutputError) as caught, atomic_write(path):
        pytest.fail("the block must not run")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), atomic_write(tmp_path / "x") as file:
        file.write(b"part")
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []
