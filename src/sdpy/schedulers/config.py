"""What a model was trained on, as far as its samplers must know it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sdpy.errors import UsageError

Sigmas = str | tuple[float, ...]
"""A name of `sdpy.schedulers.registry.SIGMAS`, or the sigmas themselves, falling, without 0."""

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")


@dataclass(frozen=True)
class NoiseConfig:
    """The forward process that a model was trained on, and what its network predicts.

    The defaults are Stable Diffusion's: 1000 timesteps whose variances have square roots that
    rise linearly from ``sqrt(beta_start)`` to ``sqrt(beta_end)``. With the ``beta_schedule``
    ``linear`` the variances themselves do; with ``squaredcos_cap_v2`` they follow a cosine and not
    these two numbers (Nichol and Dhariwal, 2021, "Improved Denoising Diffusion Probabilistic
    Models", equation 17). ``trained_betas`` gives all of them instead.

    ``prediction_type`` is ``epsilon`` (the noise), ``v_prediction`` (the velocity
    ``sqrt(a) noise - sqrt(1 - a) x_0``; Salimans and Ho, 2022, "Progressive Distillation",
    section 4) or ``sample`` (``x_0`` itself).

    Raises:
        UsageError: unknown prediction type or schedule, or a prediction that cannot begin with pure
            noise.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    beta_schedule: str = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise UsageError(
                f"unknown prediction type '{self.prediction_type}': "
                f"use one of {', '.join(PREDICTION_TYPES)}"
            )
        if self.beta_schedule not in BETA_SCHEDULES:
            raise UsageError(
                f"unknown beta schedule '{self.beta_schedule}': "
                f"use one of {', '.join(BETA_SCHEDULES)}"
            )
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise UsageError(
                f"{len(self.trained_betas)} trained betas are not one for each of "
                f"{self.num_train_timesteps} timesteps"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise UsageError(
                "a zero-terminal-SNR schedule begins with pure noise, of which an epsilon "
                "prediction says nothing: use v_prediction or sample"
            )
