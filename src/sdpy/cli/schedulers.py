"""``sdpy schedulers``"""

from __future__ import annotations

from sdpy.samplers import SAMPLERS, SIGMAS, Sampler


def schedulers() -> None:
    """List the samplers: a line each, their other names, and the options that they take.

    Case, spaces, hyphens and underscores in names do not matter.
    """
    width = max(map(len, SAMPLERS)) + 2
    for name, sampler in SAMPLERS.items():
        print(f"{name:{width}}{sampler.summary}")
        for line in _details(sampler):
            print(f"{'':{width}}{line}")
    print(f"\nSigmas: {', '.join(SIGMAS)}; a name may end with them, as in 'DPM++ 2M Karras'.")


def _details(sampler: Sampler) -> list[str]:
    options = []
    if sampler.spacings:
        options.append(f"--timestep-spacing {'|'.join(sampler.spacings)}")
    if sampler.takes_sigmas:
        options.append("--sigmas")
    if sampler.eta is not None:
        options.append(f"--eta ({sampler.eta:g})")
    lines = [f"also: {', '.join(sampler.aliases)}"]
    return [*lines, f"options: {', '.join(options)}"] if options else lines
