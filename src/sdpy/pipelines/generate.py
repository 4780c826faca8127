"""From requests to images, a batch at a time: the way through the whole program, top to bottom."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby

from torch import Tensor

from sdpy.components import COMPANIONS, components_with_role
from sdpy.errors import ShortageError, is_shortage
from sdpy.models import UNet2DConditionModel
from sdpy.optimizations.approximate import approximate
from sdpy.optimizations.exact.cuda_graphs import graphs_of
from sdpy.optimizations.exact.sliced_attention import slice_attention
from sdpy.pipelines.controlnet import (
    Control,
    LoadedAdapter,
    LoadedControl,
    loaded_controls,
)
from sdpy.pipelines.denoise import denoise
from sdpy.pipelines.encoding import encode_plans
from sdpy.pipelines.events import Detail, Event, ImageDecoded, Notice, Progress, StepDecoded
from sdpy.pipelines.guidance import Guidance
from sdpy.pipelines.loop import InitialLatents
from sdpy.pipelines.mask_conditioning import takes_mask
from sdpy.pipelines.plan import PlannedRequest, describe_plan, plan_request, resolved
from sdpy.pipelines.request import Request
from sdpy.pipelines.task import Begin
from sdpy.pipelines.vae import decode
from sdpy.pipelines.values import AUTO
from sdpy.runtime.devices import CPU, seeded_generator
from sdpy.runtime.fallbacks import Fallback, attempt, release_cached_memory
from sdpy.runtime.planner import plan_memory, plan_two_stages
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.retreats import retreats
from sdpy.runtime.session import Session
from sdpy.runtime.threads import threads_for
from sdpy.runtime.workload import AUTOMATIC_SLICES, Workload
from sdpy.text.conditioning import ConditioningSchedule


@dataclass(frozen=True, eq=False)
class ImageJob:
    """One image to be generated.

    Attributes:
        number: counted from 1 over all requests.
        request: index of its request.
        sample: its number within the request, from 0.
        plan: of its request.
        begin: makes its first latents.
        prompts: what it is guided by, of batch 1.
        refined: what it is guided by in the refiner's steps, likewise; None without a refiner.
    """

    number: int
    request: int
    sample: int
    plan: PlannedRequest
    begin: Begin
    prompts: ConditioningSchedule
    refined: ConditioningSchedule | None

    @property
    def seed(self) -> int:
        """Of its noise: image k of a request uses the request's seed + k."""
        return self.plan.request.seed + self.sample


@dataclass(frozen=True, eq=False)
class Stage:
    """Some steps of a batch, which one UNet does.

    Attributes:
        models: whose UNet it is.
        steps: which of the scheduler's.
        prompts: what guides the images.
        controls: of each image.
    """

    models: RequestModels
    steps: range
    prompts: ConditioningSchedule
    controls: tuple[tuple[Control, ...], ...]


def generate(
    session: Session, requests: Sequence[Request], step_interval: int | None = None
) -> Iterator[Event]:
    """Generate the images of some requests, telling what happens.

    The iterator does the work while it is asked for events. Everything is checked before a model is
    loaded. Consecutive requests that agree in all but prompt, seed, guidance scale and images are
    computed together.

    Args:
        session: that loads the models.
        requests: what is asked for; at least one.
        step_interval: how many steps there are between two after which images are decoded, to be
            looked at; None for no such. It takes the autoencoder beside the UNet.

    Raises:
        UsageError, ImageError, WeightsError: a request that cannot work.
        ShortageError: there is not enough memory.
        GenerationError: numbers went wrong.
    """
    with session.lock:
        plans = [plan_request(session, request) for request in requests]
        images = sum(plan.request.num_samples for plan in plans)
        number = 1
        for _, group in groupby(enumerate(plans), key=lambda item: item[1].batch_key):
            members = list(group)
            yield from _generate_group(session, members, number, images, step_interval)
            number += sum(plan.request.num_samples for _, plan in members)


