from __future__ import annotations

import pytest
import torch

import sdpy.devices
from sdpy.devices import (
    CPU,
    Placement,
    best_device,
    device_names,
    find_device,
    place,
    seeded_generator,
)
from sdpy.errors import UsageError

GPU = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine seems to have a GPU."""
    monkeypatch.setattr(sdpy.devices, "best_device", lambda: GPU)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ([], Placement(GPU, GPU, GPU)),
        (["clip"], Placement(CPU, GPU, GPU)),
        (["unet"], Placement(GPU, CPU, GPU)),
        (["vae"], Placement(GPU, GPU, CPU)),
        (["vae", "clip"], Placement(CPU, GPU, CPU)),
        (["vae,clip"], Placement(CPU, GPU, CPU)),
        (["vae, UNET", "vae"], Placement(GPU, CPU, CPU)),
        (["all"], Placement(CPU, CPU, CPU)),
        (["vae", "all"], Placement(CPU, CPU, CPU)),
    ],
)
def test_the_named_models_go_to_the_cpu(gpu: None, cpu: list[str], expected: Placement) -> None:
    assert place(cpu) == expected


def test_the_others_go_to_the_device(gpu: None) -> None:
    assert place(["vae"], device="cpu") == Placement(CPU, CPU, CPU)
    assert place() == Placement(GPU, GPU, GPU)


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
