"""How long a batch will take, and how much memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median

from sdpy.benchmark.arithmetic import count_flops, matrix_product_rate
from sdpy.jobs.journal import NAME, LineFile
from sdpy.jobs.prepare import Batch
from sdpy.jobs.settings import Group

LAST_IMAGES = 200
"""Of earlier runs, whose times are looked at."""


@dataclass(frozen=True)
class Estimate:
    """What a batch will take.

    Attributes:
        images: that are to be made.
        done: that are there already.
        seconds: None where nobody can tell.
        memory: bytes, of the largest of its jobs.
    """

    images: int
    done: int
    seconds: float | None
    memory: float


def estimate(batch: Batch) -> Estimate:
    """Estimate a batch.

    The time is that of earlier images in the same folder where there are any; otherwise their
    arithmetic, at the rate at which this machine multiplies matrices.
    """
    numbers = list(batch.numbers)
    left = [n for n in numbers if not (batch.is_done(n) or batch.is_given_up(n))]
    groups = Counter(batch.jobs[n].group for n in left)
    seconds = _by_history(batch, groups)
    if seconds is None:
        seconds = _by_arithmetic(batch, groups)
    return Estimate(
        len(left),
        sum(map(batch.is_done, numbers)),
        seconds,
        max((group.memory for group in groups), default=0.0),
    )


def _by_history(batch: Batch, groups: Counter[Group]) -> float | None:
    rates = [
        line["seconds"] / line["work"]
        for line in LineFile(batch.folder / NAME).new_lines()
        if line.get("work") and "seconds" in line
    ][-LAST_IMAGES:]
    if not rates:
        return None
    work = sum(group.work * count for group, count in groups.items())
    return median(rates) * work


def _by_arithmetic(batch: Batch, groups: Counter[Group]) -> float | None:
    rate, seconds = matrix_product_rate(size=1024, repeats=3), 0.0
    counted: dict[tuple[int, int, object], dict[str, int]] = {}
    for group, count in groups.items():
        session = batch.checker.sessions.find(group.model)
        if session.placement["unet"].type != "cpu":
            return None
        variant = session.variant
        known = (*group.latent_size, variant.name)
        if known not in counted:
            counted[known] = count_flops(
                variant.with_configs(vae=session.headers.config("vae")),
                group.latent_size,
                unet_batch=1,
            )
        flops = counted[known]
        seconds += count * (group.evaluations * flops["unet"] + flops["decode"]) / rate
    return seconds