def _generate_group(
    session: Session,
    members: Sequence[tuple[int, PlannedRequest]],
    number: int,
    images: int,
    step_interval: int | None,
) -> Iterator[Event]:
    """The images of requests that can be computed together."""
    plans = [plan for _, plan in members]
    request = plans[0].request
    models = session.models(loras=request.lora)
    batch_size = None if request.batch_size == AUTO else int(request.batch_size)
    workload = Workload.of(
        models,
        plans[0].shape,
        contexts=len(plans[0].prompts.parts) + plans[0].guided,
        chunks=max(plan.prompts.chunks for plan in plans),
        images=sum(plan.request.num_samples for plan in plans),
        controls=[control.weights for control in request.controls],
        encodes=request.image is not None or takes_mask(session),
    )
    refiner: RequestModels | None = None
    if session.refiner is None:
        memory = plan_memory(models, workload, batch_size)
        notices = memory.notices
    else:
        refiner = session.refiner.models()
        contexts = len(plans[0].prompts.parts) + (plans[0].guidance_scale != 1)
        refining = Workload.of(
            refiner,
            plans[0].shape,
            contexts=contexts,
            chunks=max(plan.prompts.chunks for plan in plans),
            images=workload.images,
        )
        memory, second = plan_two_stages((models, workload), (refiner, refining), batch_size)
        refiner = refiner.changed(execution=second.execution, keep=second.keep)
        notices = tuple(dict.fromkeys((*memory.notices, *second.notices)))
        yield from session.refiner.take_notices()
    models = models.changed(execution=memory.execution, keep=memory.keep)
    if not (session.keep_models or step_interval):
        models = models.changed(evaluations=_evaluations(plans, memory.batch))
    yield from session.take_notices()
    yield from notices
    yield from describe_compiling(models, approximated=bool(plans[0].approximations))
    yield Detail(f"images computed together: {memory.batch}")
    kept = sorted(memory.keep & {model.component for model in workload.models})
    yield Detail(f"models that stay in memory: {', '.join(kept) or 'none'}")
    # Encoders first, so that they can be gone when the UNet comes.
    begins: list[Begin] = []
    for plan in plans:
        begins.append((yield from plan.task.prepare(models, plan.request, plan.skip)))
    for plan in plans:
        yield from describe_plan(session, plan)
    prompts = yield from _encode_prompts(models, plans)
    refined: list[ConditioningSchedule | None] = [None] * len(plans)
    if refiner is not None:
        own = [plan.refined for plan in plans if plan.refined is not None]
        refined = [*(yield from _encode_prompts(refiner, own))]
    jobs: deque[ImageJob] = deque()
    for (index, plan), begin, prompt, other in zip(members, begins, prompts, refined, strict=True):
        for sample in range(plan.request.num_samples):
            place = number + len(jobs)
            jobs.append(ImageJob(place, index, sample, plan, begin, prompt, other))

    size, left = memory.batch, retreats(models)
    while jobs:
        batch = [jobs.popleft() for _ in range(min(size, len(jobs)))]
        last = not jobs and not session.keep_models
        # Of a session for this request alone, nothing is needed after its last batch.
        here = models.releasing("unet", "vae", *COMPANIONS) if last else models
        try:
            work = workload.work * len(batch)
            yield from _generate_batch(here, refiner, batch, images, step_interval, work)
        except Exception as error:
            # Smaller batches help with what is computed, not with the loading of weights.
            computed = isinstance(error, ShortageError)
            halves = computed and len(batch) > 1
            if not (halves or (left and (computed or is_shortage(error)))):
                raise
            jobs.extendleft(reversed(batch))
        else:
            continue
        # Out here the error is gone, and with it the tensors that its traceback held.
        if halves:
            size = len(batch) // 2
            release_cached_memory()
            what, instead = f"{len(batch)} images at a time", f"going on with {size} at a time"
        else:
            retreat, *left = left
            for one in (session, session.refiner):
                if one is not None:
                    one.loaded.release()
            release_cached_memory()
            models = retreat.of(models)
            refiner = None if refiner is None else retreat.of(refiner)
            what, instead = "this on the GPU", retreat.description
        yield Notice(f"not enough memory for {what}: {instead}")


