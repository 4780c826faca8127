"""``sdpy schedulers``."""

from __future__ import annotations

from sdpy.schedulers import SCHEDULERS, SIGMAS, SchedulerInfo


def schedulers() -> None:
    """List the samplers: one line each, their other names, and the options that they take.

    A sampler is a method, such as DDIM or DPM++ 2M, that leads from noise to an image. A scheduler,
    in diffusers' words, is what applies a sampler to planned timesteps and sigmas; hence the name
    of --scheduler. What A1111 calls the schedule type is chosen by --sigmas.

    Case, spaces, hyphens and underscores in names do not matter.
    """
    width = max(map(len, SCHEDULERS)) + 2
    for name, info in SCHEDULERS.items():
        print(f"{name:{width}}{info.summary}")
        for line in _details(info):
            print(f"{'':{width}}{line}")
    print(f"\nSigmas: {', '.join(SIGMAS)}; a name may end with them, as in 'DPM++ 2M Karras'.")


def _details(info: SchedulerInfo) -> list[str]:
    options = []
    if info.spacings:
        options.append(f"--timestep-spacing {'|'.join(info.spacings)}")
    if info.takes_sigmas:
        options.append("--sigmas")
    if info.eta is not None:
        options.append(f"--eta ({info.eta:g})")
    lines = [f"also: {', '.join(info.aliases)}"]
    return [*lines, f"options: {', '.join(options)}"] if options else lines
