"""What is said of compiling, and what it does not go with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdpy.errors import UsageError
from sdpy.optimizations.approximate import DeepCache
from sdpy.pipelines import Notice, Settings, generate
from sdpy.pipelines.paint import _tell_of_compiling, check
from sdpy.runtime.devices import Placement
from support.tiny import placed, tiny_components

GPU = placed(unet=torch.device("cuda"))


@pytest.mark.parametrize(
    ("placement", "execution", "told"),
    [
        (GPU, {"compiled": True}, ["compiling for the GPU"]),
        (GPU, {"compiled": True, "streamed": True}, ["nothing is compiled"]),
        (Placement(), {"compiled": True}, ["nothing is compiled"]),
        (GPU, {}, []),
    ],
)
def test_what_is_told(
    tiny_data: Path, placement: Placement, execution: dict[str, bool], told: list[str]
) -> None:
    components = tiny_components(tiny_data).computing(**execution).changed(placement=placement)
    events = list(_tell_of_compiling(components))
    assert all(isinstance(event, Notice) for event in events)
    assert len(events) == len(told)
    assert all(text in str(event) for text, event in zip(told, events, strict=True))


def test_is_told_before_the_work(tiny_data: Path) -> None:
    components = tiny_components(tiny_data).computing(compiled=True)
    first = next(iter(generate(components, Settings("x", steps=2), width=32, height=32)))
    assert isinstance(first, Notice) and "nothing is compiled" in str(first)


def test_does_not_go_with_approximations(tiny_data: Path) -> None:
    components = tiny_components(tiny_data).computing(compiled=True)
    settings = Settings("x", steps=2, approximations=(DeepCache(2),))
    with pytest.raises(UsageError, match="--compile"):
        check(components, settings, (1, 4, 16, 16), (4,))
