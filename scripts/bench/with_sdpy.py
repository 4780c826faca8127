"""The phases done by sdpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.bench.jobs import DTYPES, TIMESTEP_SPACING, TINY_VAE_FILE, Job
from scripts.bench.measuring import as_tensor, measure_phase, torch_dtype, until_first_step
from sdpy.benchmark import inputs
from sdpy.benchmark.timing import Evaluate


def sdpy_phase(job: Job) -> dict[str, Any]:
    """Measure one phase."""
    from sdpy.benchmark.phases import PHASES, BenchmarkTarget
    from sdpy.runtime.allocator import keep_freed_memory
    from sdpy.runtime.devices import place
    from sdpy.runtime.execution import Execution
    from sdpy.zoo.find import find_source

    target = BenchmarkTarget(
        find_source(job.model, Path(job.folder)),
        job.width,
        job.height,
        placement=place(device=job.device),
        execution=Execution(
            dtype=torch_dtype(job), fast_kernels=job.fast_kernels, compile=job.compiled
        ),
        timestep_spacing=TIMESTEP_SPACING,
        guidance_scale=job.guidance_scale,
    )
    if job.fast_kernels:
        keep_freed_memory()  # as the command does
    return measure_phase(job, lambda evaluations: PHASES[job.phase](target, evaluations))


def sdpy_images(job: Job) -> dict[str, Any]:
    """Generate the same images several times, with the models loaded."""
    return measure_phase(job, lambda evaluations: _images(job))


WAYS: dict[str, dict[str, Any]] = {
    "": {},
    "graphs": {"cuda_graphs": True},
    "compiled": {"compile": True},
}
"""Options of a job's way."""


@contextmanager
def _images(job: Job) -> Iterator[Evaluate]:
    import sdpy

    with sdpy.load(
        job.model,
        device=job.device,
        dtype=DTYPES[job.dtype],
        fast_kernels=job.fast_kernels,
        **WAYS[job.way],
    ) as model:

        def evaluate() -> Any:
            found = model.generate(
                inputs.PROMPT,
                negative_prompt=inputs.NEGATIVE_PROMPT,
                width=job.width,
                height=job.height,
                steps=job.steps,
                guidance_scale=job.guidance_scale,
                seed=inputs.SEED,
                timestep_spacing=TIMESTEP_SPACING,
                num_samples=job.images,
                batch_size=job.images,
            )
            return as_tensor(found if job.images > 1 else [found])

        yield evaluate


def sdpy_load(job: Job) -> dict[str, Any]:
    """Run the command until the UNet's first step begins."""
    from sdpy.cli.app import run

    with until_first_step(job) as result:
        run(sdpy_arguments(job, output=f"{job.result}.png"))
    return result


def sdpy_arguments(job: Job, output: str) -> list[str]:
    """Arguments of the command that generates the whole image."""
    tiny_vae = ["--vae-weights", f"{job.tiny_vae_folder}/{TINY_VAE_FILE}"]
    return [
        *("generate", inputs.PROMPT, "--negative-prompt", inputs.NEGATIVE_PROMPT),
        *("--model", job.model, "--seed", str(inputs.SEED), "--steps", str(job.steps)),
        *("--width", str(job.width), "--height", str(job.height), "--device", job.device),
        *("--guidance-scale", str(job.guidance_scale), "--timestep-spacing", TIMESTEP_SPACING),
        *("--dtype", DTYPES[job.dtype]),
        "--fast-kernels" if job.fast_kernels else "--plain-kernels",
        *(tiny_vae if job.tiny_vae else []),
        *(["--compile"] if job.compiled else []),
        *("-o", output, "--quiet", *job.options),
    ]
