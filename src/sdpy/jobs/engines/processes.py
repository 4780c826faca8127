"""Several devices of one machine, each with a process of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from sdpy.errors import OutputError
from sdpy.jobs.engines.base import Bundle, BundleDone, EngineEvent, Lost, hand_out
from sdpy.jobs.engines.local import PAUSE
from sdpy.jobs.painter import Painter
from sdpy.runtime.devices import find_device

_SECONDS_TO_END = 5.0


class ProcessEngine:
    """Computes in a process for each device; see `sdpy.jobs.engines.base.Engine`.

    Args:
        painter: what each process does, but for the device.
        devices: such as ``cuda:0`` and ``cuda:1``; the same one may be named several times.

    Raises:
        UsageError: a device that there is not.
    """

    def __init__(self, painter: Painter, devices: Sequence[str]) -> None:
        kinds = [find_device(device).type for device in devices]
        on_cpu = kinds.count("cpu")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        share = max(1, (cores or 1) // max(1, on_cpu))
        self._painters = [
            replace(painter, device=device, threads=share if kind == "cpu" else painter.threads)
            for device, kind in zip(devices, kinds, strict=True)
        ]
        self._workers: list[_Worker] = []

    def run(self, bundles: Iterator[Bundle | None]) -> Generator[EngineEvent | None, None, None]:
        """Compute bundles, each on the first device that is free."""
        self._workers = [_Worker.start(painter) for painter in self._painters]
        is_over = False
        while True:
            is_over = is_over or hand_out(bundles, self._workers)
            busy = {worker.connection: worker for worker in self._workers if worker.bundle}
            if not busy:
                if is_over:
                    return
                time.sleep(PAUSE)
            ready = wait(list(busy), timeout=PAUSE) if busy else []
            if not ready:
                yield None
            for connection in ready:
                yield self._receive(busy[connection])  # type: ignore[index]

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.end()
        self._workers = []

    def _receive(self, worker: _Worker) -> EngineEvent:
        assert worker.bundle is not None
        number = worker.bundle.number
        try:
            event = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(_SECONDS_TO_END)
            code = worker.process.exitcode
            what = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            place = self._workers.index(worker)
            self._workers[place] = _Worker.start(worker.painter)
            return number, Lost(f"the process for {worker.painter.device} ended ({what})")
        if isinstance(event, Exception):
            raise event
        if isinstance(event, BundleDone):
            worker.bundle = None
        return number, event


@dataclass(eq=False)
class _Worker:
    """A process, and what it computes at present."""

    painter: Painter
    process: Any
    connection: Connection
    bundle: Bundle | None = None

    @classmethod
    def start(cls, painter: Painter) -> _Worker:
        """A new process. It is spawned: CUDA does not survive a fork."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        plain = replace(painter, sessions=None)
        process = context.Process(target=_work, args=(plain, theirs), daemon=True)
        process.start()
        theirs.close()
        return cls(painter, process, ours)

    def give(self, bundle: Bundle) -> None:
        """Hand over a bundle. If the process is gone, that is noticed when it should answer."""
        self.bundle = bundle
        try:
            self.connection.send(bundle.tasks)
        except OSError:
            pass

    def end(self) -> None:
        """End the process; at once, if it is at work."""
        if self.bundle is not None:
            self.process.terminate()
        self.connection.close()
        self.process.join(_SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(painter: Painter, connection: Connection) -> None:
    """What each process does, until nobody is there to ask for more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its processes
    try:
        while True:
            for event in painter.paint(connection.recv()):
                connection.send(event)
            connection.send(BundleDone())
    except (EOFError, BrokenPipeError):
        pass
    except OutputError as error:
        connection.send(error)
    finally:
        painter.close()
