"""What is said of compiling, and what it does not go with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdpy.errors import UsageError
from sdpy.pipelines.events import Notice
from sdpy.pipelines.generate import describe_compiling
from sdpy.pipelines.plan import plan_request
from sdpy.pipelines.request import Request
from sdpy.runtime.devices import Placement
from sdpy.runtime.execution import Execution
from support.tasks import text2img
from support.tiny import placed, tiny_session

GPU = placed(unet=torch.device("cuda"))


@pytest.mark.parametrize(
    ("placement", "execution", "told"),
    [
        (GPU, Execution(compile=True), ["compiling for the GPU"]),
        (GPU, Execution(compile=True, streamed=True), ["nothing is compiled"]),
        (Placement(), Execution(compile=True), ["nothing is compiled"]),
        (GPU, Execution(), []),
        (GPU, Execution(cuda_graphs=True), []),
        (GPU, Execution(cuda_graphs=True, streamed=True), ["without CUDA graphs: they take"]),
        (Placement(), Execution(cuda_graphs=True), ["without CUDA graphs: they take"]),
    ],
)
def test_what_is_told(
    tiny_data: Path, placement: Placement, execution: Execution, told: list[str]
) -> None:
    session = tiny_session(tiny_data, placement=placement, execution=execution)
    events = list(describe_compiling(session.models(), approximated=False))
    assert all(isinstance(event, Notice) for event in events)
    assert len(events) == len(told)
    assert all(text in str(event) for text, event in zip(told, events, strict=True))


def test_it_is_told_that_approximations_are_not_captured(tiny_data: Path) -> None:
    session = tiny_session(tiny_data, placement=GPU, execution=Execution(cuda_graphs=True))
    (told,) = describe_compiling(session.models(), approximated=True)
    assert "without CUDA graphs: with an approximation" in str(told)


def test_is_told_before_the_work(tiny_data: Path) -> None:
    session = tiny_session(tiny_data, execution=Execution(compile=True))
    first = next(iter(text2img(session, Request("x", steps=2), width=32, height=32)))
    assert isinstance(first, Notice) and "nothing is compiled" in str(first)


def test_does_not_go_with_token_merging(tiny_data: Path) -> None:
    session = tiny_session(tiny_data, execution=Execution(compile=True))
    plan_request(session, Request("x", steps=2, deepcache=2))
    with pytest.raises(UsageError, match="--compile"):
        plan_request(session, Request("x", steps=2, token_merging=0.5))
