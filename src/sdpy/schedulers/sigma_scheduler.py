"""What the samplers share that walk down noise levels (see `sdpy.schedulers.sigmas`).

Their mathematics is written for latents ``x_0 + sigma noise``, whose variance explodes with the
level. Some keep their latents so; others keep them at variance 1, divided by
``sqrt(sigma**2 + 1)``, as the network sees them. Here the two meet.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from sdpy.schedulers.config import NoiseConfig
from sdpy.schedulers.noise import find_evaluation, split_prediction
from sdpy.schedulers.sigmas import (
    RAMPS,
    SCHEDULES,
    Levels,
    sigmas_at,
    timesteps_at,
    training_sigmas,
)
from sdpy.schedulers.spacing import check_steps, space_timesteps


class SigmaScheduler(ABC):
    """A walk down noise levels; see `Scheduler`.

    Args:
        noise: the forward process and what the network predicts.
        timestep_spacing: ``leading``, ``linspace`` or ``trailing``.
        sigmas: a name of `RAMPS`, which goes from the highest to the lowest level of the spacing,
            or of `SCHEDULES`, which takes the spacing's place; None: the spacing's own levels.
    """

    def __init__(
        self, noise: NoiseConfig, *, timestep_spacing: str = "linspace", sigmas: str | None = None
    ) -> None:
        self.noise = noise
        self.timestep_spacing = timestep_spacing
        self.sigma_schedule = sigmas
        self.training_sigmas = training_sigmas(noise)
        self.init_noise_sigma = 1.0
        self.timesteps = torch.empty(0)
        self.sigmas: list[float] = []
        """The level of the latents at each evaluation, then the one that the walk ends at."""

    def set_timesteps(self, num_inference_steps: int, skip: int = 0) -> None:
        """Plan the walk; see `Scheduler.set_timesteps`."""
        check_steps(num_inference_steps, self._most_steps())
        if self.sigma_schedule in SCHEDULES:
            schedule = SCHEDULES[self.sigma_schedule]
            timesteps, sigmas = schedule(num_inference_steps, self.training_sigmas)
        else:
            timesteps, sigmas = self._spaced(num_inference_steps)
        self.init_noise_sigma = self._first_deviation(sigmas[0])
        self.num_inference_steps, self.skipped = num_inference_steps, skip
        levels = [*sigmas.tolist(), self._last_sigma()]
        self._plan(timesteps[skip:], levels[skip:])
        self._upcoming = 0

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The latents at variance 1; see `Scheduler.scale_model_input`."""
        return sample / self._scale(self.sigmas[self._index(timestep)])

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Go on to the next level; see `Scheduler.step`."""
        index = self._index(timestep)
        self._upcoming = index + 1
        sigma = self.sigmas[index]
        mixture = sample / self._scale(sigma)
        alpha_t = 1 / (sigma**2 + 1)
        predicted_x0, predicted_noise = split_prediction(
            self.noise.prediction_type, model_output, mixture, alpha_t
        )
        exploded = mixture * math.sqrt(sigma**2 + 1)
        sample = self._advance(index, predicted_x0, predicted_noise, exploded, generator)
        following = self.sigmas[index + 1]
        return sample * (self._scale(following) / math.sqrt(following**2 + 1))

    def add_noise(self, original: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """See `Scheduler.add_noise`."""
        sigma = self.sigmas[self._index(timestep)]
        return (original + sigma * noise) * (self._scale(sigma) / math.sqrt(sigma**2 + 1))

    @abstractmethod
    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """From ``sigmas[index]`` to ``sigmas[index + 1]``, latents of the exploding kind.

        Args:
            index: of the evaluation.
            predicted_x0, predicted_noise: ``sample`` is ``predicted_x0 + sigma predicted_noise``,
                and the noise the slope of ``sample`` over ``sigma``.
            sample: the latents.
            generator: of fresh noise.
        """

    @abstractmethod
    def _spaced(self, steps: int) -> tuple[Levels, Levels]:
        """Timesteps and levels (steps,) of the spacing, or of the ramp between its ends."""

    @abstractmethod
    def _scale(self, sigma: float) -> float:
        """By how much the deviation of the latents at a level exceeds 1."""

    @abstractmethod
    def _first_deviation(self, sigma: float) -> float:
        """Deviation of the latents that a walk from pure noise begins with."""

    def _plan(self, timesteps: Levels, levels: list[float]) -> None:
        """Set ``timesteps`` and ``sigmas`` and forget what is left of another walk."""
        self.timesteps = torch.from_numpy(timesteps.astype(np.float32))
        self.sigmas = levels

    def _most_steps(self) -> int:
        return self.noise.num_train_timesteps

    def _last_sigma(self) -> float:
        return 0.0

    def _index(self, timestep: Tensor) -> int:
        return find_evaluation(self.timesteps, timestep, self._upcoming)


class ExplodingScheduler(SigmaScheduler):
    """Keeps latents ``x_0 + sigma noise``: the samplers of Karras et al. (2022).

    Levels between whole timesteps are allowed, and a ramp's ends are those of the spacing.
    """

    def _spaced(self, steps: int) -> tuple[Levels, Levels]:
        total = self.noise.num_train_timesteps
        if self.timestep_spacing == "linspace":
            timesteps: Levels = np.linspace(0, total - 1, steps)[::-1]
        else:
            spaced = space_timesteps(self.timestep_spacing, steps, total)
            timesteps = spaced.astype(np.float64)
        sigmas = sigmas_at(timesteps, self.training_sigmas)
        if self.sigma_schedule is not None:
            sigmas = RAMPS[self.sigma_schedule](steps, sigmas[0], sigmas[-1])
            timesteps = timesteps_at(sigmas, self.training_sigmas)
        return timesteps, sigmas

    def _scale(self, sigma: float) -> float:
        return math.sqrt(sigma**2 + 1)

    def _first_deviation(self, sigma: float) -> float:
        # With the others, the first level is so high that a picture would not show.
        return math.sqrt(sigma**2 + 1) if self.timestep_spacing == "leading" else sigma


class PreservingScheduler(SigmaScheduler):
    """Keeps latents at variance 1: DPM-Solver and its kin.

    Timesteps are whole, the spacing reserves one for the end, and ramps span all of training.
    """

    def _spaced(self, steps: int) -> tuple[Levels, Levels]:
        total = self.noise.num_train_timesteps
        training = self.training_sigmas
        if self.sigma_schedule is not None:
            sigmas = RAMPS[self.sigma_schedule](steps, training[-1], training[0])
            timesteps = timesteps_at(sigmas, training)
            if self.sigma_schedule == "karras":
                return timesteps.round(), sigmas
            return np.floor(timesteps), sigmas
        if self.timestep_spacing == "trailing":
            spaced = space_timesteps("trailing", steps, total)
        else:
            spaced = space_timesteps(self.timestep_spacing, steps + 1, total)[:-1]
        timesteps = spaced.astype(np.float64)
        return timesteps, sigmas_at(timesteps, training)

    def _scale(self, sigma: float) -> float:
        return 1.0

    def _first_deviation(self, sigma: float) -> float:
        return 1.0

    def _most_steps(self) -> int:
        return self.noise.num_train_timesteps - 1
