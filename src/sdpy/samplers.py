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
    "ddpm": Sampler(
        "fresh noise at each step, as much as the posterior of training has",
        spacings=("leading", "linspace", "trailing"),
        takes_sigmas=False,
        aliases=("DDPMScheduler",),
    ),
    "pndm": Sampler(
        "DDIM with the last four predictions; one evaluation more than steps",
        spacings=("leading", "linspace", "trailing"),
        takes_sigmas=False,
        begins_with_pure_noise=False,
        aliases=("plms", "PNDMScheduler"),
    ),
    "euler": Sampler(
        "a straight line a step, deterministic",
        aliases=("EulerDiscreteScheduler",),
    ),
    "euler-a": Sampler(
        "Euler with fresh noise at each step (ancestral)",
        aliases=("euler-ancestral", "EulerAncestralDiscreteScheduler"),
    ),
    "heun": Sampler(
        "second order, two evaluations a step",
        begins_with_pure_noise=False,
        aliases=("HeunDiscreteScheduler",),
    ),
    "lms": Sampler(
        "Euler with the last four slopes (linear multistep)",
        aliases=("LMSDiscreteScheduler",),
    ),
    "kdpm2": Sampler(
        "second order by the slope half-way, two evaluations a step",
        begins_with_pure_noise=False,
        aliases=("dpm2", "dpm-2", "KDPM2DiscreteScheduler"),
    ),
    "kdpm2-a": Sampler(
        "KDPM2 with fresh noise at each step (ancestral)",
        begins_with_pure_noise=False,
        aliases=("dpm2-a", "dpm-2-ancestral", "KDPM2AncestralDiscreteScheduler"),
    ),
    "dpm++-2m": Sampler(
        "DPM-Solver++, second order from the last two predictions",
        aliases=("dpm++", "dpmpp-2m", "DPMSolverMultistepScheduler"),
    ),
    "dpm++-3m": Sampler(
        "the same, third order",
        aliases=("dpmpp-3m",),
    ),
    "dpm++-2m-sde": Sampler(
        "DPM-Solver++ 2M with fresh noise at each step",
        aliases=("dpmpp-2m-sde",),
    ),
    "dpm++-3m-sde": Sampler(
        "the same, third order",
        aliases=("dpmpp-3m-sde",),
    ),
    "dpm++-2s": Sampler(
        "DPM-Solver++, second order in strides of two steps (single-step)",
        aliases=("dpmpp-2s", "DPMSolverSinglestepScheduler"),
    ),
    "dpm++-3s": Sampler(
        "the same, third order in strides of three",
        aliases=("dpmpp-3s",),
    ),
    "unipc": Sampler(
        "predictor and corrector in one, second order",
        aliases=("uni-pc", "UniPCMultistepScheduler"),
    ),
    "deis": Sampler(
        "exponential integrator, second order from the last two slopes",
        aliases=("DEISMultistepScheduler",),
    ),
    "lcm": Sampler(
        "for latent consistency models, in few steps",
        spacings=(),
        takes_sigmas=False,
        aliases=("LCMScheduler",),
    ),
    "tcd": Sampler(
        "for trajectory consistency models; --eta sets how much noise is renewed",
        spacings=(),
        takes_sigmas=False,
        eta=0.3,
        aliases=("TCDScheduler",),
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
