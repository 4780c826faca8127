"""Where the models run, in what numbers, and the random ones, the same wherever they run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from sdpy.errors import UsageError

CPU = torch.device("cpu")

CPU_WORDS = ("all", "clip", "unet", "vae")
"""What ``--cpu`` understands: the models that are to run on the CPU."""


DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""What ``--dtype`` understands beside ``auto``."""


@dataclass(frozen=True)
class Placement:
    """The device of each model."""

    text_encoder: torch.device = CPU
    unet: torch.device = CPU
    vae: torch.device = CPU

    @property
    def gpus(self) -> list[torch.device]:
        """The devices of those models that are not on the CPU."""
        return [d for d in (self.text_encoder, self.unet, self.vae) if d.type != "cpu"]


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


def find_dtype(name: str, placement: Placement) -> torch.dtype:
    """The dtype that ``--dtype`` names, for models that are placed so.

    ``auto`` is float16 where a GPU computes, as is usual there, and float32 elsewhere. A CPU is
    refused float16, which it computes more slowly than float32, and bfloat16 without instructions
    for it. Where only some models run on a GPU, the others compute in float32 instead.

    Raises:
        UsageError: an unknown name, or a dtype that none of the devices computes in.
    """
    if name == "auto":
        return torch.float16 if placement.gpus else torch.float32
    if name not in DTYPES:
        raise UsageError(f"unknown --dtype '{name}': use one of auto, {', '.join(DTYPES)}")
    dtype = DTYPES[name]
    if dtype == torch.float16 and not placement.gpus:
        instead = "fp32 or bf16" if cpu_has_bfloat16() else "fp32"
        raise UsageError(f"--dtype fp16 is for GPUs, on this CPU it is slower: use {instead}")
    if dtype == torch.bfloat16 and not placement.gpus and not cpu_has_bfloat16():
        raise UsageError(
            "--dtype bf16: this processor has no instructions for it (AVX-512 BF16, AMX or Arm's "
            "BF16); use fp32"
        )
    if dtype == torch.bfloat16 and any(
        device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
        for device in placement.gpus
    ):
        raise UsageError("--dtype bf16: this GPU does not compute in it; use fp16 or fp32")
    return dtype


@cache
def cpu_has_bfloat16(root: Path = Path("/")) -> bool:
    """Whether the processor has instructions for bfloat16, as far as Linux tells.

    Args:
        root: folder in which ``proc`` is.
    """
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            features = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features.split())


def seeded_generator(seed: int) -> torch.Generator:
    """A generator on the CPU, whose numbers do not depend on the device of the models.

    ``randn`` after one seed has given the same fp32 numbers in all versions of torch since 1.13.
    """
    return torch.Generator(device="cpu").manual_seed(seed)