def _evaluations(plans: Sequence[PlannedRequest], batch: int) -> dict[str, int]:
    """How often models compute for images of which so many are computed together."""
    batches = -(-sum(plan.request.num_samples for plan in plans) // batch)
    steps = batches * len(plans[0].scheduler.timesteps)
    encoders = {one.name: len(plans) for one in components_with_role("text_encoder")}
    return {**encoders, "unet": steps, "controlnet": steps, "vae": batches}


def _encode_prompts(
    models: RequestModels, plans: Sequence[PlannedRequest]
) -> Generator[Notice, None, list[ConditioningSchedule]]:
    """What the images of each request are guided by; where memory runs out, made on the CPU."""
    ways = [models]

    def go_on() -> None:
        models.session.loaded.release(*names)
        placement = models.placement
        for name in names:
            placement = placement.with_device(name, CPU)
        ways.append(models.changed(placement=placement))

    names = [one.name for one in components_with_role("text_encoder")]
    on_gpu = any(models.placement[name] != CPU for name in names)
    fallbacks = [Fallback("running it on the CPU", go_on)] if on_gpu else []
    return (
        yield from attempt(lambda: encode_plans(ways[-1], plans), fallbacks, "the text encoder")
    )


def _generate_batch(
    models: RequestModels,
    refiner: RequestModels | None,
    batch: Sequence[ImageJob],
    images: int,
    step_interval: int | None,
    work: float,
) -> Iterator[Event]:
    """Latents, denoising loop and decoder for the images of one batch.

    ``work`` is the arithmetic of one of the UNet's largest operations.
    """
    plan = batch[0].plan
    chooses_threads = models.session.chooses_threads and models.placement["unet"] == CPU
    generators = [seeded_generator(job.seed) for job in batch]
    scheduler = plan.fresh_scheduler()
    start = InitialLatents.cat(
        [job.begin(scheduler, generator) for job, generator in zip(batch, generators, strict=True)]
    )
    latents = start.latents
    first, last, steps = batch[0].number, batch[-1].number, len(scheduler.timesteps)
    yield Progress(first, last, images, 0, steps)
    for stage in _stages(models, refiner, batch, steps):
        with (
            loaded_controls(stage.models, stage.controls) as controls,
            stage.models.unet() as unet,
            approximate(unet, plan.approximations, [job.seed for job in batch]) as approximated,
            threads_for(work) if chooses_threads else nullcontext(),
        ):
            for step in denoise(
                approximated,
                scheduler,
                start,
                stage.prompts,
                Guidance(
                    tuple(job.plan.guidance_scale for job in batch),
                    plan.request.guidance_rescale,
                    plan.request.guidance_interval,
                ),
                generators=generators,
                controls=controls,
                fallbacks=_fallbacks(stage.models, unet, controls),
                steps=stage.steps,
                # An approximation does not do the same at each step.
                graphs=None if plan.approximations else graphs_of(unet),
            ):
                stage.models.session.loaded.check_unchanged()
                latents = step.latents
                yield from step.notices
                yield Progress(first, last, images, step.index, steps)
                if step_interval and step.index < steps and step.index % step_interval == 0:
                    # As the UNet would see them: without what is too much of their noise.
                    upcoming = scheduler.timesteps[step.index]
                    seen = scheduler.scale_model_input(latents, upcoming)
                    yield from _decode_step(models, batch, seen, step.index, steps)
        # A refiner is shown neither mask nor masked image.
        start = replace(start, latents=latents, image_conditioning=None)
    plain = all(_is_plain(job.plan.request.image) for job in batch)
    pixels = yield from decode(models, latents, may_be_plain=plain)
    for job, image in zip(batch, pixels.chunk(len(batch)), strict=True):
        request = resolved(models.session, job.plan, job.seed)
        yield ImageDecoded(job.number, job.request, job.sample, job.seed, request, image)


def _decode_step(
    models: RequestModels, batch: Sequence[ImageJob], latents: Tensor, step: int, steps: int
) -> Iterator[Event]:
    """What the images of a batch look like after a step."""
    # Of nearly nothing but noise, it may well be one colour; the finished image may not.
    pixels = yield from decode(models, latents, may_be_plain=True)
    for job, image in zip(batch, pixels.chunk(len(batch)), strict=True):
        yield StepDecoded(job.number, job.request, job.sample, step, steps, image)


def _stages(
    models: RequestModels, refiner: RequestModels | None, batch: Sequence[ImageJob], steps: int
) -> Iterator[Stage]:
    """What the UNet does, and what the refiner's, which no control steers."""
    switch = batch[0].plan.switch
    switch = steps if switch is None else switch
    if switch:
        yield Stage(
            models,
            range(switch),
            ConditioningSchedule.cat([job.prompts for job in batch]),
            tuple(job.plan.request.controls for job in batch),
        )
    if refiner is not None and switch < steps:
        refined = [job.refined for job in batch if job.refined is not None]
        yield Stage(
            refiner, range(switch, steps), ConditioningSchedule.cat(refined), ((),) * len(batch)
        )


def _fallbacks(
    models: RequestModels, unet: UNet2DConditionModel, controls: Sequence[LoadedControl]
) -> list[Fallback]:
    """What can be done when memory runs out during the denoising loop."""

    def slice_all() -> None:
        steering = [one.model for one in controls if not isinstance(one, LoadedAdapter)]
        for model in (unet, *steering):
            slice_attention(model, AUTOMATIC_SLICES)

    if models.execution.sliced_attention_size is not None:
        return []
    return [Fallback("computing its attention in slices from here on", slice_all)]


def _is_plain(image: Tensor | None) -> bool:
    """Whether an image (1, 3, H, W) that is changed has one colour, as an empty canvas does."""
    return image is not None and bool((image == image[..., :1, :1]).all())


def describe_compiling(models: RequestModels, *, approximated: bool) -> Iterator[Event]:
    """What is to be said where the models are to be compiled, or their steps captured."""
    execution = models.execution
    if any(execution.compiles_on(device) for device in models.placement.gpus):
        yield Notice(
            "compiling for the GPU: the first step and the first decoding may take minutes, later "
            "ones of any size do not"
        )
    elif execution.compile:
        yield Notice("nothing is compiled: that takes a GPU on which the weights stay")
    captures = execution.captures_on(models.placement["unet"])
    if captures and approximated:
        yield Notice("without CUDA graphs: with an approximation, steps differ from each other")
    elif execution.cuda_graphs and not captures:
        yield Notice("without CUDA graphs: they take a GPU on which the UNet's weights stay")
