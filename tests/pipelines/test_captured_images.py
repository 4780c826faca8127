"""Whole images whose steps are captured, against those whose steps are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdpy.models import AutoencoderKL
from sdpy.pipelines import generate as pipeline
from sdpy.pipelines import vae
from sdpy.pipelines.events import Notice
from sdpy.pipelines.request import Request
from sdpy.runtime.execution import Execution
from sdpy.runtime.loaded_models import LoadedModels
from sdpy.runtime.session import Session
from support.captures import ReplayedOperators
from support.compare import relative_error
from support.tasks import decoded
from support.tiny import TINY_INPAINT, placed, random_image, tiny_session

TOLERANCE = 1e-4
CPU, GPU = torch.device("cpu"), torch.device("cuda")
REQUEST = Request("a lighthouse at dark", steps=4, width=32, height=32, seed=3)
IMAGE = random_image(32, 32)
MASK = (IMAGE[:, :1] > 0).float()

TASKS: dict[str, dict[str, Any]] = {
    "batches": {"num_samples": 3, "batch_size": 2, "scheduler": "euler-a"},
    "img2img": {"image": IMAGE, "strength": 0.6},
    "inpaint": {"image": IMAGE, "mask": MASK, "scheduler": "dpm++-2m"},
    "prompts that change": {"prompt": "a [cat:house:0.5] at dark"},
}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[ReplayedOperators]:
    """Those of each UNet that is used, as if it were on a GPU."""
    by_model: dict[nn.Module, ReplayedOperators] = {}
    made: list[ReplayedOperators] = []

    def graphs_of(model: nn.Module) -> ReplayedOperators:
        if model not in by_model:
            by_model[model] = ReplayedOperators(CPU)
            made.append(by_model[model])
        return by_model[model]

    monkeypatch.setattr(pipeline, "graphs_of", graphs_of)
    return made


def images(session: Session, **changes: Any) -> list[Tensor]:
    request = replace(REQUEST, **changes)
    return [one.pixels for one in decoded(pipeline.generate(session, [request]))]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("unet", ["unet.ot", "unet-inpaint.ot"])
def test_images_are_the_same(
    tiny_data: Path, graphs: list[ReplayedOperators], task: str, unet: str
) -> None:
    variant = {"variant": TINY_INPAINT} if unet == "unet-inpaint.ot" else {}
    session = tiny_session(tiny_data, unet=unet, **variant)
    found = images(session, **TASKS[task]) + images(session, **TASKS[task], seed=9)
    assert [one.captured for one in graphs] == [2 if task == "batches" else 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "graphs_of", lambda model: None)
        expected = images(session, **TASKS[task]) + images(session, **TASKS[task], seed=9)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) <= TOLERANCE


def test_approximations_are_not_captured(tiny_data: Path, graphs: list[ReplayedOperators]) -> None:
    images(tiny_session(tiny_data), deepcache=2)
    assert graphs == []


@pytest.mark.parametrize(
    ("execution", "device", "captured"),
    [
        (Execution(cuda_graphs=True), GPU, True),
        (Execution(compile=True), GPU, True),
        (Execution(), GPU, False),
        (Execution(cuda_graphs=True), CPU, False),
        (Execution(cuda_graphs=True), torch.device("mps"), False),
        (Execution(cuda_graphs=True, streamed=True), GPU, False),
        (Execution(cuda_graphs=True, offload=True), GPU, False),
    ],
)
def test_when_steps_are_captured(
    execution: Execution, device: torch.device, captured: bool
) -> None:
    assert execution.captures_on(device) == captured


def test_short_of_memory_the_decoder_drops_the_graphs_first(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tiny_session(
        tiny_data, placement=placed(unet=GPU), execution=Execution(cuda_graphs=True)
    )
    models, dropped = session.models(), []
    monkeypatch.setattr(LoadedModels, "drop_graphs", lambda loaded: dropped.append(loaded))
    decode, latents = AutoencoderKL.decode, torch.randn(1, 4, 8, 8)

    def short(model: AutoencoderKL, latents: Tensor) -> Tensor:
        if not dropped:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(model, latents)

    monkeypatch.setattr(AutoencoderKL, "decode", short)
    told = [event.text for event in vae.decode(models, latents) if isinstance(event, Notice)]
    assert told == ["not enough memory for the autoencoder: dropping the CUDA graphs of the steps"]
    assert dropped == [session.loaded]
