"""What the samplers of consistency models share: the timesteps for which these were distilled."""

from __future__ import annotations

import numpy as np

from sdpy.schedulers.spacing import Timesteps, check_steps

DISTILLED_STEPS = 50
"""Steps of the solver with which the published models were distilled."""


def space_distilled(steps: int, num_train_timesteps: int) -> Timesteps:
    """``steps`` of the last timesteps of 50 equal parts of training, evenly, from the last one on.

    Raises:
        UsageError: a number of steps outside [1, 50].

    As in diffusers, with its ``original_inference_steps=50``.
    """
    parts = min(DISTILLED_STEPS, num_train_timesteps)
    check_steps(steps, parts)
    distilled = num_train_timesteps // parts * np.arange(parts, 0, -1, dtype=np.int64) - 1
    return distilled[parts * np.arange(steps) // steps]
