"""Workers of a Ray cluster, each with a model on a GPU or on some cores.

Images are written by the workers, into a folder that all nodes share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdpy.errors import OutputError, UsageError
from sdpy.jobs.engines.base import Bundle, BundleDone, EngineEvent, Lost, hand_out
from sdpy.jobs.engines.local import PAUSE
from sdpy.jobs.painter import Painter, Task


class RayEngine:
    """Computes on a Ray cluster; see `sdpy.jobs.engines.base.Engine`.

    Args:
        painter: what each worker does.
        address: of the cluster; None to start one on this machine.
        workers: how many; None for one a GPU, or one a node where there are none.

    Raises:
        UsageError: Ray is not there, or the cluster cannot be reached.
    """

    def __init__(
        self, painter: Painter, *, address: str | None = None, workers: int | None = None
    ) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError(
                "--engine ray takes Ray: install it with pip install 'sdpy[ray]'"
            ) from None
        self._ray: Any = ray
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(
                f"the Ray cluster cannot be reached ({reason}); check --address"
            ) from None
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        self.count = workers if workers is not None else (gpus or nodes)
        self._has_gpu = gpus >= self.count
        self._cores = max(1, cores // self.count)
        threads = None if self._has_gpu else self._cores
        self._painter = replace(painter, sessions=None, threads=threads)
        self._workers: list[_Worker] = []

    def run(self, bundles: Iterator[Bundle | None]) -> Generator[EngineEvent | None, None, None]:
        """Compute bundles, each by the first worker that is free."""
        self._workers = [self._start() for _ in range(self.count)]
        is_over = False
        while True:
            is_over = is_over or hand_out(bundles, self._workers)
            busy = [worker for worker in self._workers if worker.bundle is not None]
            if not busy:
                if is_over:
                    return
                time.sleep(PAUSE)
                yield None
                continue
            streams = {worker.stream: worker for worker in busy}
            ready, _ = self._ray.wait(list(streams), timeout=PAUSE)
            if not ready:
                yield None
            for stream in ready:
                yield self._receive(streams[stream])

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._workers = []
        self._ray.shutdown()

    def _start(self) -> _Worker:
        resources = {"num_gpus": 1} if self._has_gpu else {"num_cpus": self._cores}
        actor = self._ray.remote(**resources)(RayPainter)
        return _Worker(actor.remote(self._painter, os.getcwd()))

    def _receive(self, worker: _Worker) -> EngineEvent:
        assert worker.bundle is not None
        number = worker.bundle.number
        exceptions = self._ray.exceptions
        try:
            event = self._ray.get(next(worker.stream))
        except StopIteration:
            worker.bundle = None
            return number, BundleDone()
        except exceptions.RayTaskError as error:
            cause = error.cause
            raise (
                cause
                if isinstance(cause, OutputError)
                else OutputError(" ".join(str(cause).split()))
            ) from None
        except exceptions.RayError as error:
            self._workers[self._workers.index(worker)] = self._start()
            return number, Lost(f"a worker of the cluster is gone ({type(error).__name__})")
        return number, event


@dataclass(eq=False)
class _Worker:
    """An actor, and what it computes at present."""

    actor: Any
    bundle: Bundle | None = None
    stream: Any = None

    def give(self, bundle: Bundle) -> None:
        """Hand over a bundle."""
        self.bundle = bundle
        self.stream = self.actor.paint.options(num_returns="streaming").remote(bundle.tasks)


class RayPainter:
    """What each worker does.

    Args:
        painter: computes.
        folder: that relative paths begin at.
    """

    def __init__(self, painter: Painter, folder: str) -> None:
        os.chdir(folder)
        self.painter = painter

    def paint(self, tasks: Sequence[Task]) -> Iterator[Any]:
        """Compute a bundle, event by event."""
        yield from self.painter.paint(tasks)
