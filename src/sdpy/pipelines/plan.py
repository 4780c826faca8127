"""Planning a request: everything is checked, tokenised and scheduled before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

from torch import Tensor

from sdpy.checkpoints import bundled_textual_inversions
from sdpy.errors import UsageError, WeightsError
from sdpy.optimizations.approximate import Approximation
from sdpy.pipelines.controlnet import check_controls, describe_controls
from sdpy.pipelines.events import Event, Notice, PromptTokenized
from sdpy.pipelines.img2img import ImageToImage
from sdpy.pipelines.inpaint import Inpainting
from sdpy.pipelines.mask_conditioning import unet_in_channels
from sdpy.pipelines.prompting import (
    check_size_options,
    has_zero_negative,
    plan_prompts,
    plan_sizes,
)
from sdpy.pipelines.request import Request
from sdpy.pipelines.task import Task, skipped_steps
from sdpy.pipelines.text2img import TextToImage
from sdpy.runtime.session import Session
from sdpy.schedulers.base import Scheduler
from sdpy.schedulers.registry import SIGMA_SCHEDULES, choose_schedule, make_scheduler
from sdpy.text.doubts import doubts
from sdpy.text.schedule import EncoderPrompts
from sdpy.zoo.variants import ModelVariant

USUAL_SHARE = 1.4
"""So many times the pixels of training, or as much fewer, are nothing to be told of."""

REFINER_START = 0.8
"""Share of the noise schedule after which a refiner takes over unless the request says another."""


@dataclass(frozen=True, eq=False)
class PlannedRequest:
    """A request that has been checked, with what it needs but the models.

    Attributes:
        request: what is asked for; steps and scheduler are the model's where nothing was said.
        task: which of the three it is.
        shape: (1, C, h, w) of an image's latents.
        skip: number of steps that are left out at the start.
        scheduler: with its timesteps set, and never used itself: see `fresh_scheduler`.
        guidance_scale: the request's or the model's.
        guided: whether the UNet sees the negative prompt: not at guidance scale 1, unless ``AND``
            joins several prompts, nor where it takes the scale as an embedding.
        prompts: tokens of the prompt and the negative prompt, step by step, for each text encoder;
            the negative prompt is empty where it is not looked at.
        zero_negative: whether zeros take the place of the negative prompt's embeddings.
        sizes, negative_sizes: (1, n) that the UNet is told; None where it is told none.
        approximations: of the UNet.
        refined: what the refiner does of it, whose prompts and sizes differ; None for none.
        switch: of the steps that are done, the first that the refiner does.
    """

    request: Request
    task: Task
    shape: tuple[int, int, int, int]
    skip: int
    scheduler: Scheduler
    guidance_scale: float
    guided: bool
    prompts: EncoderPrompts
    zero_negative: bool
    sizes: Tensor | None
    negative_sizes: Tensor | None
    approximations: tuple[Approximation, ...]
    refined: PlannedRequest | None = None
    switch: int | None = None

    def fresh_scheduler(self) -> Scheduler:
        """A scheduler for one batch, which has seen no step yet."""
        return deepcopy(self.scheduler)

    @property
    def batch_key(self) -> Hashable:
        """What requests have to have in common for their images to be computed together."""
        request = self.request
        return (
            *(self.task, self.shape, self.skip, self.guided, len(self.prompts.parts)),
            self.approximations,
            *(request.steps, request.scheduler, request.sigmas, request.timestep_spacing),
            *(request.eta, request.guidance_rescale, request.guidance_interval),
            self.switch,
            *(request.lora, tuple(control.network for control in request.controls)),
        )


TASKS: dict[str, Task] = {
    "text2img": TextToImage(),
    "img2img": ImageToImage(),
    "inpaint": Inpainting(),
}


def find_task(request: Request) -> Task:
    """The task that a request asks for by what it gives.

    Raises:
        UsageError: a mask without an image.
    """
    return TASKS[find_task_name(request)]


def find_task_name(request: Request) -> str:
    """The key of `TASKS` that a request asks for; see `find_task`."""
    if request.mask is not None:
        if request.image is None:
            raise UsageError("a mask needs the image that it is for")
        return "inpaint"
    return "text2img" if request.image is None else "img2img"


def plan_request(session: Session, request: Request) -> PlannedRequest:
    """Find out whether a request can work, and all that follows from it; reads no weights.

    Raises:
        UsageError: an option that cannot work.
        ImageError: a mask that vanishes at the latents' resolution.
        WeightsError: a file that is broken, of the wrong kind, or a UNet that no task can use.
    """
    request = _with_defaults(session.variant, request)
    assert request.steps is not None
    task = find_task(request)
    shape = task.latent_shape(session, request)
    task.check(session, request)
    strength = task.DEFAULT_STRENGTH if request.strength is None else request.strength
    skip = skipped_steps(request.steps, strength)
    _check_options(request)
    scheduler = plan_schedule(session, request, skip)
    session.headers.check(request.lora)
    request = _with_bundled_words(request)
    unet = session.headers.config("unet")
    scale = request.guidance_scale
    scale = session.variant.guidance_scale if scale is None else scale
    can_guide = unet.time_cond_proj_dim is None
    prompts = plan_prompts(session, request, len(scheduler.timesteps), can_guide and scale != 1)
    if len(prompts.parts) > 1 and not can_guide:
        raise UsageError(
            "AND joins prompts by guidance, but this UNet takes the guidance scale itself: leave "
            "out AND, or use --prompt-syntax plain"
        )
    guided = can_guide and (scale != 1 or len(prompts.parts) > 1)
    if unet.in_channels not in unet_in_channels(session.variant):
        needed, for_inpainting = unet_in_channels(session.variant)
        raise WeightsError(
            f"{session.source.files.weights['unet']} has a UNet with {unet.in_channels} input "
            f"channels; sdpy runs those with {needed}, or {for_inpainting} for inpainting"
        )
    approximations = request.approximations
    for approximation in approximations:
        approximation.check(unet)
    if request.token_merging is not None and session.execution.compile:
        raise UsageError(
            "the blocks of a compiled UNet look at all tokens: leave out --compile, or "
            "--token-merging"
        )
    factor = session.variant.vae.downsample_factor
    width, height = factor * shape[-1], factor * shape[-2]
    check_controls(session, request.controls, width=width, height=height)
    check_size_options(session, request)
    sizes, negative_sizes = plan_sizes(session.variant, request, width=width, height=height)
    plan = PlannedRequest(
        request=request,
        task=task,
        shape=shape,
        skip=skip,
        scheduler=scheduler,
        guidance_scale=scale,
        guided=guided,
        prompts=prompts,
        zero_negative=has_zero_negative(session.variant, request),
        sizes=sizes,
        negative_sizes=negative_sizes,
        approximations=approximations,
    )
    if session.refiner is not None:
        return _with_refiner(session.refiner, session.variant, plan)
    if request.refiner_start is not None:
        raise UsageError("--refiner-start says nothing without --refiner")
    return plan


def _with_refiner(session: Session, base: ModelVariant, plan: PlannedRequest) -> PlannedRequest:
    """The plan with what another model does of its last steps.

    As in diffusers, these are the steps at timesteps below a share of all that training has.

    Args:
        session: of the refiner.
        base: which model does the other steps.
        plan: of all steps.

    Raises:
        WeightsError: the refiner is for other latents, or broken.
    """
    session.headers.check()
    variant, unet, request = session.variant, session.headers.config("unet"), plan.request
    ours, theirs = (
        (vae.latent_channels, vae.downsample_factor, vae.scaling_factor)
        for vae in (base.vae, variant.vae)
    )
    if ours != theirs or unet.in_channels != variant.vae.latent_channels:
        raise WeightsError(
            f"{session.source.files.weights['unet']} cannot refine what {base.name} generates: it "
            "is for other latents, or for inpainting; use sdxl-refiner, or another ordinary model"
        )
    start = REFINER_START if request.refiner_start is None else request.refiner_start
    count = base.noise.num_train_timesteps
    cutoff = round(count - start * count)
    timesteps = plan.scheduler.timesteps
    switch = next((i for i, one in enumerate(timesteps) if one < cutoff), len(timesteps))
    for approximation in plan.approximations:
        approximation.check(unet)
    factor = variant.vae.downsample_factor
    width, height = factor * plan.shape[-1], factor * plan.shape[-2]
    guided = plan.guidance_scale != 1
    one_prompt = replace(request, prompt_2=None, negative_prompt_2=None)
    prompts = request if len(variant.text_encoders) > 1 else one_prompt
    sizes, negative_sizes = plan_sizes(variant, request, width=width, height=height)
    refined = replace(
        plan,
        prompts=plan_prompts(session, prompts, len(timesteps), guided),
        zero_negative=has_zero_negative(variant, request),
        sizes=sizes,
        negative_sizes=negative_sizes,
    )
    return replace(plan, refined=refined, switch=switch)


def _with_defaults(variant: ModelVariant, request: Request) -> Request:
    """The request with the model's steps and scheduler where it names none.

    A list of sigmas is as many steps.
    """
    steps = len(request.sigmas) if isinstance(request.sigmas, tuple) else variant.steps
    return replace(
        request,
        steps=steps if request.steps is None else request.steps,
        scheduler=variant.scheduler if request.scheduler is None else request.scheduler,
    )


def _with_bundled_words(request: Request) -> Request:
    """The request with the words that its LoRAs bring, unless it gives others of these names."""
    given = {name.lower() for one in request.embedding for name in one.names}
    bundled = [one for lora in request.lora for one in bundled_textual_inversions(lora)]
    added = [one for one in bundled if given.isdisjoint(name.lower() for name in one.names)]
    return replace(request, embedding=(*request.embedding, *added)) if added else request


def plan_schedule(session: Session, request: Request, skip: int = 0) -> Scheduler:
    """The scheduler that a request asks for, its timesteps set, without the first ``skip`` steps.

    Raises:
        UsageError: an unknown scheduler or option, one that does not apply, or a number of steps
            that does not suit them.
    """
    request = _with_defaults(session.variant, request)
    assert request.scheduler is not None and request.steps is not None
    scheduler = make_scheduler(
        request.scheduler,
        session.variant.noise,
        timestep_spacing=request.timestep_spacing,
        preferred_spacing=session.variant.timestep_spacing,
        sigmas=request.sigmas,
        eta=request.eta,
    )
    scheduler.set_timesteps(request.steps, skip)
    return scheduler


def describe_plan(session: Session, plan: PlannedRequest) -> Iterator[Event]:
    """What is to be said of a request before the work: its prompts, and what has no effect."""
    request = plan.request
    schedules = plan.prompts.distinct
    for number, schedule in schedules:
        for what, prompt in schedule.describe_prompt():
            yield PromptTokenized(f"{what}{number}", prompt)
    negatives = (request.negative_prompt, request.negative_prompt_2)
    if any(negatives) and plan.guided:
        for number, schedule in schedules:
            for what, prompt in schedule.negative.describe("negative prompt"):
                yield PromptTokenized(f"{what}{number}", prompt)
    elif any(negatives):
        yield Notice(
            "the negative prompt is not looked at: the guidance scale is 1, or this UNet takes the "
            "scale itself"
        )
    if request.prompt_syntax != "plain":
        for what, text in (
            ("prompt", request.prompt),
            ("negative prompt", request.negative_prompt or "" if plan.guided else ""),
        ):
            yield from map(Notice, doubts(text, what))
    if not plan.scheduler.timesteps and request.strength:
        assert request.steps is not None
        enough = math.ceil(1000 / request.steps) / 1000
        yield Notice(
            f"--strength {request.strength:g} of {request.steps} steps is not even one step, so "
            f"the image is hardly changed; use --strength {enough:g} or more"
        )
    if request.guidance_interval != (0.0, 1.0) and not plan.guided:
        yield Notice(
            "the guidance interval changes nothing: the guidance scale is 1, or this UNet takes "
            "the scale itself"
        )
    prompts = [
        (f"{what}{number}", prompt)
        for number, schedule in schedules
        for what, prompt in schedule.all_prompts()
    ]
    yield from map(Notice, describe_controls(session, request.controls))
    for hint in (_size_hint(session.variant, plan), *_told_hints(session.variant, plan)):
        if hint is not None:
            yield Notice(hint)
    if plan.switch is not None and plan.switch == len(plan.scheduler.timesteps):
        yield Notice("the refiner does no step: use more --steps, or a lower --refiner-start")
    for what, one in prompts:
        if one.dropped:
            yield Notice(f"the {what} is too long, its end was left out: '{one.dropped}'")
    for inversion in request.embedding:
        if not any(prompt.uses(inversion) for _, prompt in prompts):
            names = " or ".join(f"'{name}'" for name in inversion.names)
            source = f"a word of {inversion.path}" if inversion.is_bundled else inversion.path
            yield Notice(f"{source} is not used, for no prompt says {names}")


def _told_hints(variant: ModelVariant, plan: PlannedRequest) -> Iterator[str]:
    """What to say of a model that is used for what it was not trained for."""
    request, factor = plan.request, variant.vae.downsample_factor
    if "aesthetic_score" in variant.size_conditions and request.image is None:
        yield (
            f"{variant.name} was trained on the last steps alone: give it an image with "
            "`sdpy img2img`, or generate with another model and --refiner"
        )
    left, top = (0, 0) if request.crop is None else request.crop
    width, height = request.original_size or (factor * plan.shape[-1], factor * plan.shape[-2])
    if left >= width or top >= height:
        yield (
            f"--crop {left},{top} would cut off all of an image of {width}x{height} pixels, which "
            "no image of training had: give its size by --original-size, or a smaller --crop"
        )


def _size_hint(variant: ModelVariant, plan: PlannedRequest) -> str | None:
    """What to say where a new image is much smaller or larger than those of training."""
    if variant.bucket_step is None or plan.request.image is not None:
        return None
    factor = variant.vae.downsample_factor
    width, height = factor * plan.shape[-1], factor * plan.shape[-2]
    side = variant.sample_size
    share = width * height / side**2
    if 1 / USUAL_SHARE <= share <= USUAL_SHARE:
        return None
    best = nearest_bucket(width / height, side, variant.bucket_step)
    return (
        f"{variant.name} was trained on images of about {side}x{side} pixels: "
        f"{best[0]}x{best[1]} should suit it better than {width}x{height}"
    )


def nearest_bucket(proportion: float, side: int, step: int) -> tuple[int, int]:
    """Width and height of about ``side`` squared pixels, multiples of ``step``, near a proportion.

    Of the sizes with the most pixels that are no more than a square's, as SDXL's authors list
    them in appendix I, those of proportions from 1:4 to 4:1.
    """
    widths = range(side // 2, 2 * side + 1, step)
    sizes = [(width, max(side**2 // width // step, 1) * step) for width in widths]
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] / proportion)))


def resolved(session: Session, plan: PlannedRequest, seed: int) -> Request:
    """The request of one image with what was left to the model or the scheduler filled in."""
    request = plan.request
    assert request.scheduler is not None
    chosen = choose_schedule(
        request.scheduler,
        session.variant.noise,
        timestep_spacing=request.timestep_spacing,
        preferred_spacing=session.variant.timestep_spacing,
        sigmas=request.sigmas,
        eta=request.eta,
    )
    brings_timesteps = chosen.sigmas in SIGMA_SCHEDULES or isinstance(chosen.sigmas, tuple)
    strength = request.strength
    if strength is None and request.image is not None:
        strength = plan.task.DEFAULT_STRENGTH
    factor = session.variant.vae.downsample_factor
    return replace(
        request,
        strength=strength,
        scheduler=chosen.name,
        sigmas=chosen.sigmas,
        # Sigmas with timesteps of their own take no spacing.
        timestep_spacing=None if brings_timesteps else chosen.timestep_spacing,
        eta=chosen.eta,
        guidance_scale=plan.guidance_scale,
        width=factor * plan.shape[-1],
        height=factor * plan.shape[-2],
        seed=seed,
        num_samples=1,
    )


def _check_options(request: Request) -> None:
    for name, text in (
        ("prompt", request.prompt),
        ("negative prompt", request.negative_prompt),
        ("prompt for the second text encoder", request.prompt_2),
        ("negative prompt for the second text encoder", request.negative_prompt_2),
    ):
        # Bytes of the command line that are no text arrive as lone surrogates.
        if any("\ud800" <= character <= "\udfff" for character in text or ""):
            raise UsageError(f"the {name} is not Unicode text: type it in the terminal's encoding")
    if not 0.0 <= request.guidance_rescale <= 1.0:
        raise UsageError(f"guidance rescale {request.guidance_rescale:g}: use 0 (off) to 1")
    low, high = request.guidance_interval
    if not 0.0 <= low < high <= 1.0:
        raise UsageError(
            f"guidance from {low:g} to {high:g} of the steps: begin at 0 or later, end later than "
            "that and at 1 at the latest"
        )
    if request.guidance_scale is not None and not math.isfinite(request.guidance_scale):
        raise UsageError(f"--guidance-scale {request.guidance_scale}: use a finite number")
