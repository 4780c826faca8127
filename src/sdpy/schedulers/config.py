"""What a model was trained on, as far as its samplers must know it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sdpy.errors import UsageError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class NoiseConfig:
    """The forward process that a model was trained on, and what its network predicts.

    The defaults are Stable Diffusion's: 1000 timesteps whose variances have square roots that
    rise linearly from ``sqrt(beta_start)`` to ``sqrt(beta_end)``.

    ``prediction_type`` is ``epsilon`` (the noise), ``v_prediction`` (the velocity
    ``sqrt(a) noise - sqrt(1 - a) x_0``; Salimans and Ho, 2022, "Progressive Distillation",
    section 4) or ``sample`` (``x_0`` itself).

    Raises:
        UsageError: unknown prediction type, or one that cannot begin with pure noise.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise UsageError(
                f"unknown prediction type '{self.prediction_type}': "
                f"use one of {', '.join(PREDICTION_TYPES)}"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise UsageError(
                "a zero-terminal-SNR schedule begins with pure noise, of which an epsilon "
                "prediction says nothing: use v_prediction or sample"
            )
