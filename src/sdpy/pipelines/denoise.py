"""The denoising loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sdpy.optimizations.approximate import UNet
from sdpy.pipelines.controlnet import LoadedControl
from sdpy.pipelines.finite_check import FiniteCheck
from sdpy.pipelines.guidance import Guidance
from sdpy.pipelines.loop import InitialLatents, Loop
from sdpy.runtime.fallbacks import Fallback, Notice, attempt, finish
from sdpy.schedulers.base import Scheduler
from sdpy.text.conditioning import ConditioningSchedule


@dataclass(frozen=True)
class Step:
    """A step that was done.

    Attributes:
        index: its number, from 1.
        total: how many steps there are.
        latents: (B, C, h, w) float32 after it, on the UNet's device.
        notices: what was done where memory ran out.
    """

    index: int
    total: int
    latents: Tensor
    notices: tuple[Notice, ...] = ()


def denoise(
    unet: UNet,
    scheduler: Scheduler,
    start: InitialLatents,
    prompts: ConditioningSchedule,
    guidance: Guidance,
    *,
    generators: Sequence[torch.Generator] = (),
    controls: Sequence[LoadedControl] = (),
    fallbacks: Sequence[Fallback] = (),
    steps: range | None = None,
) -> Iterator[Step]:
    """Go from noise to clean latents, a batch of B images at a time.

    Whatever a step needs is on the UNet's device before the first one, and nothing in a step waits
    for that device, so that a GPU is never idle. On a CPU, latents that are not finite end the loop
    at once, on other devices after the last step.

    Args:
        unet: on any device, in any floating-point dtype.
        scheduler: with its timesteps set; used for this batch alone.
        start: where to begin. Latents are float32 throughout and live on the UNet's device.
        prompts: of the batch.
        guidance: of the batch.
        generators: one an image, of the noise that some schedulers add.
        controls: ControlNets and T2I-Adapters that steer the UNet.
        fallbacks: what can be done where memory runs out.
        steps: which of the scheduler's steps to do, the first one being 0; None for all. The next
            ones can be done by another UNet with the same scheduler.

    Yields:
        Each step, after it is done or, on a GPU, underway.

    Raises:
        ShortageError: there is not enough memory.
        GenerationError: the latents are not finite any more.
    """
    loop = Loop.prepare(
        unet,
        scheduler,
        start,
        prompts,
        guidance,
        generators=generators,
        controls=controls,
        steps=steps,
    )
    finite = FiniteCheck(unet.device, unet.dtype, loop.total, loop.steps.start)
    left = list(fallbacks)
    latents = loop.latents
    for i in loop.steps:
        with torch.inference_mode():
            sample = scheduler.scale_model_input(latents, scheduler.timesteps[i]).to(unet.dtype)
        notices: list[Notice] = []
        work = attempt(partial(_predict, loop, i, sample), left, "the UNet")
        noise_pred = finish(work, notices.append)
        with torch.inference_mode():
            latents = loop.step(i, loop.guide(i, noise_pred), latents)
            finite.look_at(latents)
        yield Step(i + 1, loop.total, latents, tuple(notices))
    finite.finish()


@torch.inference_mode()
def _predict(loop: Loop, i: int, sample: Tensor) -> Tensor:
    return loop.predict(i, sample)
