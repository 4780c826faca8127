"""A GPU without enough memory, imitated by the CPU: what is said, and that the image comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdpy.runtime.session as session_module
from sdpy.errors import is_shortage
from sdpy.models import UNet2DConditionModel
from sdpy.pipelines.events import ImageDecoded, Notice
from sdpy.pipelines.request import Request
from sdpy.runtime.devices import CPU, Placement
from sdpy.runtime.execution import Execution
from sdpy.runtime.loaded_models import ModelKey
from sdpy.runtime.retreats import retreats
from sdpy.runtime.session import Session
from support.compare import relative_error
from support.tasks import text2img
from support.tiny import placed, tiny_session

GPU = torch.device("cuda")
OFFLOADING = "keeping each model in main memory while it does not run"
STREAMING = "reading the weights anew at each step"
ON_CPU = "computing on the CPU"
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def way(key: ModelKey) -> str:
    if key.device == CPU:
        return "cpu"
    if key.execution.streamed:
        return "streamed"
    return "offloaded" if key.execution.offload else "whole"


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Ways in which models cannot be loaded onto the imitated GPU, by component.

    Models of the GPU are loaded, and moved, onto the CPU.
    """
    refused: dict[str, set[str]] = {}
    load = session_module.load_model

    def load_or_fail(key: ModelKey, *rest: Any) -> Any:
        if way(key) in refused.get(key.component, ()):
            raise FULL
        return replace(load(replace(key, device=CPU), *rest), key=key)

    @contextmanager
    def stay(model: nn.Module, device: torch.device) -> Iterator[None]:
        yield

    monkeypatch.setattr(session_module, "load_model", load_or_fail)
    monkeypatch.setattr(session_module, "moved", stay)
    return refused


def generated(session: Session, images: int = 1) -> tuple[list[Tensor], list[str]]:
    request = Request("x", steps=2, num_samples=images, batch_size=images)
    events = list(text2img(session, request, width=32, height=32))
    told = [event.text for event in events if isinstance(event, Notice)]
    return [event.pixels for event in events if isinstance(event, ImageDecoded)], told


def on_gpu(data: Path) -> Session:
    return tiny_session(data, placement=placed(GPU, GPU, GPU))


@pytest.mark.parametrize(
    ("ways", "told"),
    [
        ({"whole"}, [OFFLOADING]),
        ({"whole", "offloaded"}, [OFFLOADING, STREAMING]),
        ({"whole", "offloaded", "streamed"}, [OFFLOADING, STREAMING, ON_CPU]),
    ],
)
def test_a_unet_that_cannot_be_loaded(
    tiny_data: Path, full: dict[str, set[str]], ways: set[str], told: list[str]
) -> None:
    (expected,), nothing = generated(on_gpu(tiny_data))
    assert nothing == []
    full["unet"] = ways
    (image,), notices = generated(on_gpu(tiny_data))
    assert notices == [f"not enough memory for this on the GPU: {one}" for one in told]
    assert relative_error(image, expected) <= 1e-4


def test_a_batch_comes_whole(tiny_data: Path, full: dict[str, set[str]]) -> None:
    """Its size does not matter for loading."""
    full["unet"] = {"whole"}
    images, notices = generated(on_gpu(tiny_data), images=3)
    assert len(images) == 3
    assert notices == [f"not enough memory for this on the GPU: {OFFLOADING}"]


def test_a_shortage_within_the_loop(
    tiny_data: Path, full: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That slices do not help with: the image is begun again, and is the same."""
    (expected,), _ = generated(on_gpu(tiny_data))
    forward, calls = UNet2DConditionModel.forward, []

    def fail(self: Any, *args: Any, **options: Any) -> Tensor:
        calls.append(len(args[0]))
        if len(calls) in (2, 3):
            raise FULL
        return forward(self, *args, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", fail)
    (image,), notices = generated(on_gpu(tiny_data))
    assert notices == [f"not enough memory for this on the GPU: {OFFLOADING}"]
    assert relative_error(image, expected) <= 1e-4


def test_a_text_encoder_that_cannot_be_loaded(tiny_data: Path, full: dict[str, set[str]]) -> None:
    (expected,), _ = generated(on_gpu(tiny_data))
    full["text_encoder"] = {"whole", "offloaded", "streamed"}
    (image,), notices = generated(on_gpu(tiny_data))
    assert notices == ["not enough memory for the text encoder: running it on the CPU"]
    assert relative_error(image, expected) <= 1e-4


def test_where_nothing_suffices_it_is_an_error(tiny_data: Path, full: dict[str, set[str]]) -> None:
    full["unet"] = {"whole", "offloaded", "streamed", "cpu"}
    with pytest.raises(Exception) as caught:
        generated(on_gpu(tiny_data))
    assert is_shortage(caught.value)


def test_without_a_gpu_there_is_no_other_way(tiny_data: Path) -> None:
    session = tiny_session(tiny_data)
    assert retreats(session.models()) == []


@pytest.mark.parametrize(
    ("execution", "left"),
    [
        (Execution(), [OFFLOADING, STREAMING, ON_CPU]),
        (Execution(compile=True), [OFFLOADING, STREAMING, ON_CPU]),
        (Execution(offload=True), [STREAMING, ON_CPU]),
        (Execution(streamed=True), [ON_CPU]),
    ],
)
def test_ways_that_are_left(tiny_data: Path, execution: Execution, left: list[str]) -> None:
    session = tiny_session(tiny_data, placement=placed(GPU, GPU, GPU), execution=execution)
    found = retreats(session.models())
    assert [one.description for one in found] == left
    ways = [one.of(session.models()) for one in found]
    assert ways[-1].placement == Placement()
    assert not any(one.execution.compile or one.keep for one in ways)
