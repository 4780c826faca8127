"""The denoising loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sdpy.optimizations.approximate import UNet
from sdpy.optimizations.exact.cuda_graphs import CudaGraphs
from sdpy.pipelines.captured_steps import CapturedSteps
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
    graphs: CudaGraphs | None = None,
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
        graphs: the UNet's, by which steps are done; None to do them as the program says.

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
    with torch.inference_mode():
        doing = StepByStep(loop, finite) if graphs is None else CapturedSteps(loop, graphs, finite)
    left = [*doing.fallbacks, *fallbacks]
    for i in loop.steps:
        notices: list[Notice] = []
        with torch.inference_mode():
            doing.before(i)
        finish(attempt(partial(_run, doing, i), left, "the UNet"), notices.append)
        with torch.inference_mode():
            latents = doing.after(i)
        yield Step(i + 1, loop.total, latents, (*notices, *doing.take_notices()))
    finite.finish()


@torch.inference_mode()
def _run(doing: StepByStep | CapturedSteps, i: int) -> None:
    doing.run(i)


class StepByStep:
    """Does the steps of a loop one after the other, as the program says.

    Args:
        loop: the loop.
        finite: looks at its results.
    """

    fallbacks: Sequence[Fallback] = ()

    def __init__(self, loop: Loop, finite: FiniteCheck) -> None:
        self.loop, self.finite = loop, finite
        self.latents = self.sample = self.noise_pred = loop.latents

    def before(self, i: int) -> None:
        """Prepare step ``i``."""
        scheduler = self.loop.scheduler
        sample = scheduler.scale_model_input(self.latents, scheduler.timesteps[i])
        self.sample = sample.to(self.loop.unet.dtype)

    def run(self, i: int) -> None:
        """Do what takes memory; it can be done again if that does not suffice."""
        self.noise_pred = self.loop.predict(i, self.sample)

    def after(self, i: int) -> Tensor:
        """The latents after step ``i``.

        Raises:
            GenerationError: they are not finite, and could be looked at at once.
        """
        noise_pred = self.loop.guide(i, self.noise_pred)
        self.latents = self.loop.step(i, noise_pred, self.latents)
        self.finite.look_at(self.latents)
        return self.latents

    def take_notices(self) -> Sequence[Notice]:
        """What the user should know: nothing."""
        return ()
