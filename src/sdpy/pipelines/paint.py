"""What text to picture, picture to picture and inpainting have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from sdpy.errors import UsageError, WeightsError
from sdpy.models import UNet2DConditionModel
from sdpy.optimizations.approximate import Approximation, approximate
from sdpy.optimizations.exact.sliced_attention import AUTOMATIC, slice_attention
from sdpy.pipelines.components import Components
from sdpy.pipelines.controlnet import Control, LoadedControl, check_controls, load_controls
from sdpy.pipelines.denoise import Walk, denoise
from sdpy.pipelines.events import Event, Notice, Painted, Progress, PromptRead
from sdpy.pipelines.recovery import Resort
from sdpy.pipelines.vae import decoding
from sdpy.runtime.devices import seeded_generator
from sdpy.schedulers import Scheduler, make_scheduler
from sdpy.text.prompts import PromptEmbeddings, TokenizedPrompt, encode_prompt, tokenize_prompt


@dataclass(frozen=True)
class Settings:
    """What to paint and how. Sample k (from 0) uses the seed ``seed + k``.

    ``timestep_spacing``, ``guidance_scale`` and ``prediction_type`` of None are the variant's own,
    ``sigmas`` and ``eta`` the scheduler's. ``prompt_syntax`` and ``long_prompt`` are those of
    `sdpy.text.prompts.tokenize_prompt`. ``clip_skip`` 1 uses all layers of the text encoder, 2 all
    but the last, and so on. ``guidance_interval`` is that of `sdpy.pipelines.denoise.denoise`;
    pictures are exact where it is (0, 1) and ``approximations`` is empty.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int = 30
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    seed: int = 32
    num_samples: int = 1
    scheduler: str = "ddim"
    timestep_spacing: str | None = None
    sigmas: str | None = None
    eta: float | None = None
    prediction_type: str | None = None
    prompt_syntax: str = "weighted"
    long_prompt: str = "chunk"
    clip_skip: int = 1
    controls: tuple[Control, ...] = ()
    approximations: tuple[Approximation, ...] = ()


Begin = Callable[[Scheduler, torch.Generator], Walk]
"""Makes a sample's beginning; all its noise comes from the generator."""


def paint(
    components: Components, settings: Settings, begin: Begin, skip: int = 0
) -> Iterator[Event]:
    """Paint ``settings.num_samples`` pictures, telling what happens.

    The generator does the work while it is asked for events; nothing is loaded before.

    Args:
        components: the models.
        settings: what to paint and how.
        begin: makes the beginning of each.
        skip: number of steps that are left out at the start of each walk.

    Raises:
        ShortageError: there is not enough memory.
        PaintingError: numbers went wrong.
    """
    yield from (Notice(text) for text in components.notices)
    yield from _tell_of_compiling(components)
    guidance_scale = effective_guidance_scale(components, settings)
    prompt, negative = tokenize(components, settings)
    yield from _tell(components, settings, prompt, negative)
    embeddings = _encode(components, settings, prompt, negative)
    for sample in range(1, settings.num_samples + 1):
        seed = settings.seed + sample - 1
        generator = seeded_generator(seed)
        scheduler = plan(components, settings, skip)
        walk = begin(scheduler, generator)
        latents = walk.latents
        yield Progress(sample, settings.num_samples, 0, len(scheduler.timesteps))
        with (
            components.unet() as unet,
            load_controls(components, settings.controls) as controls,
            approximate(unet, settings.approximations, (seed,)) as called,
        ):
            for step in denoise(
                called,
                scheduler,
                walk,
                embeddings,
                guidance_scale=guidance_scale,
                guidance_rescale=settings.guidance_rescale,
                guidance_interval=settings.guidance_interval,
                generator=generator,
                controls=controls,
                resorts=_resorts(components, unet, controls),
            ):
                latents = step.latents
                yield from step.notices
                yield Progress(sample, settings.num_samples, step.index, step.total)
        picture = yield from decoding(components, latents)
        yield Painted(sample, seed, picture)


