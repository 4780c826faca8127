"""The samplers, by the names that the command line knows them by."""

from __future__ import annotations

from collections.abc import Callable

from sdpy.errors import UsageError
from sdpy.schedulers.base import Scheduler
from sdpy.schedulers.ddim import DDIMScheduler
from sdpy.schedulers.noise import NoiseConfig, make_alphas_cumprod

SCHEDULERS: dict[str, Callable[..., Scheduler]] = {
    "ddim": DDIMScheduler,
}


def make_scheduler(
    name: str, noise: NoiseConfig, *, timestep_spacing: str, eta: float = 0.0
) -> Scheduler:
    """The sampler called ``name``.

    Raises:
        UsageError: unknown name.
    """
    if name not in SCHEDULERS:
        raise UsageError(f"unknown scheduler '{name}': use one of {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name](noise, timestep_spacing=timestep_spacing, eta=eta)


__all__ = [
    "SCHEDULERS",
    "DDIMScheduler",
    "NoiseConfig",
    "Scheduler",
    "make_alphas_cumprod",
    "make_scheduler",
]
