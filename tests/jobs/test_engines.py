"""Batches on several devices and on a Ray cluster: nothing is lost, nothing is made twice."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdpy.errors import UsageError
from sdpy.jobs.check import Checker
from sdpy.jobs.engines.base import Bundle, Engine, EngineEvent, Lost
from sdpy.jobs.engines.local import LocalEngine
from sdpy.jobs.engines.processes import ProcessEngine
from sdpy.jobs.events import Ended, ImageDone, JobFailed, Note
from sdpy.jobs.expand import Expansion
from sdpy.jobs.job import Entry, Place
from sdpy.jobs.options import JobGenerationOptions, OptionGroups, TaskOptions
from sdpy.jobs.painter import Painted, Painter
from sdpy.jobs.prepare import Batch, BatchSettings, prepare
from sdpy.jobs.runner import Runner
from sdpy.jobs.targets import Targets
from sdpy.runtime.options import ModelOptions
from support.stuck import StuckPainter

IMAGES = 8


def batch_in(folder: Path) -> Batch:
    defaults = OptionGroups(
        TaskOptions(prompt="a cat", output=str(folder / "{seed}.png")),
        JobGenerationOptions(steps=1, width=64, height=64, batch_size=2),
        model=ModelOptions(model="demo"),
    )
    entry = Entry(Place("jobs", 1), {"seed": f"1-{IMAGES}"})
    jobs = Expansion(defaults).jobs([entry])
    return prepare(jobs, Checker(defaults), Targets(defaults, datetime.now()), BatchSettings())


def pixels(folder: Path) -> list[np.ndarray]:
    found = []
    for number in range(1, IMAGES + 1):
        with Image.open(folder / f"{number}.png") as image:
            found.append(np.asarray(image))
    return found


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[list[np.ndarray]]:
    batch = batch_in(tmp_path / "alone")
    events = list(Runner(batch, LocalEngine(Painter(batch.targets.defaults))).run())
    assert isinstance(events[-1], Ended) and events[-1].images == IMAGES
    yield pixels(tmp_path / "alone")
    batch.checker.sessions.close()


def with_one_killed(batch: Batch, engine: Engine, painter: StuckPainter) -> list[Any]:
    events: list[Any] = []
    for event in Runner(batch, engine).run():
        if isinstance(event, ImageDone) and not any(isinstance(e, ImageDone) for e in events):
            painter.kill()
        events.append(event)
    return events


def check(events: list[Any], folder: Path, alone: list[np.ndarray]) -> None:
    assert not [event for event in events if isinstance(event, JobFailed)]
    lost = [e.text for e in events if isinstance(e, Note) and "computed by another" in e.text]
    # The other one of the two is written already.
    assert [text.partition(": ")[2] for text in lost] == ["1 image is computed by another"]
    paths = [event.path for event in events if isinstance(event, ImageDone)]
    assert len(paths) == len(set(paths)) >= IMAGES - 1
    assert events[-1].images == IMAGES
    assert all(np.array_equal(a, b) for a, b in zip(alone, pixels(folder), strict=True))


@pytest.mark.slow
def test_a_device_whose_process_is_killed(tmp_path: Path, alone: list[np.ndarray]) -> None:
    batch = batch_in(tmp_path / "two")
    painter = StuckPainter(batch.targets.defaults, stuck=tmp_path / "stuck")
    engine = ProcessEngine(painter, ["cpu", "cpu"])
    check(with_one_killed(batch, engine, painter), tmp_path / "two", alone)
    batch.checker.sessions.close()


@pytest.mark.slow
def test_a_ray_worker_that_is_killed(
    tmp_path: Path, alone: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from sdpy.jobs.engines.ray import RayEngine

    # Ray's workers do not get the path of this process, in which the painter is found.
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, *given]))
    batch = batch_in(tmp_path / "ray")
    painter = StuckPainter(batch.targets.defaults, stuck=tmp_path / "stuck")
    engine = RayEngine(painter, workers=2)
    check(with_one_killed(batch, engine, painter), tmp_path / "ray", alone)
    batch.checker.sessions.close()


def test_an_unknown_device() -> None:
    with pytest.raises(UsageError, match="cuda:77|abacus"):
        ProcessEngine(Painter(OptionGroups()), ["abacus"])


class OneLost(LocalEngine):
    """An engine that loses one of two workers between the other's file and its word of it."""

    def run(self, bundles: Iterator[Bundle | None]) -> Generator[EngineEvent | None, None, None]:
        first, second = next(bundles), next(bundles)
        events = super().run(iter([first]))
        painted = next(event for event in events if event and isinstance(event[1], Painted))
        assert first is not None and second is not None
        yield second.number, Lost("the other worker ended")
        yield painted
        yield from events
        yield from super().run(bundles)


def test_an_image_that_is_found_before_it_is_told_of_counts_once(tmp_path: Path) -> None:
    batch = batch_in(tmp_path)
    events = list(Runner(batch, OneLost(Painter(batch.targets.defaults))).run())
    assert sum(isinstance(event, ImageDone) for event in events) == IMAGES
    assert events[-1] == Ended(IMAGES, 0, 0, 0, None)
    batch.checker.sessions.close()
