"""The samplers by name: what each is called, what it is, and which options it takes.

A table for people and the command line; `sdpy.schedulers` does the work.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdpy.errors import UsageError

SPACINGS = ("leading", "linspace", "trailing")
"""Names of timestep spacings that most samplers take; DDIM also takes ``original``."""

SIGMAS = ("karras", "exponential", "beta", "sgm-uniform", "simple", "ays")
"""Names of other noise levels than those of the spaced timesteps."""


@dataclass(frozen=True)
class Sampler:
    """What a sampler is, and which options it takes.

    Attributes:
        summary: a line for people.
        spacings: timestep spacings that it takes, its own first; none: it has one of its own.
        takes_sigmas: whether `SIGMAS` apply to it.
        eta: amount of noise unless the user names another; None: the option does not apply.
        begins_with_pure_noise: whether it can begin where nothing is left of the picture, as the
            last timestep of a zero-terminal-SNR model is.
        aliases: other names, diffusers' class and A1111's label among them.
    """

    summary: str
    spacings: tuple[str, ...] = ("linspace", "leading", "trailing")
    takes_sigmas: bool = True
    eta: float | None = None
    begins_with_pure_noise: bool = True
    aliases: tuple[str, ...] = ()


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(
        "deterministic; --eta adds noise",
        spacings=("leading", "linspace", "trailing", "original"),
        takes_sigmas=False,
        eta=0.0,
        aliases=("DDIMScheduler",),
    ),
    "euler": Sampler(
        "a straight line a step, deterministic",
        aliases=("EulerDiscreteScheduler",),
    ),
    "euler-a": Sampler(
        "Euler with fresh noise at each step (ancestral); never settles",
        aliases=("euler-ancestral", "EulerAncestralDiscreteScheduler"),
    ),
    "heun": Sampler(
        "second order, two evaluations a step",
        begins_with_pure_noise=False,
        aliases=("HeunDiscreteScheduler",),
    ),
    "dpm++-2m": Sampler(
        "DPM-Solver++, second order from the last two steps; good from 15 steps on",
        aliases=("dpmpp-2m", "DPMSolverMultistepScheduler"),
    ),
}


def find_sampler(name: str) -> tuple[str, str | None]:
    """The sampler that ``name`` means, and the sigmas if it names some, as "DPM++ 2M Karras" does.

    Case, and whether words are joined by a space, ``-`` or ``_``, do not matter.

    Returns:
        A key of `SAMPLERS`, and one of `SIGMAS` or None.

    Raises:
        UsageError: there is no such sampler.
    """
    wanted = _normal(name)
    if wanted in _NAMES:
        return _NAMES[wanted], None
    for sigmas in SIGMAS:
        sampler = _NAMES.get(wanted.removesuffix(f"-{sigmas}"))
        if sampler is not None and SAMPLERS[sampler].takes_sigmas:
            return sampler, sigmas
    raise UsageError(f"unknown scheduler '{name}': use one of {', '.join(SAMPLERS)}")


def _normal(name: str) -> str:
    return "-".join(name.lower().replace("-", " ").replace("_", " ").split())


_NAMES = {
    _normal(alias): name for name, sampler in SAMPLERS.items() for alias in (name, *sampler.aliases)
}
