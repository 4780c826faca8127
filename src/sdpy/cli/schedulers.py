"""``sdpy schedulers``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sdpy.schedulers import SCHEDULERS, SIGMAS, SchedulerInfo


def schedulers(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object, with a member for each sampler.")
    ] = False,
) -> None:
    """List the samplers: one line each, their other names, and the options that they take.

    A sampler is a method, such as DDIM or DPM++ 2M, that leads from noise to an image. A scheduler,
    in diffusers' words, is what applies a sampler to planned timesteps and sigmas; hence the name
    of --scheduler. What A1111 calls the schedule type is chosen by --sigmas.

    Case, spaces, hyphens and underscores in names do not matter.
    """
    if as_json:
        listed = {name: _facts(info) for name, info in SCHEDULERS.items()}
        print(json.dumps({"schedulers": listed, "sigmas": SIGMAS}, indent=2))
        return
    width = max(map(len, SCHEDULERS)) + 2
    for name, info in SCHEDULERS.items():
        print(f"{name:{width}}{info.summary}")
        for line in _details(info):
            print(f"{'':{width}}{line}")
    print(f"\nSigmas: {', '.join(SIGMAS)}; a name may end with them, as in 'DPM++ 2M Karras'.")


def _facts(info: SchedulerInfo) -> dict[str, object]:
    return {
        "label": info.label,
        "summary": info.summary,
        "aliases": info.aliases,
        "timestep-spacings": info.spacings,
        "takes-sigmas": info.takes_sigmas,
        "eta": info.eta,
    }


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
