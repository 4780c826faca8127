"""What the schedulers share that are written in terms of sigmas (see `sdpy.schedulers.sigmas`).

Their samplers are written for variance-exploding latents ``x_0 + sigma noise``. Some keep their
latents in this form. Others keep them variance-preserving: divided by ``sqrt(sigma**2 + 1)``, which
gives variance 1 and is what the network is shown.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdpy.schedulers.base import index_for_timestep
from sdpy.schedulers.config import NoiseConfig, Sigmas
from sdpy.schedulers.noise import split_prediction
from sdpy.schedulers.sigmas import (
    RAMPS,
    SCHEDULES,
    FloatArray,
    listed,
    sigmas_at,
    timesteps_at,
    training_sigmas,
)
from sdpy.schedulers.spacing import check_steps, space_timesteps


class SigmaScheduler(ABC):
    """Goes from each sigma to the next lower one; see `Scheduler`.

    Args:
        noise: the forward process and what the network predicts.
        timestep_spacing: ``leading``, ``linspace`` or ``trailing``.
        sigmas: a name of `RAMPS`, whose sigmas go from the highest to the lowest of the spacing, or
            of `SCHEDULES`, which replaces the spacing, or the sigmas themselves, which do so, too;
            None for the sigmas of the spaced timesteps.
    """

    def __init__(
        self,
        noise: NoiseConfig,
        *,
        timestep_spacing: str = "linspace",
        sigmas: Sigmas | None = None,
    ) -> None:
        self.noise = noise
        self.timestep_spacing = timestep_spacing
        self.sigma_schedule = sigmas
        self.training_sigmas = training_sigmas(noise)
        self.init_noise_sigma = 1.0
        self.timesteps: tuple[float, ...] = ()
        self.sigmas: tuple[float, ...] = ()
        """The sigma of the latents at each evaluation, then the one after the last step."""

    def set_timesteps(self, num_inference_steps: int, skip: int = 0) -> None:
        """Plan timesteps and sigmas; see `Scheduler.set_timesteps`."""
        check_steps(num_inference_steps, self._most_steps())
        if isinstance(self.sigma_schedule, tuple):
            timesteps, sigmas = listed(
                self.sigma_schedule, num_inference_steps, self.training_sigmas
            )
        elif self.sigma_schedule in SCHEDULES:
            schedule = SCHEDULES[self.sigma_schedule]
            timesteps, sigmas = schedule(num_inference_steps, self.training_sigmas)
        else:
            timesteps, sigmas = self._spaced(num_inference_steps)
        self.init_noise_sigma = self._first_deviation(sigmas[0])
        self.num_inference_steps, self.skipped = num_inference_steps, skip
        self._set_schedule(timesteps[skip:], [*sigmas.tolist(), self._last_sigma()][skip:])
        self._expected_index = 0

    def scale_model_input(self, sample: Tensor, timestep: float) -> Tensor:
        """The latents at variance 1; see `Scheduler.scale_model_input`."""
        return sample / self._scale(self.sigmas[self._index(timestep)])

    def step(
        self,
        model_output: Tensor,
        timestep: float,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Go on to the next sigma; see `Scheduler.step`."""
        index = self._index(timestep)
        self._expected_index = index + 1
        sigma, sigma_next = self.sigmas[index], self.sigmas[index + 1]
        preserving = sample / self._scale(sigma)
        alpha_t = 1 / (sigma**2 + 1)
        predicted_x0, predicted_noise = split_prediction(
            self.noise.prediction_type, model_output, preserving, alpha_t
        )
        exploding = preserving * math.sqrt(sigma**2 + 1)
        exploding = self._advance(index, predicted_x0, predicted_noise, exploding, generators)
        return exploding * (self._scale(sigma_next) / math.sqrt(sigma_next**2 + 1))

    def add_noise(self, original: Tensor, noise: Tensor, timestep: float) -> Tensor:
        """``original + sigma noise``, rescaled; see `Scheduler.add_noise`."""
        sigma = self.sigmas[self._index(timestep)]
        return (original + sigma * noise) * (self._scale(sigma) / math.sqrt(sigma**2 + 1))

    @abstractmethod
    def _advance(
        self,
        index: int,
        predicted_x0: Tensor,
        predicted_noise: Tensor,
        sample: Tensor,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        """The sampler's step from ``sigmas[index]`` to ``sigmas[index + 1]``.

        Args:
            index: of the evaluation.
            predicted_x0: prediction of the clean latents.
            predicted_noise: prediction of the noise, which is the derivative of the latents with
                respect to sigma.
            sample: the latents, variance-exploding: ``predicted_x0 + sigma predicted_noise``.
            generators: of fresh noise, one per image.

        Returns:
            The latents at the next sigma, variance-exploding.
        """

    @abstractmethod
    def _spaced(self, steps: int) -> tuple[FloatArray, FloatArray]:
        """Timesteps and sigmas (steps,) of the spacing, or of the ramp between its ends."""

    @abstractmethod
    def _scale(self, sigma: float) -> float:
        """Standard deviation of the latents at ``sigma``, for images of variance 1."""

    @abstractmethod
    def _first_deviation(self, sigma: float) -> float:
        """Standard deviation of the pure noise that stands for latents at ``sigma``."""

    def _set_schedule(self, timesteps: FloatArray, sigmas: Sequence[float]) -> None:
        """Set ``timesteps`` and ``sigmas`` and forget what is left of another denoising loop."""
        # Rounded to float32, as the network gets them.
        self.timesteps = tuple(timesteps.astype(np.float32).tolist())
        self.sigmas = tuple(sigmas)

    def _most_steps(self) -> int:
        return self.noise.num_train_timesteps

    def _last_sigma(self) -> float:
        return 0.0

    def _index(self, timestep: float) -> int:
        return index_for_timestep(self.timesteps, timestep, self._expected_index)


class VarianceExplodingScheduler(SigmaScheduler):
    """Keeps latents ``x_0 + sigma noise``: the samplers of Karras et al. (2022).

    Sigmas between whole timesteps are allowed, and a ramp's ends are those of the spacing.
    """

    def _spaced(self, steps: int) -> tuple[FloatArray, FloatArray]:
        total = self.noise.num_train_timesteps
        if self.timestep_spacing == "linspace":
            timesteps: FloatArray = np.linspace(0, total - 1, steps)[::-1]
        else:
            spaced = space_timesteps(self.timestep_spacing, steps, total)
            timesteps = spaced.astype(np.float64)
        sigmas = sigmas_at(timesteps, self.training_sigmas)
        if isinstance(self.sigma_schedule, str):
            sigmas = RAMPS[self.sigma_schedule](steps, sigmas[0], sigmas[-1])
            timesteps = timesteps_at(sigmas, self.training_sigmas)
        return timesteps, sigmas

    def _scale(self, sigma: float) -> float:
        return math.sqrt(sigma**2 + 1)

    def _first_deviation(self, sigma: float) -> float:
        # With the other spacings, the first sigma is so high that an image would not show.
        return math.sqrt(sigma**2 + 1) if self.timestep_spacing == "leading" else sigma


class VariancePreservingScheduler(SigmaScheduler):
    """Keeps latents ``(x_0 + sigma noise) / sqrt(sigma**2 + 1)``: DPM-Solver and similar samplers.

    Timesteps are whole, the spacing reserves one for the end, and ramps span all of training.
    """

    def _spaced(self, steps: int) -> tuple[FloatArray, FloatArray]:
        total = self.noise.num_train_timesteps
        training = self.training_sigmas
        if isinstance(self.sigma_schedule, str):
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
        # With one more, "leading" would begin past the last timestep of training, and the first
        # step would not change sigma.
        reserved = 2 if self.timestep_spacing == "leading" and self.sigma_schedule is None else 1
        return self.noise.num_train_timesteps - reserved
