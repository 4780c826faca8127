"""Shares of a batch, for job arrays of batch schedulers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sdpy.errors import UsageError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Shard:
    """One of several shares.

    Attributes:
        number: counted from 1.
        count: of the shares.
    """

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        """As ``--shard`` takes it."""
        return f"{self.number}/{self.count}"

    def part(self, values: Sequence[Value]) -> Sequence[Value]:
        """This share of some values: one piece, so that what is alike stays together."""
        total = len(values)
        return values[(self.number - 1) * total // self.count : self.number * total // self.count]


@dataclass(frozen=True)
class Scheduler:
    """How a batch scheduler tells an array job which of them it is.

    Attributes:
        name: of it.
        index: variable with the number of this task.
        first, last, step, count: variables with what is known of the others; None where there is
            none.
    """

    name: str
    index: str
    first: str | None = None
    last: str | None = None
    step: str | None = None
    count: str | None = None


SCHEDULERS = (
    Scheduler(
        "SLURM",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_MAX",
        "SLURM_ARRAY_TASK_STEP",
        "SLURM_ARRAY_TASK_COUNT",
    ),
    Scheduler("Grid Engine", "SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
    Scheduler("PBS", "PBS_ARRAY_INDEX"),
    Scheduler("Torque", "PBS_ARRAYID"),
)


def read_shard(text: str, environment: Mapping[str, str] | None = None) -> Shard:
    """The share that ``--shard`` names: ``3/16``, ``auto``, or ``auto/16``.

    ``auto`` takes it from the variables of the array job that this process is of. PBS does not say
    how many tasks there are, which is then given behind the slash; they are counted from 1.

    Raises:
        UsageError: something else, or no variable says it.
    """
    variables = os.environ if environment is None else environment
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is not None:
        return _checked(text, int(match[1]), int(match[2]))
    match = re.fullmatch(r"auto(?:/(\d+))?", text.strip().lower())
    if match is None:
        raise UsageError(f"--shard {text}: use I/N, such as 3/16, or auto in an array job")
    given = None if match[1] is None else int(match[1])
    for scheduler in SCHEDULERS:
        if variables.get(scheduler.index, "").isdigit():
            return _from_variables(text, scheduler, variables, given)
    names = ", ".join(scheduler.index for scheduler in SCHEDULERS)
    raise UsageError(f"--shard {text}: this is no array job ({names} are not set); use I/N")


def _from_variables(
    text: str, scheduler: Scheduler, variables: Mapping[str, str], given: int | None
) -> Shard:
    def number(name: str | None, otherwise: int) -> int:
        value = variables.get(name, "") if name is not None else ""
        return int(value) if value.isdigit() else otherwise

    index = int(variables[scheduler.index])
    if scheduler.last is None:
        if given is None:
            raise UsageError(
                f"--shard {text}: {scheduler.name} does not say how many tasks the array has; "
                "use auto/N"
            )
        return _checked(text, index, given)
    first = number(scheduler.first, 1)
    step = max(1, number(scheduler.step, 1))
    count = 1 + (number(scheduler.last, index) - first) // step
    if number(scheduler.count, count) != count or (index - first) % step:
        raise UsageError(f"--shard {text}: the tasks of this array are not evenly spaced; use I/N")
    # With a number behind the slash, some shares are left to other arrays.
    return _checked(text, 1 + (index - first) // step, count if given is None else given)


def _checked(text: str, number: int, count: int) -> Shard:
    if not 1 <= number <= count:
        raise UsageError(f"--shard {text}: there is no share {number} of {count}; use 1 to {count}")
    return Shard(number, count)
