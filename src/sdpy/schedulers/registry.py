"""The samplers by name: what each is called, which class does its steps, which options it takes.

Two words. A *sampler* is a method that solves the equation of the denoising process, such as DDIM,
Euler's method or DPM-Solver++. A *scheduler*, as diffusers uses the word, is the object that
applies a sampler: it plans the timesteps and sigmas of a denoising loop and does the sampler's
steps. Hence option ``--scheduler`` and classes such as ``DDIMScheduler``. What A1111 calls
"schedule type" (Karras, exponential, ...) is the choice of sigmas, option ``--sigmas``.

A new sampler is one file beside this one and one row in `SCHEDULERS`. This module imports neither
torch nor numpy; the module of a class is imported when a scheduler is made.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from sdpy.errors import UsageError
from sdpy.schedulers.base import Scheduler
from sdpy.schedulers.config import NoiseConfig, Sigmas

SIGMA_RAMPS = ("karras", "exponential", "beta")
"""Sigmas between the ends that the timestep spacing has; see `sdpy.schedulers.sigmas.RAMPS`."""

SIGMA_SCHEDULES = ("sgm-uniform", "simple", "ays")
"""Sigmas with timesteps of their own; see `sdpy.schedulers.sigmas.SCHEDULES`."""

_PURE_NOISE = 1000.0
"""Sigmas from which nothing is left of the image."""

SIGMAS = (*SIGMA_RAMPS, *SIGMA_SCHEDULES)
"""Names of sigmas that may replace those of the spaced timesteps."""

SIGMA_LABELS = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "sgm-uniform": "SGM Uniform",
    "simple": "Simple",
    "ays": "Align Your Steps",
}
"""What A1111's web UI calls them: its schedule types."""


@dataclass(frozen=True)
class SchedulerInfo:
    """A row of the registry.

    Attributes:
        target: ``module:class``; the class is called with a `NoiseConfig` and keyword arguments,
            and its instances are `Scheduler`.
        summary: one line that tells people what the sampler does.
        label: what A1111's web UI, or another that has it, calls the sampler; for metadata.
        arguments: keyword arguments that make the class this sampler, such as its order.
        spacings: timestep spacings that the sampler takes, its own first; empty if it has its own
            timesteps and takes none.
        takes_sigmas: whether `SIGMAS` apply to it.
        eta: amount of noise unless the user asks for another; None if the option does not apply.
        begins_with_pure_noise: whether the sampler can begin where nothing is left of the image,
            as is the case at the last timestep of a zero-terminal-SNR model.
        aliases: other names, the class name in diffusers among them; the label is one, too.
    """

    target: str
    summary: str
    label: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    spacings: tuple[str, ...] = ("linspace", "leading", "trailing")
    takes_sigmas: bool = True
    eta: float | None = None
    begins_with_pure_noise: bool = True
    aliases: tuple[str, ...] = ()

    def load_class(self) -> Callable[..., Scheduler]:
        """Import the class that does the steps."""
        module, _, name = self.target.partition(":")
        loaded: Callable[..., Scheduler] = getattr(import_module(module), name)
        return loaded


