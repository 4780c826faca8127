"""The samplers, by the names that the command line knows them by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sdpy.errors import UsageError
from sdpy.samplers import SAMPLERS, SIGMAS, find_sampler
from sdpy.schedulers.base import Scheduler
from sdpy.schedulers.ddim import DDIMScheduler
from sdpy.schedulers.ddpm import DDPMScheduler
from sdpy.schedulers.deis import DEISMultistepScheduler
from sdpy.schedulers.dpmsolver_multistep import DPMSolverMultistepScheduler
from sdpy.schedulers.dpmsolver_singlestep import DPMSolverSinglestepScheduler
from sdpy.schedulers.euler import EulerDiscreteScheduler
from sdpy.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from sdpy.schedulers.heun import HeunDiscreteScheduler
from sdpy.schedulers.kdpm2 import KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler
from sdpy.schedulers.lcm import LCMScheduler
from sdpy.schedulers.lms import LMSDiscreteScheduler
from sdpy.schedulers.noise import NoiseConfig, make_alphas_cumprod
from sdpy.schedulers.pndm import PNDMScheduler
from sdpy.schedulers.sigmas import SCHEDULES
from sdpy.schedulers.tcd import TCDScheduler
from sdpy.schedulers.unipc import UniPCMultistepScheduler

SCHEDULERS: dict[str, Callable[..., Scheduler]] = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "lms": LMSDiscreteScheduler,
    "kdpm2": KDPM2DiscreteScheduler,
    "kdpm2-a": KDPM2AncestralDiscreteScheduler,
    "dpm++-2m": partial(DPMSolverMultistepScheduler, order=2),
    "dpm++-3m": partial(DPMSolverMultistepScheduler, order=3),
    "dpm++-2m-sde": partial(DPMSolverMultistepScheduler, order=2, stochastic=True),
    "dpm++-3m-sde": partial(DPMSolverMultistepScheduler, order=3, stochastic=True),
    "dpm++-2s": partial(DPMSolverSinglestepScheduler, order=2),
    "dpm++-3s": partial(DPMSolverSinglestepScheduler, order=3),
    "unipc": UniPCMultistepScheduler,
    "deis": DEISMultistepScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
}
"""How to make each; `sdpy.samplers.SAMPLERS` says what they take."""


def make_scheduler(
    name: str,
    noise: NoiseConfig,
    *,
    timestep_spacing: str | None = None,
    preferred_spacing: str | None = None,
    sigmas: str | None = None,
    eta: float | None = None,
) -> Scheduler:
    """The sampler called ``name``, with what is None left to it.

    Args:
        name: see `find_sampler`.
        noise: the forward process and what the network predicts.
        timestep_spacing: which timesteps to visit.
        preferred_spacing: the model's, taken if the sampler can and no other is asked for.
        sigmas: one of `SIGMAS`, or ``default`` for the levels of the timesteps.
        eta: amount of noise.

    Raises:
        UsageError: unknown name or value, or an option that does not apply to the sampler.
    """
    found, named_sigmas = find_sampler(name)
    sigmas = _choose_sigmas(found, sigmas, named_sigmas)
    spacing = _choose_spacing(found, noise, timestep_spacing, preferred_spacing, sigmas)
    options: dict[str, Any] = {}
    if spacing is not None:
        options["timestep_spacing"] = spacing
    if SAMPLERS[found].takes_sigmas:
        options["sigmas"] = sigmas
    default_eta = SAMPLERS[found].eta
    if default_eta is not None:
        options["eta"] = default_eta if eta is None else eta
    elif eta is not None:
        takers = [name for name, sampler in SAMPLERS.items() if sampler.eta is not None]
        raise UsageError(f"eta does not apply to {found}: it is for {' and '.join(takers)}")
    return SCHEDULERS[found](noise, **options)


def _choose_sigmas(name: str, sigmas: str | None, named: str | None) -> str | None:
    if sigmas is None:
        return named
    if sigmas != "default" and sigmas not in SIGMAS:
        raise UsageError(f"unknown sigmas '{sigmas}': use default or one of {', '.join(SIGMAS)}")
    if named is not None and sigmas != named:
        raise UsageError(f"{name} cannot have the sigmas '{named}' and '{sigmas}': name one")
    if sigmas == "default":
        return None
    if not SAMPLERS[name].takes_sigmas:
        raise UsageError(f"{name} has sigmas of its own: leave out '{sigmas}'")
    return sigmas


def _choose_spacing(
    name: str, noise: NoiseConfig, asked: str | None, preferred: str | None, sigmas: str | None
) -> str | None:
    sampler = SAMPLERS[name]
    if asked is not None and asked not in sampler.spacings:
        if not sampler.spacings:
            raise UsageError(f"{name} has timesteps of its own: leave out '{asked}'")
        takes = ", ".join(sampler.spacings)
        raise UsageError(f"{name} cannot space timesteps '{asked}': use one of {takes}")
    if asked is not None and sigmas in SCHEDULES:
        raise UsageError(f"the sigmas '{sigmas}' come with timesteps: leave out '{asked}'")
    if noise.rescale_betas_zero_snr and not sampler.begins_with_pure_noise:
        if asked not in (None, "leading") or sigmas in SCHEDULES:
            raise UsageError(
                f"{name} cannot begin with pure noise, as this zero-terminal-SNR model does with "
                f"'{sigmas if asked is None else asked}': use the timestep spacing leading"
            )
        return "leading"
    if asked is not None or not sampler.spacings:
        return asked
    return preferred if preferred in sampler.spacings else sampler.spacings[0]


__all__ = [
    "SCHEDULERS",
    "DDIMScheduler",
    "NoiseConfig",
    "Scheduler",
    "make_alphas_cumprod",
    "make_scheduler",
]
