"""``sdpy bench``: that everything is measured and told, not how long it takes."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sdpy.benchmark.survey as survey_module
from sdpy.benchmark.figures import Spread
from sdpy.benchmark.phases import BenchmarkTarget
from sdpy.benchmark.survey import Setup, setups, usual_setup
from sdpy.benchmark.weights import write_random_model
from sdpy.cli.bench import _advice, _shorter_dtypes
from sdpy.errors import UsageError
from sdpy.runtime.threads import NUMBERS
from sdpy.zoo.find import find_source
from support.tiny_xl import TINY_REFINER

PHASES = ["text encoding", "UNet step", "VAE decode", "VAE encode"]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, new and empty; and a calibration that costs nothing."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(survey_module, "matrix_product_rate", lambda device: 50e9)
    monkeypatch.setattr(survey_module, "cpu_has_bfloat16", lambda: False)
    return folder


def test_the_demo_model_is_measured_at_once_and_the_table_has_every_phase(sdpy: Any) -> None:
    result = sdpy(
        *("bench", "--model", "demo", "--width", 64, "--height", 64),
        *("--repeats", 1, "--threads", 1, "--device", "cpu"),
    )
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "demo, 64x64 pixels, float32; cpu, 1 thread"
    assert lines[1] == "This machine's matrix product: 50.0 GFLOP/s"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    header = ["phase", "first time", "then", "range", "GFLOP/s", "of the product", "peak memory"]
    assert rows[0] == header
    assert [row[0] for row in rows[2:7]] == ["load", *PHASES]
    for row in rows[3:7]:
        assert re.fullmatch(r"[\d.]+ (us|ms|s)", row[1])
        assert re.fullmatch(r"[\d.]+ (us|ms|s)", row[2])
        assert re.fullmatch(r"[\d.]+", row[4])
        assert re.fullmatch(r"\d+ %", row[5])
        assert re.fullmatch(r"([\d,]+ MB)?", row[6])
    assert [row[0] for row in rows[9:]] == ["cpu, 1 thread", "cpu, 1 thread, plain kernels"]
    assert lines[-2].startswith("Fastest here: cpu, 1 thread")
    assert re.fullmatch(r"An image of 30 steps takes about .* with cpu, 1 thread\.", lines[-1])
    assert result.err.splitlines() == [
        *(f"{what}, cpu, 1 thread" for what in ("matrix product", *PHASES)),
        "UNet step, cpu, 1 thread, plain kernels",
    ]


def test_a_variant_gets_random_weights_that_are_gone_afterwards(sdpy: Any, temporary: Path) -> None:
    """With other settings than the first only the UNet is measured."""
    before = torch.get_num_threads()
    result = sdpy(
        *("bench", "--model", "sd15-inpaint", "--width", 32, "--height", 32, "--json"),
        *("--repeats", 2, "--threads", "1,2", "--device", "cpu", "--quiet"),
    )
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert (found["model"], found["width"], found["height"]) == ("sd15-inpaint", 32, 32)
    product = found["matrix_product"]
    assert (product["threads"], product["flops_per_second"]) == (1, 50e9)
    settings = [(one["phase"], one["threads"], one["fast_kernels"]) for one in found["phases"]]
    assert settings == [
        *((phase, 1, True) for phase in ("text", "unet", "decode", "encode")),
        *(("unet", 2, True), ("unet", 1, False)),
    ]
    for one in found["phases"]:
        assert len(one["seconds"]) == 2
        assert min(one["load_seconds"], one["first_seconds"], *one["seconds"]) > 0
        assert one["flops"] > 0
        assert one["share_of_matrix_product"] == pytest.approx(one["flops_per_second"] / 50e9)
    assert torch.get_num_threads() == before
    assert list(temporary.iterdir()) == []


def test_a_model_without_the_first_text_encoder_is_measured(sdpy: Any, tmp_path: Path) -> None:
    """It is told sizes of the image, too."""
    variant = TINY_REFINER
    write_random_model(tmp_path / "model", variant)
    result = sdpy(
        *("bench", "--model", tmp_path / "model", "--json", "--quiet"),
        *("--repeats", 1, "--threads", 1, "--device", "cpu"),
    )
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert (found["model"], found["width"]) == (variant.name, variant.sample_size)
    assert [one["phase"] for one in found["phases"]] == ["text", "unet", "decode", "encode", "unet"]
    assert min(one["flops"] for one in found["phases"]) > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--threads", "0"], "--threads 0: use numbers from 1 on"),
        (["--threads", "two"], "--threads two: give numbers, separated by commas"),
        (["--model", "sd99"], "unknown model 'sd99'"),
        (["--width", "13"], "--width 13: use a multiple of 2"),
        (["--device", "meta"], "--device meta holds no numbers"),
        (["--repeats", "0"], "--repeats"),
    ],
)
def test_what_cannot_work_is_one_line_before_any_work(
    sdpy: Any, temporary: Path, options: list[str], told: str
) -> None:
    result = sdpy("bench", *options)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert told in line
    assert result.out == ""
    assert list(temporary.iterdir()) == []


# -- which settings ------------------------------------------------------------------------------


def test_settings_begin_with_those_that_a_run_has_by_itself() -> None:
    found = setups("cpu")
    assert found[0] == Setup("cpu", torch.get_num_threads())
    assert Setup("cpu", 1) in found
    assert len(found) == len(set(found))


def test_a_run_by_itself_computes_a_small_model_with_few_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(survey_module, "best_device", lambda: torch.device("cpu"))
    for name in NUMBERS:
        monkeypatch.delenv(name, raising=False)
    target = BenchmarkTarget(find_source("demo", Path("data")), 128, 128)
    assert (usual_setup().threads, usual_setup(target).threads) == (8, 2)
    assert usual_setup(replace(target, width=512, height=512)).threads == 8
    monkeypatch.setenv(NUMBERS[0], "8")
    assert usual_setup(target).threads == 8


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_compared_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    monkeypatch.setattr("sdpy.benchmark.survey.cpu_has_bfloat16", lambda: has)
    assert (Setup("cpu", 3, dtype="bf16") in setups("cpu", [3])) == has


def test_what_bfloat16_would_bring_is_a_line_of_its_own() -> None:
    """It changes the image, so it is never the advice."""
    usual, shorter = Setup("cpu", 8), Setup("cpu", 8, dtype="bf16")
    measured = {usual: times(3), shorter: times(2)}
    assert "which is what runs use by themselves" in _advice(usual, measured)
    (line,) = _shorter_dtypes(measured)
    assert line.startswith("With --dtype bf16, a step on cpu is 1.5 times as fast")
    assert not list(_shorter_dtypes({usual: times(3)}))
    assert str(shorter) == "cpu, 8 threads, bf16"


def test_settings_that_the_user_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdpy.benchmark.survey.cpu_has_bfloat16", lambda: False)
    plain = Setup("cpu", 4, fast_kernels=False)
    assert setups("cpu", [4, 2, 4]) == [Setup("cpu", 4), Setup("cpu", 2), plain]
    with pytest.raises(UsageError, match="--threads 2,-1"):
        setups("cpu", [2, -1])


def times(seconds: float) -> Spread:
    return Spread(seconds, seconds, seconds, 1)


def test_advice_tells_how_to_ask_for_what_is_faster() -> None:
    usual, four, gpu = Setup("cpu", 8), Setup("cpu", 4), Setup("cuda", 8)
    assert _advice(usual, {usual: times(2), four: times(2.1)}) == (
        "Fastest here: cpu, 8 threads, which is what runs use by themselves."
    )
    assert _advice(usual, {usual: times(2), four: times(1.6)}) == (
        "Fastest here: cpu, 4 threads, 1.25 times as fast as cpu, 8 threads; "
        "ask for it with --threads 4."
    )
    assert _advice(usual, {usual: times(2), gpu: times(0.1), four: times(1.6)}) == (
        "Fastest here: cuda, 20 times as fast as cpu, 8 threads; ask for it with --device cuda."
    )
    plain = Setup("cpu", 8, fast_kernels=False)
    assert "--plain-kernels." in _advice(usual, {usual: times(2), plain: times(1.9)})
    assert _advice(usual, {four: times(1.6)}) == (
        "Fastest here: cpu, 4 threads; ask for it with --threads 4."
    )
