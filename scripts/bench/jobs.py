"""What a process of the benchmark is told to do."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

TIMESTEP_SPACING = "leading"
"""A spacing of the timesteps that both programs know."""

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""The names of number formats in torch, and those of sdpy's ``--dtype``."""

TINY_VAE_FILE = "diffusion_pytorch_model.safetensors"
"""The weights in `Job.tiny_vae_folder`."""

FORMATS = ("contiguous", "channels_last")
"""Memory formats of diffusers' models."""


@dataclass(frozen=True)
class Job:
    """What one process is to do.

    Attributes:
        task: a key of `scripts.bench.workers.TASKS`.
        size: a key of `scripts.bench.models.sizes`.
        folder: folder of the weights, as diffusers lays them out.
        width, height: of the image, in pixels.
        steps: steps of the whole image.
        guidance_scale: of all images; at 1 the UNet computes a batch of one.
        result: JSON file to write.
        phase: one of `sdpy.benchmark.figures.TITLES`, for tasks that do one.
        sdpy_model: what sdpy reads instead of ``folder``; None for nothing else.
        evaluations: timed evaluations of a phase.
        dtype: number format of all models, by torch's name.
        device: where all models run.
        formats: one of `FORMATS` for diffusers' ``unet`` and ``vae`` each.
        fast_kernels: whether sdpy uses its fast kernels.
        tiny_vae: whether a tiny autoencoder decodes whole images.
        compiled: whether sdpy compiles its models.
        way: how whole images are computed on a GPU: "graphs", "compiled", or "" for neither.
        images: how many are generated together.
        code_folder: where compiled code is kept; None for where each program keeps it.
        options: further arguments of sdpy's command line.
        started: time by the clock of `now` before the process began.
        output: NumPy file or image to write; None for none.
    """

    task: str
    size: str
    folder: str
    width: int
    height: int
    steps: int
    result: str
    guidance_scale: float = 7.5
    phase: str = ""
    sdpy_model: str | None = None
    evaluations: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    formats: dict[str, str] = field(default_factory=dict)
    fast_kernels: bool = True
    tiny_vae: bool = False
    compiled: bool = False
    way: str = ""
    images: int = 1
    code_folder: str | None = None
    options: list[str] = field(default_factory=list)
    started: float = 0.0
    output: str | None = None

    @property
    def model(self) -> str:
        """The model that sdpy reads."""
        return self.folder if self.sdpy_model is None else self.sdpy_model

    @property
    def tiny_vae_folder(self) -> str:
        """Where the tiny autoencoder lies, as diffusers lays it out."""
        return f"{self.folder}/taesd"

    def write(self, path: Path) -> None:
        """Write the job as JSON, for `scripts.bench.workers`."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def now() -> float:
    """Seconds by a clock that is the same in all processes of the machine."""
    if hasattr(time, "CLOCK_MONOTONIC"):
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.time()