SCHEDULERS: dict[str, SchedulerInfo] = {
    "ddim": SchedulerInfo(
        "sdpy.schedulers.ddim:DDIMScheduler",
        "deterministic; --eta adds noise",
        label="DDIM",
        spacings=("leading", "linspace", "trailing", "original"),
        takes_sigmas=False,
        eta=0.0,
        aliases=("DDIMScheduler",),
    ),
    "ddpm": SchedulerInfo(
        "sdpy.schedulers.ddpm:DDPMScheduler",
        "fresh noise at each step, as much as the posterior of training has",
        label="DDPM",
        spacings=("leading", "linspace", "trailing"),
        takes_sigmas=False,
        aliases=("DDPMScheduler",),
    ),
    "pndm": SchedulerInfo(
        "sdpy.schedulers.pndm:PNDMScheduler",
        "DDIM with the last four predictions; one evaluation more than steps",
        label="PLMS",
        spacings=("leading", "linspace", "trailing"),
        takes_sigmas=False,
        begins_with_pure_noise=False,
        aliases=("plms", "PNDMScheduler"),
    ),
    "euler": SchedulerInfo(
        "sdpy.schedulers.euler:EulerDiscreteScheduler",
        "one straight line per step, deterministic",
        label="Euler",
        aliases=("EulerDiscreteScheduler",),
    ),
    "euler-a": SchedulerInfo(
        "sdpy.schedulers.euler_ancestral:EulerAncestralDiscreteScheduler",
        "Euler with fresh noise at each step (ancestral)",
        label="Euler a",
        aliases=("euler-ancestral", "EulerAncestralDiscreteScheduler"),
    ),
    "heun": SchedulerInfo(
        "sdpy.schedulers.heun:HeunDiscreteScheduler",
        "second order, two evaluations per step",
        label="Heun",
        begins_with_pure_noise=False,
        aliases=("HeunDiscreteScheduler",),
    ),
    "lms": SchedulerInfo(
        "sdpy.schedulers.lms:LMSDiscreteScheduler",
        "Euler with the last four derivatives (linear multistep)",
        label="LMS",
        aliases=("LMSDiscreteScheduler",),
    ),
    "kdpm2": SchedulerInfo(
        "sdpy.schedulers.kdpm2:KDPM2DiscreteScheduler",
        "second order with the derivative half-way, two evaluations per step",
        label="DPM2",
        begins_with_pure_noise=False,
        aliases=("dpm2", "dpm-2", "KDPM2DiscreteScheduler"),
    ),
    "kdpm2-a": SchedulerInfo(
        "sdpy.schedulers.kdpm2:KDPM2AncestralDiscreteScheduler",
        "KDPM2 with fresh noise at each step (ancestral)",
        label="DPM2 a",
        begins_with_pure_noise=False,
        aliases=("dpm2-a", "dpm-2-ancestral", "KDPM2AncestralDiscreteScheduler"),
    ),
    "dpm++-2m": SchedulerInfo(
        "sdpy.schedulers.dpmsolver_multistep:DPMSolverMultistepScheduler",
        "DPM-Solver++, second order from the last two predictions",
        label="DPM++ 2M",
        arguments={"order": 2},
        aliases=("dpm++", "dpmpp-2m", "DPMSolverMultistepScheduler"),
    ),
    "dpm++-3m": SchedulerInfo(
        "sdpy.schedulers.dpmsolver_multistep:DPMSolverMultistepScheduler",
        "DPM-Solver++, third order from the last three predictions",
        label="DPM++ 3M",
        arguments={"order": 3},
        aliases=("dpmpp-3m",),
    ),
    "dpm++-2m-sde": SchedulerInfo(
        "sdpy.schedulers.dpmsolver_multistep:DPMSolverMultistepScheduler",
        "DPM-Solver++ 2M with fresh noise at each step",
        label="DPM++ 2M SDE",
        arguments={"order": 2, "stochastic": True},
        aliases=("dpmpp-2m-sde",),
    ),
    "dpm++-3m-sde": SchedulerInfo(
        "sdpy.schedulers.dpmsolver_multistep:DPMSolverMultistepScheduler",
        "DPM-Solver++ 3M with fresh noise at each step",
        label="DPM++ 3M SDE",
        arguments={"order": 3, "stochastic": True},
        aliases=("dpmpp-3m-sde",),
    ),
    "dpm++-sde": SchedulerInfo(
        "sdpy.schedulers.dpmsolver_sde:DPMSolverSDEScheduler",
        "DPM-Solver++ with fresh noise, two evaluations per step",
        label="DPM++ SDE",
        begins_with_pure_noise=False,
        aliases=("dpmpp-sde", "DPMSolverSDEScheduler"),
    ),
    "dpm++-2s-a": SchedulerInfo(
        "sdpy.schedulers.dpmsolver_2s_ancestral:DPMSolver2SAncestralScheduler",
        "DPM-Solver++ 2S with fresh noise at each step (ancestral), two evaluations per step",
        label="DPM++ 2S a",
        begins_with_pure_noise=False,
        aliases=("dpmpp-2s-ancestral", "dpm++-2s-ancestral", "dpmpp-2s-a"),
    ),
    "dpm++-2s": SchedulerInfo(
        "sdpy.schedulers.dpmsolver_singlestep:DPMSolverSinglestepScheduler",
        "DPM-Solver++, second order over each two steps (single-step)",
        label="DPM++ 2S",
        arguments={"order": 2},
        aliases=("dpmpp-2s", "DPMSolverSinglestepScheduler"),
    ),
    "dpm++-3s": SchedulerInfo(
        "sdpy.schedulers.dpmsolver_singlestep:DPMSolverSinglestepScheduler",
        "DPM-Solver++, third order over each three steps (single-step)",
        label="DPM++ 3S",
        arguments={"order": 3},
        aliases=("dpmpp-3s",),
    ),
    "unipc": SchedulerInfo(
        "sdpy.schedulers.unipc:UniPCMultistepScheduler",
        "predictor and corrector in one, second order",
        label="UniPC",
        aliases=("uni-pc", "UniPCMultistepScheduler"),
    ),
    "deis": SchedulerInfo(
        "sdpy.schedulers.deis:DEISMultistepScheduler",
        "exponential integrator, second order from the last two derivatives",
        label="DEIS",
        aliases=("DEISMultistepScheduler",),
    ),
    "lcm": SchedulerInfo(
        "sdpy.schedulers.lcm:LCMScheduler",
        "for latent consistency models, in few steps",
        label="LCM",
        spacings=(),
        takes_sigmas=False,
        aliases=("LCMScheduler",),
    ),
    "tcd": SchedulerInfo(
        "sdpy.schedulers.tcd:TCDScheduler",
        "for trajectory consistency models; --eta sets how much noise is renewed",
        label="TCD",
        spacings=(),
        takes_sigmas=False,
        eta=0.3,
        aliases=("TCDScheduler",),
    ),
}


