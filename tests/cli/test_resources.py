"""The options that say how to compute, and what they do to a process."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdpy.runtime.devices as devices_module
import sdpy.runtime.planner as planner_module
import sdpy.runtime.workload as workload_module
from sdpy.models import UNet2DConditionModel

FAST = ("--n-steps", "2")
RUN_LARGER = Path(__file__).parent / "run_larger.py"


@pytest.fixture(autouse=True)
def as_it_was() -> Any:
    """The number of threads is the process's."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_garbage_is_rarely_looked_for_while_a_command_runs(
    sdpy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And as usual after it, also if it fails."""
    usual, seen = gc.get_threshold(), []

    def encode(*_: Any, **__: Any) -> None:
        seen.append(gc.get_threshold()[0])
        raise RuntimeError("that is enough")

    monkeypatch.setattr("sdpy.pipelines.encoding.encode_prompts", encode)
    assert sdpy("generate", "x", *FAST).code != 0
    assert seen == [100_000]
    assert gc.get_threshold() == usual


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["low", "LOW", "2G", "3000M", "auto"])
@pytest.mark.parametrize("kernels", ["--fast-kernels", "--plain-kernels"])
def test_every_memory_gives_the_same_image(sdpy: Any, memory: str, kernels: str) -> None:
    assert sdpy("generate", "x", *FAST, "-o", "usual.png").code == 0
    result = sdpy("generate", "x", *FAST, "--memory", memory, kernels)
    assert result.code == 0, result.err
    assert "would take" not in result.err
    assert np.abs(pixels("usual.png") - pixels("sd_final.png")).max() <= 1


def test_low_memory_in_img2img_and_inpaint(sdpy: Any) -> None:
    Image.effect_noise((32, 32), 60).convert("RGB").save("../a.png")
    Image.new("L", (32, 32), 255).save("../white.png")
    for command in (("img2img", "../a.png"), ("inpaint", "../a.png", "../white.png")):
        sdpy(*command, *FAST, "-o", "usual.png")
        assert sdpy(*command, *FAST, "--memory", "low").code == 0
        assert np.abs(pixels("usual.png") - pixels("sd_final.png")).max() <= 1


def test_what_is_done_to_save_memory_is_said(sdpy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models fit everywhere, unless what little they take is counted alone."""
    for name in ("STEADY", "UNET_MAPS", "TOKEN_MAPS"):
        monkeypatch.setattr(workload_module, name, 0)
    monkeypatch.setattr(workload_module, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(planner_module, "free_memory", lambda: 200_000)
    result = sdpy("generate", "x", *FAST, "--plain-kernels")
    assert result.code == 0
    (told,) = (line for line in result.err.splitlines() if "32x32 pixels would take about " in line)
    assert "running the autoencoder in tiles" in told
    assert "reading the weights anew at each step" in told
    monkeypatch.setattr(planner_module, "free_memory", lambda: 100_000)
    result = sdpy("generate", "x", *FAST)
    assert (result.code, len(result.err.splitlines())) == (7, 1)


def test_a_shortage_in_the_midst_of_it_is_one_line(
    sdpy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    result = sdpy("generate", "x", *FAST, "--plain-kernels")
    assert result.code == 7
    last = result.err.splitlines()[-1]
    after = "(after computing its attention in slices from here on)"
    assert last.startswith(f"sdpy: not enough memory for the UNet {after}: use a smaller --width")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA")])
def test_a_shortage_anywhere_else_is_one_line(
    sdpy: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("sdpy.cli.generate.make_images", fail)
    result = sdpy("generate", "x", *FAST)
    assert result.code == 7
    (line,) = result.err.splitlines()
    assert line.startswith("sdpy: out of memory: use a smaller --width")


# --- numbers and threads -----------------------------------------------------------------------


def test_bf16_gives_nearly_the_same_image(sdpy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic is right on any processor, if slow on one without bfloat16."""
    monkeypatch.setattr(devices_module, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr("sdpy.runtime.execution.cpu_has_bfloat16", lambda: True)
    sdpy("generate", "x", *FAST, "-o", "usual.png")
    for memory in ("auto", "low"):
        result = sdpy("generate", "x", *FAST, "--dtype", "bf16", "--memory", memory)
        assert result.code == 0, result.err
        difference = np.abs(pixels("usual.png") - pixels("sd_final.png"))
        assert 0 < difference.mean() < 6


def test_auto_is_fp32_on_the_cpu(sdpy: Any) -> None:
    sdpy("generate", "x", *FAST, "-o", "usual.png")
    assert sdpy("generate", "x", *FAST, "--dtype", "auto").code == 0
    assert np.array_equal(pixels("usual.png"), pixels("sd_final.png"))


def test_threads(sdpy: Any) -> None:
    torch.set_num_threads(1)
    assert sdpy("generate", "x", *FAST).code == 0
    assert torch.get_num_threads() == 1
    assert sdpy("generate", "x", *FAST, "--threads", "2").code == 0
    assert torch.get_num_threads() == 2


# --- a process ---------------------------------------------------------------------------------


def peak(data: Path, *options: str) -> int:
    """Largest resident memory, in bytes, of a process that generates with a UNet of 170 MB."""
    command = [sys.executable, str(RUN_LARGER), str(data), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_low_memory_is_low(tmp_path: Path) -> None:
    """Weights that are mapped count as resident, those that were released do not."""
    command = [sys.executable, str(RUN_LARGER), str(tmp_path), "--write"]
    subprocess.run(command, check=True, timeout=900)
    weights = (tmp_path / "unet.safetensors").stat().st_size
    assert weights > 150e6
    nothing = peak(tmp_path, "--nothing")
    usual, low = peak(tmp_path, "--memory", "auto"), peak(tmp_path, "--memory", "low")
    assert usual - nothing > weights
    assert usual - low > 0.6 * weights
