"""No sampler waits for the device, and what counts the waiting can tell."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sdpy.schedulers import SCHEDULERS, NoiseConfig, Scheduler, make_scheduler
from sdpy.schedulers.dpmsolver_multistep import DPMSolverMultistepScheduler
from sdpy.schedulers.dpmsolver_singlestep import DPMSolverSinglestepScheduler
from sdpy.schedulers.thresholding import DynamicThresholding
from sdpy.schedulers.unipc import UniPCMultistepScheduler
from support.waiting import counting_waits

SHAPE = (3, 4, 6, 5)

WITH_THRESHOLDING = (
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    UniPCMultistepScheduler,
)


def run(scheduler: Scheduler, device: str | torch.device) -> Tensor:
    """A denoising loop with numbers that stand for predictions; latents on ``device``."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(SHAPE[0])]
    latents = torch.ones(SHAPE, device=device)
    noise = torch.full(SHAPE, 0.5, device=device)
    latents = scheduler.add_noise(latents, noise, scheduler.timesteps[0])
    for timestep in scheduler.timesteps:
        prediction = scheduler.scale_model_input(latents, timestep) / 2
        latents = scheduler.step(prediction, timestep, latents, generators)
    return latents


def schedulers() -> dict[str, Scheduler]:
    """All samplers, with as much noise as they can add, and with thresholding."""
    made = {}
    for name, info in SCHEDULERS.items():
        made[name] = make_scheduler(name, NoiseConfig(), eta=None if info.eta is None else 1.0)
    for cls in WITH_THRESHOLDING:
        noise = NoiseConfig(prediction_type="sample")
        made[f"thresholding {cls.__name__}"] = cls(noise, thresholding=DynamicThresholding())
    for scheduler in made.values():
        scheduler.set_timesteps(20)
    return made


INFERENCE = pytest.mark.parametrize("inference", [False, True])
EVERY_SCHEDULER = pytest.mark.parametrize("name", schedulers())


@INFERENCE
@EVERY_SCHEDULER
def test_no_sampler_waits(name: str, inference: bool) -> None:
    scheduler = schedulers()[name]
    with torch.inference_mode(inference), counting_waits() as waits:
        latents = run(scheduler, "cpu")
    assert waits == []
    assert latents.isfinite().all()


@EVERY_SCHEDULER
def test_no_sampler_reads_a_value(name: str) -> None:
    """Tensors on the meta device have none, and reading one is an error."""
    assert run(schedulers()[name], "meta").is_meta


@pytest.mark.gpu
@EVERY_SCHEDULER
def test_no_sampler_waits_for_a_gpu(name: str) -> None:
    """And the latents are those of the CPU."""
    scheduler = schedulers()[name]
    expected = run(scheduler, "cpu")
    scheduler.set_timesteps(20)
    run(scheduler, "cuda")  # what CUDA sets up at first use may wait
    scheduler.set_timesteps(20)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        latents = run(scheduler, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(latents.cpu(), expected, rtol=1e-5, atol=1e-5)


ONE = torch.ones(1)
SEVERAL = torch.arange(6.0)

WAITING: dict[str, Callable[[], object]] = {
    "item": lambda: ONE.item(),
    "int": lambda: int(ONE),
    "float": lambda: float(ONE),
    "bool": lambda: bool(ONE > 0),
    "format": lambda: f"{ONE[0]:.2f}",
    "branch": lambda: 1 if SEVERAL.isfinite().all() else 0,
    "member": lambda: 3.0 in SEVERAL,
    "list index": lambda: [1, 2, 3][ONE.long()],
    "tolist": lambda: SEVERAL.tolist(),
    "numpy": lambda: SEVERAL.numpy(),
    "array": lambda: np.asarray(SEVERAL),
    "cpu": lambda: SEVERAL.cpu(),
    "to cpu": lambda: SEVERAL.to("cpu"),
    "to a CPU device": lambda: SEVERAL.to(torch.device("cpu"), torch.float64),
    "to device=": lambda: SEVERAL.to(dtype=torch.float16, device="cpu"),
    "equal": lambda: torch.equal(ONE, ONE),
    "allclose": lambda: torch.allclose(ONE, ONE),
    "nonzero": lambda: SEVERAL.nonzero(),
    "mask": lambda: SEVERAL[SEVERAL > 2],
    "masked_select": lambda: SEVERAL.masked_select(SEVERAL > 2),
    "unique": lambda: SEVERAL.unique(),
}

NOT_WAITING: dict[str, Callable[[], object]] = {
    "arithmetic": lambda: (2.0 * SEVERAL + 1).clamp(0, 3).sum(),
    "slice": lambda: SEVERAL[1:3],
    "index": lambda: SEVERAL[torch.tensor([1, 2])],
    "iterate": lambda: list(SEVERAL),
    "where": lambda: torch.where(SEVERAL > 2, SEVERAL, 0.0),
    "dtype": lambda: SEVERAL.to(torch.float16),
    "not blocking": lambda: SEVERAL.to("cpu", non_blocking=True),
    "random": lambda: torch.empty(20).normal_(generator=torch.Generator().manual_seed(0)),
    "quantile": lambda: SEVERAL.quantile(0.5),
}


@INFERENCE
@pytest.mark.parametrize("name", WAITING)
def test_waiting_is_counted(name: str, inference: bool) -> None:
    with torch.inference_mode(inference), counting_waits() as waits:
        WAITING[name]()
        counted = len(waits)
        WAITING[name]()
    assert len(waits) == 2 * counted > 0
    WAITING[name]()
    assert len(waits) == 2 * counted


@INFERENCE
@pytest.mark.parametrize("name", NOT_WAITING)
def test_what_does_not_wait_is_not_counted(name: str, inference: bool) -> None:
    with torch.inference_mode(inference), counting_waits() as waits:
        NOT_WAITING[name]()
    assert waits == []


@pytest.mark.parametrize("read", ["item", "tolist"])
def test_a_sampler_that_waits_is_noticed(read: str) -> None:
    class Waiting(DPMSolverMultistepScheduler):
        def step(self, model_output: Tensor, *args: object) -> Tensor:
            getattr(model_output.max(), read)()
            return super().step(model_output, *args)

    scheduler = Waiting(NoiseConfig())
    scheduler.set_timesteps(4)
    with counting_waits() as waits:
        run(scheduler, "cpu")
    assert len(waits) == 4
    with pytest.raises((RuntimeError, NotImplementedError)):
        scheduler.set_timesteps(4)
        run(scheduler, "meta")
