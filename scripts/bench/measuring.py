"""What the measurements of both programs share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scripts.bench.jobs import Job, now
from scripts.bench.models import sizes
from sdpy.benchmark.timing import Phase, measure


def matrix_product(job: Job) -> dict[str, Any]:
    """The rate at which this machine multiplies matrices."""
    import torch

    from sdpy.benchmark.arithmetic import MATRIX_SIZE, matrix_product_rate

    size = min(MATRIX_SIZE, 4 * sizes()[job.size].sample_size)  # small beside tiny models
    return {"rate": matrix_product_rate(getattr(torch, job.dtype), job.device, size=size)}


def measure_phase(job: Job, phase: Callable[[int], Phase]) -> dict[str, Any]:
    """Measure a phase, which is told how many evaluations there will be, and a matrix product."""
    import numpy as np

    measurement = measure(phase(1 + job.evaluations), job.evaluations)
    if job.output is not None:
        np.save(job.output, measurement.output.float().numpy())
    return {
        "load": measurement.load,
        "first": measurement.first,
        "times": measurement.times,
        "peak": measurement.peak.bytes,
        "peak_method": measurement.peak.method,
        **matrix_product(job),
    }


class FirstStep(BaseException):
    """The UNet has begun to compute. It is no `Exception`, which the command line would report."""


@contextmanager
def until_first_step(job: Job) -> Iterator[dict[str, Any]]:
    """End the block when a UNet computes for the first time, and measure the seconds until then.

    That is when the first layer inside it is called: what is prepared when the UNet itself is
    called for the first time belongs to loading.
    """
    from torch.nn.modules.module import register_module_forward_pre_hook

    result: dict[str, Any] = {}
    unets: list[Any] = []

    def stop(module: Any, args: Any) -> None:
        if type(module).__name__ == "UNet2DConditionModel":  # in both programs
            unets.append(module)
        elif unets:
            result["times"] = [now() - job.started]
            raise FirstStep

    hook = register_module_forward_pre_hook(stop)
    try:
        yield result
    except FirstStep:
        return
    finally:
        hook.remove()
    raise RuntimeError("no step of the UNet has begun")


def as_tensor(images: Any) -> Any:
    """PIL images as numbers of 0 to 255, (B, H, W, 3)."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def torch_dtype(job: Job) -> Any:
    """The number format of all models."""
    import torch

    return getattr(torch, job.dtype)


def latent_shape(job: Job) -> tuple[int, int, int, int]:
    """Shape (1, C, h, w) of the latents."""
    vae = sizes()[job.size].vae
    factor = vae.downsample_factor
    return 1, vae.latent_channels, job.height // factor, job.width // factor