def find_scheduler(name: str) -> tuple[str, str | None]:
    """The sampler that ``name`` means, and the sigmas if it ends in some: "DPM++ 2M Karras" does.

    Case does not matter, nor whether words are joined by a space, ``-`` or ``_``.

    Returns:
        A key of `SCHEDULERS`, and one of `SIGMAS` or None.

    Raises:
        UsageError: there is no such sampler.
    """
    wanted, known = _normal(name), dict(_names())
    if wanted in known:
        return known[wanted], None
    for sigmas in SIGMAS:
        found = known.get(wanted.removesuffix(f"-{sigmas}"))
        if found is not None and SCHEDULERS[found].takes_sigmas:
            return found, sigmas
    near = difflib.get_close_matches(wanted, known, n=1)
    meant = f"did you mean {known[near[0]]}? " if near else ""
    raise UsageError(f"unknown scheduler '{name}': {meant}use one of {', '.join(SCHEDULERS)}")


def make_scheduler(
    name: str,
    noise: NoiseConfig,
    *,
    timestep_spacing: str | None = None,
    preferred_spacing: str | None = None,
    sigmas: Sigmas | None = None,
    eta: float | None = None,
) -> Scheduler:
    """A scheduler with the sampler that ``name`` means. Options of None have its own defaults.

    Args:
        name: see `find_scheduler`.
        noise: the forward process and what the network predicts.
        timestep_spacing: which timesteps to visit.
        preferred_spacing: the model's spacing, which is taken if the sampler takes it and no other
            is asked for.
        sigmas: one of `SIGMAS`, ``default`` for the sigmas of the spaced timesteps, or the sigmas
            themselves, falling; each is that of a step, which goes to the next, or from the last
            to 0.
        eta: amount of noise.

    Raises:
        UsageError: unknown name or value, or an option that does not apply to the sampler.
    """
    chosen = choose_schedule(
        name,
        noise,
        timestep_spacing=timestep_spacing,
        preferred_spacing=preferred_spacing,
        sigmas=sigmas,
        eta=eta,
    )
    info = SCHEDULERS[chosen.name]
    arguments: dict[str, Any] = {**info.arguments}
    if chosen.timestep_spacing is not None:
        arguments["timestep_spacing"] = chosen.timestep_spacing
    if info.takes_sigmas:
        arguments["sigmas"] = chosen.sigmas
    if info.eta is not None:
        arguments["eta"] = chosen.eta
    return info.load_class()(noise, **arguments)


