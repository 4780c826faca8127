"""Doing a batch: hand out what is left, write down what happens, stop when asked to."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sdpy.errors import SdpyError
from sdpy.jobs.claims import Claims
from sdpy.jobs.engines.base import Bundle, BundleDone, Engine, Lost
from sdpy.jobs.events import (
    BatchEvent,
    Ended,
    ImageDone,
    JobFailed,
    Note,
    Started,
    StepsDone,
    Waiting,
)
from sdpy.jobs.job import Place
from sdpy.jobs.painter import Painted, Remark, Steps, Task, TaskFailed
from sdpy.jobs.prepare import Batch
from sdpy.pipelines.values import RANDOM, draw_seed

MOST_LOSSES = 3
"""So often a batch is computed whose worker ends; then it is taken to be the batch's fault."""


@dataclass
class Stop:
    """A request to stop.

    Attributes:
        signal: that asked for it; None as long as none has.
        is_listening: whether there are images in hand that it can wait for.
        tell: says that it waits for them.
        is_untold: whether that could not be said at once, and is still to be said.
        deadline: when the images in hand are given up, by `time.monotonic`; None for never.
    """

    signal: int | None = None
    deadline: float | None = None
    is_listening: bool = False
    is_untold: bool = False
    tell: Callable[[str], None] = lambda text: None

    @property
    def is_over(self) -> bool:
        """Whether the time for the images in hand is over."""
        return self.deadline is not None and time.monotonic() > self.deadline


