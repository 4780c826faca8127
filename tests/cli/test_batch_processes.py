"""``sdpy batch`` as a process: signals, kill -9, and two in one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cli.test_processes import POSIX, clean_environment, tiny

pytestmark = POSIX

IMAGES = 18


def start(data: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    write_jobs(folder)
    command = tiny(data, "batch", "jobs.txt", "--steps", "8", "--batch-size", "2", *more)
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(SDPY_CACHE=str(folder / "cache")),
        # Where the tests run in the background of a shell, the signal is ignored by inheritance.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def write_jobs(folder: Path) -> None:
    (folder / "jobs.txt").write_text(f"the house --seed 1-{IMAGES}\n")


def finish(process: subprocess.Popen[str], expected: int) -> tuple[list[str], str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == expected, err
    return out.split(), err


def pixels(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted((folder / "out").glob("*.png")):
        with Image.open(path) as image:
            found[path.name] = np.asarray(image)
    return found


def wait_for_images(folder: Path, count: int) -> None:
    for _ in range(3000):
        if len(list((folder / "out").glob("*.png"))) >= count:
            return
        time.sleep(0.02)
    raise AssertionError("no images")


def test_stopped_in_all_ways_and_resumed(tiny_data: Path, tmp_path: Path) -> None:
    made: list[str] = []

    process = start(tiny_data, tmp_path)
    wait_for_images(tmp_path, 3)
    process.send_signal(signal.SIGKILL)
    out, _ = finish(process, -signal.SIGKILL)
    made += out
    killed = set(pixels(tmp_path))
    assert len(killed) - len(out) in range(3)  # a path or two may not have been told any more
    assert not list((tmp_path / "out").glob(".sdpy-*.tmp"))

    process = start(tiny_data, tmp_path)
    wait_for_images(tmp_path, len(killed) + 2)
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 130)
    assert "after the images in hand" in err and "are left" in err
    assert set(made).isdisjoint(out)
    made += out

    process = start(tiny_data, tmp_path)
    wait_for_images(tmp_path, len(pixels(tmp_path)) + 1)
    process.send_signal(signal.SIGTERM)
    made += finish(process, 143)[0]

    # Two at once share the rest.
    two = [start(tiny_data, tmp_path), start(tiny_data, tmp_path)]
    outs = [finish(process, 0)[0] for process in two]
    made += outs[0] + outs[1]
    assert len(made) == len(set(made))
    left = pixels(tmp_path)
    assert len(left) == IMAGES
    assert {f"out/{name}" for name in left} - set(made) <= {f"out/{name}" for name in killed}

    whole = tmp_path / "whole"
    whole.mkdir()
    finish(start(tiny_data, whole), 0)
    expected = pixels(whole)
    assert expected.keys() == left.keys()
    assert all(np.array_equal(expected[name], left[name]) for name in left)


def test_the_second_signal_stops_at_once(tiny_data: Path, tmp_path: Path) -> None:
    process = start(tiny_data, tmp_path, "--steps", "1000", "--batch-size", "18")
    assert process.stderr is not None
    while "18 images" not in process.stderr.readline():
        pass
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    while "after the images in hand" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGTERM)
    out, _ = finish(process, 143)
    assert out == []
    assert not list((tmp_path / "out").glob("*.png"))


def test_the_time_for_the_images_in_hand_can_be_limited(tiny_data: Path, tmp_path: Path) -> None:
    more = ("--steps", "1000", "--batch-size", "18", "--grace-period", "0.5")
    process = start(tiny_data, tmp_path, *more)
    assert process.stderr is not None
    while "18 images" not in process.stderr.readline():
        pass
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 130)
    assert out == [] and "18 are left" in err


def test_a_full_disk_ends_it(tiny_data: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    import resource

    (tmp_path / "jobs.txt").write_text("the house --seed 1-4\n")
    process = subprocess.Popen(
        tiny(tiny_data, "batch", "jobs.txt", "--steps", "2"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(SDPY_CACHE=str(tmp_path / "cache")),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)),
    )
    out, err = finish(process, 5)
    assert "cannot write out/" in err.splitlines()[-1]
    assert os.listdir(tmp_path / "out") == [] or out == []
