"""How many threads a UNet is computed with."""

from __future__ import annotations

import pytest
import torch

from sdpy.pipelines.events import Progress
from sdpy.pipelines.inputs import ImageRequest
from sdpy.pipelines.pipeline import Pipeline
from sdpy.runtime.options import ModelOptions, open_session


def threads_of_steps(options: ModelOptions, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The number of threads that the command's session has a UNet of the demo model computed with.

    On a machine of eight cores.
    """
    before, seen = torch.get_num_threads(), set()
    monkeypatch.setattr("sdpy.runtime.threads.usable_cores", lambda root: 8)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(8)
    try:
        with Pipeline(open_session(options, keep_models=False), metadata=False) as pipeline:
            at_first = torch.get_num_threads()
            for event in pipeline.run([ImageRequest("a cat", steps=2, width=64, height=64)]):
                if isinstance(event, Progress) and event.step:
                    seen.add(torch.get_num_threads())
            assert torch.get_num_threads() == at_first
    finally:
        torch.set_num_threads(before)
    return seen


def test_the_demo_model_takes_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of_steps(ModelOptions(model="demo", device="cpu"), monkeypatch) == {2}


def test_what_the_user_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ModelOptions(model="demo", device="cpu", threads=5)
    assert threads_of_steps(options, monkeypatch) == {5}
