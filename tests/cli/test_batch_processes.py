"""``sdpy batch`` as a process: signals, kill -9, and two in one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdpy.jobs.claims import Claims
from sdpy.jobs.finished import key_of
from support.processes import finish, read_until, start, tiny

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")

IMAGES = 18


def batch(data: Path, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    (folder / "jobs.txt").write_text(f"the house --seed 1-{IMAGES}\n")
    command = tiny(data, "batch", "jobs.txt", "--steps", "8", "--batch-size", "2", *more)
    return start(command, folder, SDPY_CACHE=str(folder / "cache"))


def paths(folder: Path) -> list[Path]:
    return sorted((folder / "out").glob("*.png"))


def pixels(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in paths(folder):
        with Image.open(path) as image:
            found[path.name] = np.asarray(image)
    return found


def wait_for_images(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    while len(paths(folder)) < count:
        assert process.poll() is None, f"it ended before it had made {count} images"
        time.sleep(0.02)


def test_stopped_in_all_ways_and_resumed(tiny_data: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    finish(batch(tiny_data, whole), 0)
    expected, keys = pixels(whole), [key_of(str(path)) or "" for path in paths(whole)]
    made: list[str] = []

    (tmp_path / "out").mkdir()
    with closing(Claims(tmp_path / "out")) as claims:
        # Nobody else makes these meanwhile: a process cannot come to its end before it is stopped.
        assert claims.claim(keys[4:]) == keys[4:]

        process = batch(tiny_data, tmp_path)
        wait_for_images(process, tmp_path, 3)
        process.send_signal(signal.SIGKILL)
        made += finish(process, -signal.SIGKILL)[0]
        killed = set(pixels(tmp_path))
        # A path or two may not have been told any more.
        assert len(killed) - len(made) in range(3)
        assert not list((tmp_path / "out").glob(".sdpy-*.tmp"))

        claims.release(keys[4:8])
        process = batch(tiny_data, tmp_path)
        wait_for_images(process, tmp_path, len(killed) + 2)
        process.send_signal(signal.SIGINT)
        out, err = finish(process, 130)
        assert any("after the images in hand" in line for line in err)
        assert "are left" in err[-2] and err[-1] == "sdpy: interrupted"
        assert set(made).isdisjoint(out)
        made += out

        claims.release(keys[8:12])
        process = batch(tiny_data, tmp_path)
        wait_for_images(process, tmp_path, len(pixels(tmp_path)) + 1)
        process.send_signal(signal.SIGTERM)
        made += finish(process, 143)[0]

    # Two at once share the rest.
    two = [batch(tiny_data, tmp_path), batch(tiny_data, tmp_path)]
    outs = [finish(process, 0)[0] for process in two]
    made += outs[0] + outs[1]
    assert len(made) == len(set(made))
    left = pixels(tmp_path)
    assert len(left) == IMAGES
    assert {f"out/{name}" for name in left} - set(made) <= {f"out/{name}" for name in killed}
    assert expected.keys() == left.keys()
    assert all(np.array_equal(expected[name], left[name]) for name in left)


def in_the_midst(data: Path, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """A process that has begun the thousand steps of all its images."""
    long = ("--steps", "1000", "--batch-size", str(IMAGES), "--progress", "json")
    process = batch(data, folder, *long, *more)
    read_until(process.stderr, '"step": 1,')
    return process


def test_the_second_signal_stops_at_once(tiny_data: Path, tmp_path: Path) -> None:
    process = in_the_midst(tiny_data, tmp_path)
    process.send_signal(signal.SIGTERM)
    read_until(process.stderr, "after the images in hand")
    process.send_signal(signal.SIGTERM)
    assert finish(process, 143)[0] == []
    assert paths(tmp_path) == []


def test_the_time_for_the_images_in_hand_can_be_limited(tiny_data: Path, tmp_path: Path) -> None:
    process = in_the_midst(tiny_data, tmp_path, "--grace-period", "0.01")
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 130)
    assert out == paths(tmp_path) == []
    assert '"event": "end"' in err[-2] and f'"left": {IMAGES}' in err[-2]


def test_a_full_disk_ends_it(tiny_data: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    (tmp_path / "jobs.txt").write_text("the house --seed 1-4\n")
    command = tiny(tiny_data, "batch", "jobs.txt", "--steps", "2")
    process = start(command, tmp_path, limit, SDPY_CACHE=str(tmp_path / "cache"))
    out, err = finish(process, 5)
    assert "cannot write out/" in err[-1]
    assert out == paths(tmp_path) == []
