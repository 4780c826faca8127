"""A sampler's steps as tables of numbers, for devices that are told all steps beforehand.

What a sampler makes of latents is linear: a sum of latents, predictions and noise, of this
evaluation and of earlier ones, each times a number that only depends on the schedule. The numbers
are found by asking the scheduler itself what it makes of each. So a sampler is written once, and
its step can be done without its code: by a recorded CUDA graph, for example, whose instructions
are the same at every step.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sdpy.schedulers.base import Scheduler
from sdpy.schedulers.noise import NoiseSource

LONGEST_WINDOW = 64
"""Evaluations that a step may look back at; what they left has to be kept."""

NEGLIGIBLE = 1e-10
"""Numbers below this share of the largest of their step are as good as 0 in float32."""

TOLERANCE = 1e-8
"""How far a sampler may be from its table, in float64, relative to the result."""


@dataclass(frozen=True)
class LinearSteps:
    """What a scheduler does at each of its N evaluations, as float64 on the CPU.

    Attributes:
        weights: (N, 3, W). The latents after evaluation ``i`` are the sum over ``k`` of
            ``weights[i, 0, k]`` times the latents before evaluation ``i - k``,
            ``weights[i, 1, k]`` times the prediction at ``i - k``, and
            ``weights[i, 2, k]`` times the noise that was drawn at ``i - k``.
        scales: (N,), by which latents are multiplied for the network to see them.
        known: (N, 2), what clean latents and noise are multiplied by to be as noisy as the latents
            are after each evaluation.
        draws: whether noise is drawn at each evaluation.
    """

    weights: Tensor
    scales: Tensor
    known: Tensor
    draws: tuple[bool, ...]

    @property
    def window(self) -> int:
        """W: how many evaluations a step looks at, its own included."""
        return self.weights.shape[-1]


def linear_steps(scheduler: Scheduler) -> LinearSteps | None:
    """The table of a scheduler whose timesteps have been set and which has done no step yet.

    The scheduler is left as it is. The tables of the last schedules are cached.

    Returns:
        None where the steps are not linear, as with dynamic thresholding, or where some depend on
        more than `LONGEST_WINDOW` evaluations.
    """
    return _linear_steps(pickle.dumps(scheduler))


@lru_cache(maxsize=16)
def _linear_steps(pickled: bytes) -> LinearSteps | None:
    """The table of a scheduler, of which each loop takes a copy."""
    count = len(pickle.loads(pickled).timesteps)
    # What a loop returns for each evaluation is how much each of the 3 N inputs counts.
    unit = torch.eye(3 * count, dtype=torch.float64).view(3, count, 1, 3 * count)
    table = _table(_run(pickle.loads(pickled), lambda i, kind: unit[kind, i]))
    if table is None or not _is_right(pickle.loads(pickled), table):
        return None
    return table


@dataclass(frozen=True)
class _Loop:
    """What a scheduler made of given inputs: see `LinearSteps`, and ``results`` of each step."""

    results: list[Tensor]
    scales: list[float]
    known: list[tuple[float, float]]
    draws: list[bool]


class _Given(NoiseSource):
    """Noise that is given for each evaluation."""

    def __init__(self, noise: Callable[[int], Tensor]) -> None:
        super().__init__()
        self._noise = noise
        self.evaluation = 0
        self.drawn: set[int] = set()

    def draw(self, like: Tensor) -> Tensor:
        """The noise of this evaluation, which a sampler draws once at most."""
        assert self.evaluation not in self.drawn, "noise is drawn once an evaluation"
        self.drawn.add(self.evaluation)
        return self._noise(self.evaluation)


def _run(scheduler: Scheduler, given: Callable[[int, int], Tensor]) -> _Loop:
    """Go through all evaluations.

    Args:
        scheduler: that has done no step yet.
        given: the latents (kind 0), prediction (1) and noise (2) of an evaluation, each (1, n).
    """
    noise = _Given(lambda i: given(i, 2))
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    loop = _Loop([], [], [], [])
    timesteps = scheduler.timesteps
    for i, timestep in enumerate(timesteps):
        noise.evaluation = i
        loop.scales.append(scheduler.scale_model_input(one, timestep).item())
        loop.results.append(scheduler.step(given(i, 1), timestep, given(i, 0), noise))
        loop.draws.append(i in noise.drawn)
        if i + 1 < len(timesteps):
            upcoming = timesteps[i + 1]
            made = (scheduler.add_noise(*pair, upcoming) for pair in ((one, none), (none, one)))
            clean, noisy = (factor.item() for factor in made)
            loop.known.append((clean, noisy))
        else:
            loop.known.append((1.0, 0.0))
    return loop


def _table(loop: _Loop) -> LinearSteps | None:
    """The table of a loop whose inputs were unit vectors; None if it were too wide."""
    count = len(loop.results)
    by_evaluation = torch.stack(loop.results).view(count, 3, count)
    largest = by_evaluation.abs().amax(dim=(1, 2), keepdim=True)
    by_evaluation = by_evaluation.where(by_evaluation.abs() > NEGLIGIBLE * largest, 0.0)
    rows = range(count)
    counts = by_evaluation.abs().amax(dim=1) > 0  # (N, N)
    window = max((i - int(counts[i].nonzero()[0]) + 1 for i in rows if counts[i].any()), default=1)
    if window > LONGEST_WINDOW:
        return None
    weights = torch.zeros(count, 3, window, dtype=torch.float64)
    for i in rows:
        for k in range(min(window, i + 1)):
            weights[i, :, k] = by_evaluation[i, :, i - k]
    return LinearSteps(
        weights,
        torch.tensor(loop.scales, dtype=torch.float64),
        torch.tensor(loop.known, dtype=torch.float64),
        tuple(loop.draws),
    )


def _is_right(scheduler: Scheduler, table: LinearSteps) -> bool:
    """Whether the scheduler makes of random numbers what its table says."""
    count = len(table.scales)
    numbers = torch.Generator().manual_seed(0)
    given = 3 * torch.randn(3, count, 1, 16, generator=numbers, dtype=torch.float64)
    results = _run(scheduler, lambda i, kind: given[kind, i]).results
    for i, result in enumerate(results):
        seen = [i - k for k in range(min(table.window, i + 1))]
        weights = table.weights[i, :, : len(seen), None, None]
        expected = (weights * given[:, seen]).sum(dim=(0, 1))
        if not (expected - result).norm() <= TOLERANCE * result.norm():
            return False
    return True
