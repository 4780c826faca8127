"""Where the models run, in which dtype, and random numbers that do not depend on either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from sdpy.checkpoints import DTYPES_BY_NAME
from sdpy.components import COMPONENTS, cpu_words
from sdpy.errors import UsageError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Placement:
    """The device of each component, by its name; the CPU where none is given."""

    devices: Mapping[str, torch.device] = field(default_factory=dict)

    def __getitem__(self, component: str) -> torch.device:
        """Where a component is to run. A ControlNet runs where the UNet does."""
        return self.devices.get(COMPONENTS[component].placed_with or component, CPU)

    @property
    def gpus(self) -> list[torch.device]:
        """The devices of those components that are not on the CPU."""
        return [device for device in self.devices.values() if device.type != "cpu"]

    def with_device(self, component: str, device: torch.device) -> Placement:
        """The same placement with one component elsewhere."""
        return Placement({**self.devices, component: device})


def place(cpu: Iterable[str] = (), device: str | None = None) -> Placement:
    """Put the named components on the CPU and the others on ``device``.

    Args:
        cpu: words of `cpu_words()`, each entry one word or several separated by commas.
        device: ``cuda``, ``cuda:1``, ``mps``, ``cpu``, ...; None for the best that there is.

    Raises:
        UsageError: an unknown word, or a device that this machine does not have.
    """
    on_cpu = {word.strip().lower() for entry in cpu for word in entry.split(",")}
    unknown = sorted(on_cpu.difference(cpu_words()))
    if unknown:
        raise UsageError(f"--cpu does not know '{unknown[0]}': use {', '.join(cpu_words())}")
    elsewhere = best_device() if device is None else find_device(device)
    return Placement(
        {
            name: CPU if "all" in on_cpu or component.cpu_word in on_cpu else elsewhere
            for name, component in COMPONENTS.items()
            if component.placed_with is None
        }
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

    ``auto`` is float16 where a model runs on a GPU, as is usual there, and float32 elsewhere. A CPU
    is refused float16, in which it is slower than in float32, and bfloat16 if it has no
    instructions for it. Where only some models run on a GPU, the others run in float32 instead.

    Raises:
        UsageError: an unknown name, or a dtype that none of the devices computes in.
    """
    if name == "auto":
        return torch.float16 if placement.gpus else torch.float32
    if name not in DTYPES_BY_NAME:
        raise UsageError(f"unknown --dtype '{name}': use one of auto, {', '.join(DTYPES_BY_NAME)}")
    dtype = DTYPES_BY_NAME[name]
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
