from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sdpy.runtime.devices
from sdpy.errors import UsageError
from sdpy.runtime.devices import (
    CPU,
    Placement,
    best_device,
    cpu_has_bfloat16,
    device_names,
    find_device,
    find_dtype,
    place,
    seeded_generator,
)
from support.tiny import placed

GPU = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine seems to have a GPU."""
    monkeypatch.setattr(sdpy.runtime.devices, "best_device", lambda: GPU)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ([], placed(GPU, GPU, GPU)),
        (["clip"], placed(CPU, GPU, GPU)),
        (["unet"], placed(GPU, CPU, GPU)),
        (["vae"], placed(GPU, GPU, CPU)),
        (["vae", "clip"], placed(CPU, GPU, CPU)),
        (["vae,clip"], placed(CPU, GPU, CPU)),
        (["vae, UNET", "vae"], placed(GPU, CPU, CPU)),
        (["all"], placed(CPU, CPU, CPU)),
        (["vae", "all"], placed(CPU, CPU, CPU)),
    ],
)
def test_the_named_models_go_to_the_cpu(gpu: None, cpu: list[str], expected: Placement) -> None:
    assert place(cpu) == expected


def test_the_others_go_to_the_device(gpu: None) -> None:
    assert place(["vae"], device="cpu") == placed(CPU, CPU, CPU)
    assert place() == placed(GPU, GPU, GPU)


@pytest.mark.parametrize("cpu", [["gpu"], ["clip;vae"], [""], ["clip,"], ["clip", "text"]])
def test_unknown_words_are_refused(cpu: list[str]) -> None:
    with pytest.raises(UsageError, match="use all, clip, unet, vae"):
        place(cpu)


@pytest.mark.parametrize(
    "name", ["", "nope", "cuda:x", "cuda:-1", "cuda:9999", "meta", "hpu", "xla", "CPU", "cpu:"]
)
def test_devices_that_cannot_be_used_are_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_device(name)
    message = str(caught.value)
    assert message.startswith(f"--device {name} ")
    assert "\n" not in message
    assert "cpu" in message


def test_the_devices_that_are_named_can_be_used() -> None:
    assert device_names()[0] == "cpu"
    for name in device_names():
        assert find_device(name) == torch.device(name)
    assert best_device().type in {name.split(":")[0] for name in device_names()}


def test_the_generator_is_the_global_one_s_twin_and_leaves_it_alone() -> None:
    torch.manual_seed(32)
    expected = torch.randn(1, 4, 64, 64)
    state = torch.get_rng_state()
    generator = seeded_generator(32)
    assert generator.device == CPU
    assert torch.equal(torch.randn(1, 4, 64, 64, generator=generator), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63 + 99_999])
def test_every_seed_of_the_command_line_and_its_samples_can_be_used(seed: int) -> None:
    assert seeded_generator(seed).initial_seed() == seed


# --- dtypes ------------------------------------------------------------------------------------

ALL_CPU, MIXED = Placement(), placed(unet=GPU)
X86 = (
    "processor\t: 0\nmodel name\t: A B\nflags\t\t: fpu sse2 {}\n\nprocessor\t: 1\nflags\t\t: fpu\n"
)


def processor(root: Path, features: str, label: str = "flags") -> Path:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(X86.format(features).replace("flags", label))
    return root


@pytest.mark.parametrize(
    ("features", "label", "expected"),
    [
        ("avx2 avx512f avx512_bf16", "flags", True),
        ("amx_tile amx_bf16", "flags", True),
        ("asimd bf16", "Features", True),
        ("avx2 avx512f avx512bw", "flags", False),
        ("asimd svebf16x", "Features", False),
        ("", "flags", False),
        ("bf16", "nothing", False),
    ],
)
def test_bfloat16_is_seen(tmp_path: Path, features: str, label: str, expected: bool) -> None:
    assert cpu_has_bfloat16(processor(tmp_path, features, label)) is expected


def test_bfloat16_without_proc(tmp_path: Path) -> None:
    assert not cpu_has_bfloat16(tmp_path)


@pytest.mark.parametrize(
    ("name", "placement", "has_bf16", "expected"),
    [
        ("fp32", ALL_CPU, False, torch.float32),
        ("fp32", MIXED, False, torch.float32),
        ("auto", ALL_CPU, True, torch.float32),
        ("auto", MIXED, False, torch.float16),
        ("fp16", MIXED, False, torch.float16),
        ("bf16", ALL_CPU, True, torch.bfloat16),
        ("bf16", MIXED, False, torch.bfloat16),
        ("fp16", ALL_CPU, False, "--dtype fp16 is for GPUs.*: use fp32$"),
        ("fp16", ALL_CPU, True, "--dtype fp16 is for GPUs.*: use fp32 or bf16$"),
        ("bf16", ALL_CPU, False, "--dtype bf16: this processor.*use fp32"),
        ("fp8", MIXED, False, "unknown --dtype 'fp8': use one of auto, fp32, fp16, bf16"),
        ("", ALL_CPU, False, "unknown --dtype ''"),
    ],
)
def test_dtypes(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    placement: Placement,
    has_bf16: bool,
    expected: torch.dtype | str,
) -> None:
    monkeypatch.setattr(sdpy.runtime.devices, "cpu_has_bfloat16", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            find_dtype(name, placement)
    else:
        assert find_dtype(name, placement) == expected


def test_an_old_gpu_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UsageError, match="this GPU does not"):
        find_dtype("bf16", MIXED)
    assert find_dtype("fp16", MIXED) == torch.float16
