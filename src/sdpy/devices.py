"""Where the models run, and the random numbers, which are the same wherever they run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from sdpy.errors import UsageError

CPU = torch.device("cpu")

CPU_WORDS = ("all", "clip", "unet", "vae")
"""What ``--cpu`` understands: the models that are to run on the CPU."""


@dataclass(frozen=True)
class Placement:
    """The device of each model."""

    text_encoder: torch.device = CPU
    unet: torch.device = CPU
    vae: torch.device = CPU


def place(cpu: Iterable[str] = (), device: str | None = None) -> Placement:
    """Put the named models on the CPU and the others on ``device``.

    Args:
        cpu: words of `CPU_WORDS`, each entry one word or several separated by commas.
        device: ``cuda``, ``cuda:1``, ``mps``, ``cpu``, ...; None for the best that there is.

    Raises:
        UsageError: an unknown word, or a device that this machine does not have.
    """
    on_cpu = {word.strip().lower() for entry in cpu for word in entry.split(",")}
    unknown = sorted(on_cpu - set(CPU_WORDS))
    if unknown:
        raise UsageError(f"--cpu does not know '{unknown[0]}': use {', '.join(CPU_WORDS)}")
    if "all" in on_cpu:
        on_cpu = set(CPU_WORDS)
    elsewhere = best_device() if device is None else find_device(device)
    return Placement(
        text_encoder=CPU if "clip" in on_cpu else elsewhere,
        unet=CPU if "unet" in on_cpu else elsewhere,
        vae=CPU if "vae" in on_cpu else elsewhere,
    )


def best_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return CPU


def find_device(name: str) -> torch.device:
    """The device of that name, once a number has been put on it.

    Raises:
        UsageError: no device has this name, or it cannot be used here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(
            f"--device {name} cannot be used here; this machine offers {', '.join(device_names())}"
        ) from error
    if device.type == "meta":
        raise UsageError(f"--device {name} holds no numbers; use {', '.join(device_names())}")
    return device


def device_names() -> list[str]:
    """The devices of this machine, as ``--device`` takes them."""
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def seeded_generator(seed: int) -> torch.Generator:
    """A generator on the CPU, whose numbers do not depend on the device of the models.

    ``randn`` after one seed has given the same fp32 numbers in all versions of torch since 1.13.
    """
    return torch.Generator(device="cpu").manual_seed(seed)
