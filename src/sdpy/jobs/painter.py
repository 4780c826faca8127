"""Computing jobs that are handed over a batch at a time, and writing their images."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdpy.errors import OutputError, SdpyError, ShortageError
from sdpy.files import OccupiedError
from sdpy.images.files import save_image
from sdpy.images.metadata import NO_TEXTS, ImageTexts
from sdpy.jobs.finished import key_of
from sdpy.jobs.job import Job
from sdpy.jobs.names import NameTemplate
from sdpy.jobs.options import OptionGroups
from sdpy.jobs.sessions import Sessions
from sdpy.jobs.settings import image_request, model_options
from sdpy.metadata.record import ImageRecord
from sdpy.pipelines.events import ImageReady, Notice, Progress
from sdpy.pipelines.inputs import ImageRequest
from sdpy.pipelines.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Task:
    """A job as it is handed to whoever computes it.

    Attributes:
        number: of the job among all of the run.
        job: the job.
        key: identifies the image.
        prompt: its prompt, chosen if it had wildcards.
        seed: its seed, drawn if it was to be random.
        name: of the file.
        values: for the name.
        is_wanted: whether it is to be written. One that is there already is computed again where
            others of its batch are not: alone they might differ in rounding.
    """

    number: int
    job: Job
    key: str
    prompt: str
    seed: int
    name: NameTemplate
    values: Mapping[str, Any]
    is_wanted: bool = True


@dataclass(frozen=True, slots=True)
class Steps:
    """So many of the steps of a batch are done."""

    done: int
    of: int


@dataclass(frozen=True, slots=True)
class Painted:
    """An image is written.

    Attributes:
        number: of its job.
        key: of its job.
        path: of it.
        seed: of it.
        seconds: its share of the time that its batch took.
    """

    number: int
    key: str
    path: str
    seed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A job failed.

    Attributes:
        number: of it.
        key: of it.
        reason: a line for people.
        code: the exit code that the error would have alone.
    """

    number: int
    key: str
    reason: str
    code: int


@dataclass(frozen=True, slots=True)
class Remark:
    """What the user should know."""

    text: str


PaintEvent = Steps | Painted | TaskFailed | Remark


@dataclass(eq=False)
class Painter:
    """Computes batches of jobs with one model after another.

    Attributes:
        defaults: the command's options.
        device: on which all jobs run; None for what they say.
        threads: on the CPU, where a job does not say it; None for torch's own choice.
        metadata: whether images say how they were made.
        overwrite: whether other files may be replaced.
        sessions: of the models; None for new ones.
    """

    defaults: OptionGroups
    device: str | None = None
    threads: int | None = None
    metadata: bool = True
    overwrite: bool = False
    sessions: Sessions | None = None

    def close(self) -> None:
        """Release the models."""
        if self.sessions is not None:
            self.sessions.close()

    def paint(self, tasks: Sequence[Task]) -> Iterator[PaintEvent]:
        """Compute some jobs together. If that fails, each alone, to see which of them it is.

        Raises:
            OutputError: an image cannot be written, as on a full disk.
        """
        left = {task.number: task for task in tasks}
        try:
            for event in self._together(tasks):
                if isinstance(event, Painted | TaskFailed):
                    left.pop(event.number, None)
                yield event
            return
        except OutputError:
            raise
        except Exception as error:
            failure = error.with_traceback(None)
        wanted = [task for task in left.values() if task.is_wanted]
        if len(tasks) == 1:
            yield _failed(tasks[0], failure)
            return
        for task in wanted:
            try:
                yield from self._together([task])
            except OutputError:
                raise
            except Exception as error:
                yield _failed(task, error.with_traceback(None))

    def _together(self, tasks: Sequence[Task]) -> Iterator[PaintEvent]:
        requests = []
        for task in tasks:
            groups, request = self._request(task)
            requests.append(request)
        pipeline = self._open(groups)
        began, told = time.monotonic(), set()
        for event in pipeline.run(requests):
            if isinstance(event, Progress):
                yield Steps(event.step, event.steps)
            elif isinstance(event, Notice):
                if event.text not in told:
                    told.add(event.text)
                    yield Remark(event.text)
            elif isinstance(event, ImageReady):
                task = tasks[event.request]
                if not task.is_wanted:
                    continue
                try:
                    path = self._write(task, event)
                except OccupiedError as error:
                    yield _failed(task, error)
                    continue
                seconds = (time.monotonic() - began) / len(tasks)
                yield Painted(task.number, task.key, os.fspath(path), task.seed, seconds)

    def _request(self, task: Task) -> tuple[OptionGroups, ImageRequest]:
        options = {
            name: value
            for name, value in task.job.options.items()
            if name not in ("seed", "prompt")
        }
        groups = self.defaults.with_options(options)
        return groups, replace(image_request(groups, task.prompt), seed=task.seed)

    def _open(self, groups: OptionGroups) -> Pipeline:
        model = model_options(groups, has_mask=groups.task.mask is not None, device=self.device)
        if model.threads is None and self.threads is not None:
            model = replace(model, threads=self.threads)
        if self.sessions is None:
            self.sessions = Sessions()
        session = self.sessions.find(model)
        self.sessions.release_others(session)
        return Pipeline(session, metadata=self.metadata)

    def _write(self, task: Task, ready: ImageReady) -> Path:
        """Write an image; a counter in its name goes on until a number is free."""
        texts = self._texts(task, ready)
        number = None
        while True:
            if task.name.has_counter:
                number = task.name.next_number(task.values) if number is None else number + 1
            path = task.name.render(task.values, number)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(
                    f"cannot make the folder {path.parent}: {error.strerror}"
                ) from error
            try:
                save_image(ready.image, path, texts, overwrite=self.overwrite and number is None)
            except OccupiedError:
                if number is not None:
                    continue
                if key_of(os.fspath(path)) != task.key:
                    raise  # otherwise somebody wrote it who was gone before they could say so
            return path

    def _texts(self, task: Task, ready: ImageReady) -> ImageTexts:
        texts = ready.image.texts
        if not self.metadata or texts.record is None:
            return NO_TEXTS
        job = task.job
        said = {
            "key": task.key,
            "source": os.path.basename(job.place.source),
            "line": job.place.line,
            "index": job.index,
            "axes": dict(job.axes),
            "template": job.template,
            **job.own,
        }
        kept = {name: value for name, value in said.items() if value not in (None, {})}
        record = replace(ImageRecord.from_json(texts.record), job=kept)
        return replace(texts, record=record.to_json())


def _failed(task: Task, error: Exception) -> TaskFailed:
    if isinstance(error, SdpyError):
        return TaskFailed(task.number, task.key, str(error), error.exit_code)
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        reason = f"out of memory ({_one_line(error)})"
        return TaskFailed(task.number, task.key, reason, ShortageError.exit_code)
    reason = f"internal error, please report it: {type(error).__name__}: {_one_line(error)}"
    return TaskFailed(task.number, task.key, reason, SdpyError.exit_code)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