def _resorts(
    components: Components, unet: UNet2DConditionModel, controls: list[LoadedControl]
) -> list[Resort]:
    """What can be done when memory runs out in the midst of a walk."""

    def slice_all() -> None:
        for model in (unet, *(control.model for control in controls)):
            slice_attention(model, AUTOMATIC)

    if components.execution.sliced_attention_size is not None:
        return []
    return [Resort("computing its attention in slices from here on", slice_all)]


def check(
    components: Components,
    settings: Settings,
    shape: tuple[int, int, int, int],
    unet_in_channels: tuple[int, ...],
) -> None:
    """Find out whether the settings and the files can work, reading no weights.

    Args:
        components: the models.
        settings: what to paint and how.
        shape: of the latents.
        unet_in_channels: numbers of input channels that the task can use.

    Raises:
        UsageError: a setting that cannot work.
        WeightsError: a file that is broken, of the wrong kind, or a UNet for another task.
    """
    for name, text in (
        ("prompt", settings.prompt),
        ("negative prompt", settings.negative_prompt),
    ):
        if not _is_unicode(text):
            raise UsageError(f"the {name} is not Unicode text: type it in the terminal's encoding")
    if not 0.0 <= settings.guidance_rescale <= 1.0:
        raise UsageError(f"guidance rescale {settings.guidance_rescale:g}: use 0 (off) to 1")
    low, high = settings.guidance_interval
    if not 0.0 <= low < high <= 1.0:
        raise UsageError(
            f"guidance from {low:g} to {high:g} of the steps: begin at 0 or later, end later than "
            "that and at 1 at the latest"
        )
    plan(components, settings)
    components.check()
    tokenize(components, settings)
    if components.unet_in_channels not in unet_in_channels:
        raise WeightsError(
            f"{components.files.unet}: a UNet with {components.unet_in_channels} input channels "
            f"cannot do this, {' or '.join(map(str, unet_in_channels))} are needed; "
            "9 are for inpainting alone"
        )
    for approximation in settings.approximations:
        approximation.check(components.unet_config)
    if settings.approximations and components.execution.compiled:
        raise UsageError(
            "a compiled UNet does all of its work at every step: leave out --compile, or "
            "--deepcache and --token-merging"
        )
    factor = components.variant.vae.downsample_factor
    width, height = factor * shape[-1], factor * shape[-2]
    check_controls(components, settings.controls, width=width, height=height)


