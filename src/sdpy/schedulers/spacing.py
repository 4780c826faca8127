"""Which of the training timesteps a sampler visits.

Source: "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al., 2023), table 2;
names and rounding as in diffusers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sdpy.errors import UsageError

Timesteps = NDArray[np.int64]


def original(steps: int, num_train_timesteps: int) -> Timesteps:
    """Multiples of the whole ratio, from ``steps * ratio`` down to ``ratio``.

    The schedule of the OCaml program. It goes on to timestep 0, where its step returns the input
    unchanged; that evaluation is left out. The first timestep may be ``num_train_timesteps``.
    """
    ratio = num_train_timesteps // steps
    return ratio * np.arange(steps, 0, -1, dtype=np.int64)


def leading(steps: int, num_train_timesteps: int) -> Timesteps:
    """Multiples of the whole ratio plus one, from ``(steps - 1) * ratio + 1`` down to 1."""
    ratio = num_train_timesteps // steps
    return ratio * np.arange(steps - 1, -1, -1, dtype=np.int64) + 1


def linspace(steps: int, num_train_timesteps: int) -> Timesteps:
    """Evenly from the last timestep to the first, both included."""
    spaced = np.linspace(0, num_train_timesteps - 1, steps)
    return spaced.round()[::-1].astype(np.int64)


def trailing(steps: int, num_train_timesteps: int) -> Timesteps:
    """Evenly from the last timestep, which a zero-terminal-SNR model has to start from."""
    # A range, because its roundings decide between neighbours where a step falls half-way; they
    # may also make it one too long.
    spaced = np.arange(num_train_timesteps, 0, -num_train_timesteps / steps)[:steps]
    return spaced.round().astype(np.int64) - 1


SPACINGS: dict[str, Callable[[int, int], Timesteps]] = {
    "original": original,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
}


def space_timesteps(spacing: str, steps: int, num_train_timesteps: int) -> Timesteps:
    """The timesteps (steps,) to visit, falling.

    Raises:
        UsageError: unknown spacing, or a number of steps outside [1, num_train_timesteps].
    """
    if spacing not in SPACINGS:
        raise UsageError(f"unknown timestep spacing '{spacing}': use one of {', '.join(SPACINGS)}")
    check_steps(steps, num_train_timesteps)
    return SPACINGS[spacing](steps, num_train_timesteps)


def check_steps(steps: int, most: int) -> None:
    """Raise a UsageError unless the number of steps is in [1, most]."""
    if not 1 <= steps <= most:
        raise UsageError(f"{steps} steps: use 1 to {most}")