@dataclass(frozen=True)
class ChosenSchedule:
    """A sampler and its options, with nothing left open.

    Attributes:
        name: a key of `SCHEDULERS`.
        timestep_spacing: None where it has timesteps of its own.
        sigmas: None for those of the timesteps.
        eta: None where there is no such option.
    """

    name: str
    timestep_spacing: str | None
    sigmas: Sigmas | None
    eta: float | None


def choose_schedule(
    name: str,
    noise: NoiseConfig,
    *,
    timestep_spacing: str | None = None,
    preferred_spacing: str | None = None,
    sigmas: Sigmas | None = None,
    eta: float | None = None,
) -> ChosenSchedule:
    """What `make_scheduler` makes of the same arguments.

    Raises:
        UsageError: unknown name or value, or an option that does not apply to the sampler.
    """
    found, named_sigmas = find_scheduler(name)
    info = SCHEDULERS[found]
    sigmas = _choose_sigmas(found, sigmas, named_sigmas)
    spacing = _choose_spacing(found, noise, timestep_spacing, preferred_spacing, sigmas)
    if info.eta is None and eta is not None:
        takers = [name for name, info in SCHEDULERS.items() if info.eta is not None]
        raise UsageError(f"eta does not apply to {found}: it is for {' and '.join(takers)}")
    return ChosenSchedule(found, spacing, sigmas, info.eta if eta is None else eta)


def _choose_sigmas(name: str, sigmas: Sigmas | None, named: str | None) -> Sigmas | None:
    if sigmas is None:
        return named
    if not isinstance(sigmas, str):
        if named is not None or not SCHEDULERS[name].takes_sigmas:
            own = f"'{named}'" if named is not None else "sigmas of its own"
            raise UsageError(f"{name} has {own}: leave out the list of sigmas")
        return sigmas
    if sigmas != "default" and sigmas not in SIGMAS:
        raise UsageError(f"unknown sigmas '{sigmas}': use default or one of {', '.join(SIGMAS)}")
    if named is not None and sigmas != named:
        raise UsageError(f"{name} cannot have the sigmas '{named}' and '{sigmas}': name one")
    if sigmas == "default":
        return None
    if not SCHEDULERS[name].takes_sigmas:
        raise UsageError(f"{name} has sigmas of its own: leave out '{sigmas}'")
    return sigmas


def _choose_spacing(
    name: str, noise: NoiseConfig, asked: str | None, preferred: str | None, sigmas: Sigmas | None
) -> str | None:
    info = SCHEDULERS[name]
    brings_timesteps = sigmas in SIGMA_SCHEDULES or isinstance(sigmas, tuple)
    if asked is not None and asked not in info.spacings:
        if not info.spacings:
            raise UsageError(f"{name} has timesteps of its own: leave out '{asked}'")
        takes = ", ".join(info.spacings)
        raise UsageError(f"{name} cannot space timesteps '{asked}': use one of {takes}")
    if asked is not None and brings_timesteps:
        told = f"'{sigmas}' come" if isinstance(sigmas, str) else "of the list come"
        raise UsageError(f"the sigmas {told} with timesteps: leave out '{asked}'")
    if noise.rescale_betas_zero_snr and not info.begins_with_pure_noise:
        if isinstance(sigmas, tuple) and sigmas[0] < _PURE_NOISE:
            return "leading"
        if asked not in (None, "leading") or brings_timesteps:
            chosen = sigmas if asked is None and isinstance(sigmas, str) else asked
            told = "these sigmas" if chosen is None else f"'{chosen}'"
            raise UsageError(
                f"{name} cannot begin with pure noise, as this zero-terminal-SNR model does with "
                f"{told}: use the timestep spacing leading"
            )
        return "leading"
    if asked is not None or not info.spacings:
        return asked
    return preferred if preferred in info.spacings else info.spacings[0]


def _names() -> Iterator[tuple[str, str]]:
    for key, info in SCHEDULERS.items():
        for name in (key, *info.aliases, info.label):
            yield _normal(name), key


def _normal(name: str) -> str:
    words = name.lower().replace("-", " ").replace("_", " ").split()
    if words[:1] == ["k"]:  # as k-diffusion's samplers are called in some programs
        words = words[1:]
    return "-".join(words)