def _is_unicode(text: str) -> bool:
    """Whether ``text`` can be written: bytes of the command line that are no text cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def tokenize(components: Components, settings: Settings) -> tuple[TokenizedPrompt, TokenizedPrompt]:
    """The prompt and the negative prompt, which is empty where it is not looked at.

    Raises:
        UsageError: a setting that cannot work, or a prompt that is too long where that is refused.
        WeightsError: a textual inversion that does not fit, or no vocabulary.
    """
    config = components.variant.text_encoder
    if not 1 <= settings.clip_skip <= config.num_hidden_layers:
        raise UsageError(
            f"--clip-skip {settings.clip_skip}: this text encoder has {config.num_hidden_layers} "
            f"layers, use 1 (all of them) to {config.num_hidden_layers}"
        )
    seen = sees_negative_prompt(components, settings)
    prompt, negative = (
        tokenize_prompt(
            text,
            components.tokenizer,
            config,
            syntax=settings.prompt_syntax,
            long_prompt=settings.long_prompt,
            textual_inversions=components.textual_inversions,
            what=what,
        )
        for what, text in (
            ("prompt", settings.prompt),
            ("negative prompt", settings.negative_prompt if seen else ""),
        )
    )
    return prompt, negative


def plan(components: Components, settings: Settings, skip: int = 0) -> Scheduler:
    """The scheduler that the settings ask for, its timesteps set, without the first ``skip`` steps.

    Raises:
        UsageError: an unknown scheduler or option, one that does not apply, or a number of steps
            that does not suit them.
    """
    variant = components.variant
    noise = variant.noise
    if settings.prediction_type is not None:
        noise = replace(noise, prediction_type=settings.prediction_type)
    scheduler = make_scheduler(
        settings.scheduler,
        noise,
        timestep_spacing=settings.timestep_spacing,
        preferred_spacing=variant.timestep_spacing,
        sigmas=settings.sigmas,
        eta=settings.eta,
    )
    scheduler.set_timesteps(settings.steps, skip)
    return scheduler


def effective_guidance_scale(components: Components, settings: Settings) -> float:
    """The user's guidance scale, or the variant's."""
    if settings.guidance_scale is None:
        return components.variant.guidance_scale
    return settings.guidance_scale


def sees_negative_prompt(components: Components, settings: Settings) -> bool:
    """Whether the UNet does; not at guidance scale 1, nor where it takes the scale as an embedding.

    Raises:
        WeightsError: the UNet's file cannot be read.
    """
    embeds_guidance = components.unet_config.time_cond_proj_dim is not None
    return not embeds_guidance and effective_guidance_scale(components, settings) != 1


def latent_shape(components: Components, width: int, height: int) -> tuple[int, int, int, int]:
    """Shape (1, C, h, w) of the latents of a picture of ``width`` x ``height`` pixels.

    Raises:
        UsageError: a side is too short, or no multiple of what one latent covers.
    """
    vae = components.variant.vae
    factor = vae.downsample_factor
    least = min_side(components)
    for name, side in (("--width", width), ("--height", height)):
        if side < least or side % factor:
            nearest = max(round(side / factor) * factor, least)
            raise UsageError(
                f"{name} {side}: use a multiple of {factor} from {least} on, such as {nearest}"
            )
    return (1, vae.latent_channels, height // factor, width // factor)


def min_side(components: Components) -> int:
    """The shortest side, in pixels, that is worth painting: eight latents."""
    return 8 * components.variant.vae.downsample_factor


def skipped_steps(steps: int, strength: float) -> int:
    """How many steps are left out when a picture is changed by ``strength``.

    Args:
        steps: number of steps.
        strength: share of them that is walked, in [0, 1]; at 0 none is.

    Raises:
        UsageError: a strength outside [0, 1].
    """
    if not 0.0 <= strength <= 1.0:
        raise UsageError(f"strength {strength:g}: use 0 (change nothing) to 1 (paint anew)")
    return steps - int(steps * strength)


def _tell(
    components: Components,
    settings: Settings,
    prompt: TokenizedPrompt,
    negative: TokenizedPrompt,
) -> Iterator[Event]:
    """What is to be said of the prompts: their lengths, and whatever will not be heeded."""
    yield PromptRead("prompt", prompt)
    if settings.negative_prompt and sees_negative_prompt(components, settings):
        yield PromptRead("negative prompt", negative)
    elif settings.negative_prompt:
        yield Notice(
            "the negative prompt is not looked at: the guidance scale is 1, or this UNet takes the "
            "scale itself"
        )
    if settings.guidance_interval != (0.0, 1.0) and not sees_negative_prompt(components, settings):
        yield Notice(
            "the guidance interval changes nothing: the guidance scale is 1, or this UNet takes "
            "the scale itself"
        )
    for what, one in (("prompt", prompt), ("negative prompt", negative)):
        if one.dropped:
            yield Notice(f"the {what} is too long, its end was left out: '{one.dropped}'")
    for inversion in components.textual_inversions:
        if not (prompt.uses(inversion) or negative.uses(inversion)):
            names = " or ".join(f"'{name}'" for name in inversion.names)
            yield Notice(f"{inversion.path} is not used, for no prompt says {names}")


def _tell_of_compiling(components: Components) -> Iterator[Event]:
    execution = components.execution
    if any(execution.compiles_on(device) for device in components.placement.gpus):
        yield Notice(
            "compiling for the GPU: the first steps and the first decoding of each size take up to "
            "some minutes"
        )
    elif execution.compiled:
        yield Notice("nothing is compiled: that takes a GPU on which the weights stay")


def _encode(
    components: Components,
    settings: Settings,
    prompt: TokenizedPrompt,
    negative: TokenizedPrompt,
) -> PromptEmbeddings:
    with components.text_encoder() as text_encoder:
        return encode_prompt(
            prompt,
            negative,
            components.tokenizer,
            text_encoder,
            pad_id=components.variant.pad_id,
            skip_layers=settings.clip_skip - 1,
            textual_inversions=components.textual_inversions,
        )
