"""Files that are changed in their place while they are mapped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdpy.checkpoints import read_checkpoint, write_checkpoint
from sdpy.errors import WeightsError
from sdpy.pipelines.generate import generate
from sdpy.pipelines.request import Request
from support.tiny import tiny_session, write_tiny


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"a": torch.ones(10_000)})
    return path


def test_a_file_that_stays_or_is_replaced(file: Path, tmp_path: Path) -> None:
    (mapping,) = read_checkpoint(file).mappings
    mapping.check_unchanged()
    write_checkpoint(file, {"a": torch.zeros(5)})
    mapping.check_unchanged()  # it still maps the old one
    file.unlink()
    mapping.check_unchanged()


@pytest.mark.parametrize("how", ["cut short", "overwritten"])
def test_a_file_that_is_changed_in_its_place(file: Path, how: str) -> None:
    (mapping,) = read_checkpoint(file).mappings
    if how == "cut short":
        os.truncate(file, 100)
    else:
        with file.open("r+b") as stream:
            stream.write(bytes(1000))
        os.utime(file, ns=(0, mapping.state[1] + 1))  # whatever the clock's steps are
    with pytest.raises(WeightsError, match="was changed while it was in use"):
        mapping.check_unchanged()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_whose_weights_are_zeroed_says_so(tmp_path: Path, streamed: bool) -> None:
    """After a step, that is; the file keeps its length, so that nothing else would tell."""
    data = write_tiny(tmp_path / "data")
    unet = data / "unet.ot"
    with tiny_session(data) as session:
        if streamed:
            session.execution = session.execution.__class__(memory="low")
        events = generate(session, [Request("cat", steps=4, width=32, height=32)])
        with pytest.raises(WeightsError, match=r"unet\.ot was changed while it was in use"):
            for event in events:
                if type(event).__name__ == "Progress" and getattr(event, "step", 0) == 1:
                    before = unet.stat().st_mtime_ns
                    with unet.open("r+b") as stream:
                        stream.write(bytes(unet.stat().st_size))
                    os.utime(unet, ns=(0, before + 1_000_000))


def test_descriptors_are_closed_with_their_mappings(file: Path) -> None:
    code = (
        "import os, sys; from sdpy.checkpoints import read_checkpoint\n"
        "count = lambda: len(os.listdir('/proc/self/fd'))\n"
        "read_checkpoint(sys.argv[1]); before = count()\n"
        "for _ in range(20): read_checkpoint(sys.argv[1])\n"
        "sys.exit(count() > before)"
    )
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs Linux")
    assert subprocess.run([sys.executable, "-c", code, str(file)], check=False).returncode == 0