class Runner:
    """Does a batch.

    Args:
        batch: what is to be done.
        engine: who computes.
        stop: is looked at between two batches.
    """

    def __init__(self, batch: Batch, engine: Engine, stop: Stop | None = None) -> None:
        self.batch = batch
        self.engine = engine
        self.stop = Stop() if stop is None else stop
        self.claims = Claims(batch.folder)
        self._made = self._failed = self._elsewhere = 0
        self._is_failing = False
        self._running: Counter[int] = Counter()
        self._losses: Counter[int] = Counter()
        self._again: deque[int] = deque()

    def run(self) -> Generator[BatchEvent, None, None]:
        """Do the batch; the work is done while the iterator is asked for events.

        Raises:
            OutputError: an image, or the journal, cannot be written.
        """
        batch = self.batch
        numbers = list(batch.numbers)
        done = sum(map(batch.is_done, numbers))
        given_up = [n for n in numbers if not batch.is_done(n) and batch.is_given_up(n)]
        yield Started(len(numbers) + len(batch.faults), done, len(given_up))
        self._tidy_failures()
        for fault in batch.faults:
            yield self._fail(fault.place, fault.index, str(fault.error), fault.error, None)
        if given_up:
            yield Note(
                f"{len(given_up)} of them failed in an earlier run, and are not tried again: "
                "--retry-failed does"
            )
        if not (batch.settings.fail_fast and self._failed):
            try:
                with closing(self.engine.run(self._bundles())) as events:
                    yield from self._follow(events)
            finally:
                self.engine.close()
                self.claims.close()
        left = sum(1 for n in numbers if not batch.is_done(n)) - len(given_up)
        left -= self._failed - len(batch.faults)
        yield Ended(
            self._made,
            done + self._elsewhere,
            self._failed + len(given_up),
            max(0, left),
            self.stop.signal,
        )

    def _follow(self, events: Iterator[Any]) -> Iterator[BatchEvent]:
        batch = self.batch
        for found in events:
            if self.stop.is_over:
                return
            if found is None:
                yield Waiting()
                continue
            number, event = found
            if isinstance(event, Steps):
                yield StepsDone(number, len(batch.bundles[number]), event.done, event.of)
            elif isinstance(event, Remark):
                yield Note(event.text)
            elif isinstance(event, BundleDone):
                self._running[number] -= 1
            elif isinstance(event, Lost):
                yield from self._lose(number, event.reason)
            elif isinstance(event, TaskFailed):
                job = batch.jobs[event.number].job
                yield self._fail(job.place, job.index, event.reason, event.code, event.key)
                self.claims.release([event.key])
            else:
                yield self._done(event)
                self.claims.release([event.key])

    def _lose(self, number: int, reason: str) -> Iterator[BatchEvent]:
        """Do a bundle again whose worker is gone, unless that happens again and again."""
        batch = self.batch
        self._running[number] -= 1
        self._losses[number] += 1
        before = len(batch.finished.paths)
        batch.finished.find()  # the last image may be there, though nobody said so
        self._made += len(batch.finished.paths) - before
        left = self._wanted(number)
        if self._losses[number] < MOST_LOSSES:
            if left:
                again = "1 image is" if len(left) == 1 else f"{len(left)} images are"
                yield Note(f"{reason}: {again} computed by another")
            self._again.append(number)
            return
        for n in left:
            checked = batch.jobs[n]
            job = checked.job
            text = f"{reason}, {MOST_LOSSES} times"
            yield self._fail(job.place, job.index, text, SdpyError.exit_code, checked.key)
        self.claims.release(batch.jobs[n].key for n in left)

    def _done(self, event: Painted) -> ImageDone:
        checked = self.batch.jobs[event.number]
        group, job = checked.group, checked.job
        # If a worker was lost meanwhile, the file was found before this told of it.
        is_new = event.key not in self.batch.finished.paths
        self.batch.finished.add(
            event.key,
            Path(event.path),
            seconds=round(event.seconds, 3),
            work=group.work,
        )
        self._made += is_new
        return ImageDone(job.place, job.index, event.path, event.seed, event.seconds)

    def _fail(
        self, place: Place, index: int, reason: str, code: int | SdpyError, key: str | None
    ) -> JobFailed:
        code = code if isinstance(code, int) else code.exit_code
        moment = datetime.now().astimezone().isoformat(timespec="seconds")
        line = {"file": place.source, "line": place.line, "index": index, "reason": reason}
        self.batch.failures.append({**line, "code": code, "time": moment, "key": key})
        self._failed += 1
        self._is_failing = self.batch.settings.fail_fast
        return JobFailed(place, index, reason, code)

    def _tidy_failures(self) -> None:
        """Leave out what is tried again now, and what is done by now."""
        batch = self.batch
        kept = {
            job.key
            for number, job in enumerate(batch.jobs)
            if batch.is_given_up(number) and not batch.is_done(number)
        }
        mine = {job.job.place.source for job in batch.jobs}
        mine |= {fault.place.source for fault in batch.faults}
        batch.failures.rewrite(lambda line: line.get("file") not in mine or line["key"] in kept)

    def _bundles(self) -> Iterator[Bundle | None]:
        """What is left to do and nobody else is at work on; at last, what others have left."""
        batch = self.batch
        waiting: deque[int] = deque()
        for number in range(len(batch.bundles)):
            if self._is_stopping:
                return
            yield from self._repeated()
            if self._wanted(number):
                if self._claim(number):
                    yield from self._bundle(number)
                else:
                    waiting.append(number)
        while waiting or self._again or any(self._running.values()):
            if self._is_stopping:
                return
            yield from self._repeated()
            if not waiting:
                yield None  # somebody may yet be lost
                continue
            number = waiting.popleft()
            batch.finished.refresh()
            if not self._wanted(number):
                continue
            if self._claim(number):
                yield from self._bundle(number)
            else:
                waiting.append(number)
                yield None

    def _repeated(self) -> Iterator[Bundle]:
        """Bundles whose worker is gone; they are claimed already."""
        while self._again:
            yield from self._bundle(self._again.popleft())

    @property
    def _is_stopping(self) -> bool:
        return self.stop.signal is not None or self._is_failing

    def _wanted(self, number: int) -> list[int]:
        batch = self.batch
        return [n for n in batch.bundles[number] if not (batch.is_done(n) or batch.is_given_up(n))]

    def _claim(self, number: int) -> bool:
        keys = [self.batch.jobs[n].key for n in self._wanted(number)]
        granted = self.claims.claim(keys)
        if len(granted) == len(keys):
            return True
        self.claims.release(granted)
        return False

    def _bundle(self, number: int) -> Iterator[Bundle]:
        """The bundle, unless somebody has done it before it was claimed."""
        batch, before = self.batch, self._wanted(number)
        batch.finished.refresh()
        wanted = self._wanted(number)
        self._elsewhere += len(before) - len(wanted)
        if not wanted:
            self.claims.release(batch.jobs[n].key for n in before)
            return
        members = batch.bundles[number]
        if any(batch.jobs[n].key in batch.failed for n in members):
            # Together they failed then, and were computed alone.
            members = tuple(wanted)
            for n in members[:-1]:
                self._running[number] += 1
                yield Bundle(number, (self._task(n, is_wanted=True),))
            members = members[-1:]
        self._running[number] += 1
        yield Bundle(number, tuple(self._task(n, is_wanted=n in wanted) for n in members))

    def _task(self, number: int, *, is_wanted: bool) -> Task:
        batch, checked = self.batch, self.batch.jobs[number]
        job = checked.job
        prompt, seed = batch.prompt_and_seed(job)
        if seed == RANDOM:
            seed = draw_seed()
            if job.template is not None and batch.wildcards is not None:
                prompt = batch.wildcards.choose(job.template, seed)
        template = batch.targets.template(job)
        values = batch.targets.values(job, template, batch.checker.values(job), prompt, seed)
        return Task(number, job, checked.key, prompt, int(seed), template, values, is_wanted)
