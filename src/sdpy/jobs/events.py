"""What a batch reports while it is done."""

from __future__ import annotations

from dataclasses import dataclass

from sdpy.jobs.job import Place


@dataclass(frozen=True, slots=True)
class Started:
    """The work begins.

    Attributes:
        images: that the batch has, or this shard of it.
        done: of them, how many are there already.
        given_up: of them, how many failed in an earlier run and are not tried again.
    """

    images: int
    done: int
    given_up: int

    @property
    def to_do(self) -> int:
        """How many are to be made."""
        return self.images - self.done - self.given_up


@dataclass(frozen=True, slots=True)
class StepsDone:
    """So many steps of a batch of images are done.

    Attributes:
        bundle: which batch.
        images: that are computed together.
        step, steps: how many are done, and how many there are.
    """

    bundle: int
    images: int
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class ImageDone:
    """An image is written.

    Attributes:
        place: of its job.
        index: of its job.
        path: of the image.
        seed: of its noise.
        seconds: that it took, its share of those of its batch.
    """

    place: Place
    index: int
    path: str
    seed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class JobFailed:
    """A job failed.

    Attributes:
        place: of it.
        index: of it.
        reason: a line for people.
        code: the exit code that the error would have alone.
    """

    place: Place
    index: int
    reason: str
    code: int


@dataclass(frozen=True, slots=True)
class Note:
    """What the user should know."""

    text: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing happens at present: others are at work on what is left."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The work ends.

    Attributes:
        images: that were made.
        done: that were there already, or were made by another process meanwhile.
        failed: jobs that failed, now or in an earlier run.
        left: images that are still to be made, since the work was stopped.
        signal: that stopped it; None if nothing did.
    """

    images: int
    done: int
    failed: int
    left: int
    signal: int | None = None


BatchEvent = Started | StepsDone | ImageDone | JobFailed | Note | Waiting | Ended
