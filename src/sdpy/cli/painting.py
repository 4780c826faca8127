"""What the painting commands share: checks before the work, and writing pictures after it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sdpy.cli.options import ApproximationOptions, CommonOptions
from sdpy.cli.progress import follow
from sdpy.errors import UsageError
from sdpy.runtime.memory import parse_size
from sdpy.samplers import find_sampler

if TYPE_CHECKING:  # at run time these would import torch
    from PIL.Image import Image

    from sdpy.checkpoints import Lora, TextualInversion
    from sdpy.images.frame import Frame
    from sdpy.optimizations.approximate import Approximation
    from sdpy.pipelines import Components, Control, Event, Execution, Settings
    from sdpy.runtime.devices import Placement


def find_components(options: CommonOptions, default_model: str) -> Components:
    """The models that the options name. Reads no weights; raises what is wrong with the options."""
    from sdpy.pipelines import Components
    from sdpy.runtime.devices import place
    from sdpy.zoo.recognise import find_source
    from sdpy.zoo.variants import VOCABULARY

    given = {**options.weights, VOCABULARY: options.vocab_file}
    placement = place(options.cpu or (), options.device)
    execution = find_execution(options, placement)
    model = default_model if options.model is None else options.model
    found = find_source(model, options.data, given, options.prediction)
    return Components(
        variant=found.variant,
        placement=placement,
        files=found.files,
        checkpoints=found.checkpoints,
        execution=execution,
        # What is compiled is compiled for these very weights.
        keep=frozenset({"unet", "vae"} if execution.compiled else ()),
        notices=found.assumptions,
        textual_inversions=tuple(map(_read_embedding, options.embedding or ())),
        loras=tuple(find_lora(text) for text in options.lora or ()),
    )


def find_execution(options: CommonOptions, placement: Placement) -> Execution:
    """How the options say to compute. Sets what holds for the whole process."""
    import torch

    from sdpy.pipelines import Execution
    from sdpy.runtime.allocator import keep_freed_memory
    from sdpy.runtime.devices import find_dtype

    memory = options.memory.strip().lower()
    execution = Execution(
        dtype=find_dtype(options.dtype, placement),
        memory=memory if memory in ("auto", "low") else parse_size(memory),
        fast_kernels=options.fast_kernels,
        sliced_attention_size=options.sliced_attention_size,
        offload=options.offload,
        compiled=options.compile,
    )
    if options.offload and not placement.gpus:
        raise UsageError("--offload is for GPUs, but all models run on the CPU: leave it out")
    if options.compile and not placement.gpus:
        raise UsageError(
            "--compile is for GPUs, but all models run on the CPU, where --fast-kernels are "
            "faster: leave it out"
        )
    if options.compile and (options.offload or execution.memory == "low"):
        raise UsageError(
            "--compile needs weights that stay on the GPU: leave it out, or --offload and "
            "--memory low"
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.fast_kernels and execution.memory == "auto":
        keep_freed_memory()
    return execution


def _read_embedding(value: str) -> TextualInversion:
    """The textual inversion that ``PATH`` or ``NAME=PATH`` stands for."""
    from sdpy.checkpoints import read_textual_inversion

    name, equals, path = value.partition("=")
    if not equals or os.path.exists(value):
        return read_textual_inversion(Path(value))
    if not name.strip():
        raise UsageError(f"--embedding {value}: no name before the =; use NAME=PATH or PATH")
    return read_textual_inversion(Path(path), name.strip())


def find_lora(text: str) -> Lora:
    """The LoRA that ``PATH`` or ``PATH:WEIGHT`` names; a file may have a colon in its name."""
    from sdpy.checkpoints import Lora

    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return Lora(Path(text))
    try:
        share = float(weight)
    except ValueError:
        return Lora(Path(text))
    if not path or not math.isfinite(share):
        raise UsageError(f"--lora {text}: give a path, or a path, a colon and a finite number")
    return Lora(Path(path), share)


def painting_settings(
    prompt: str, options: CommonOptions, controls: Sequence[Control] = ()
) -> Settings:
    """The options that say what to paint and how."""
    from sdpy.pipelines import Settings

    return Settings(
        prompt=prompt,
        negative_prompt=options.negative_prompt,
        steps=options.n_steps,
        guidance_scale=options.guidance_scale,
        guidance_rescale=options.guidance_rescale,
        guidance_interval=read_interval(options.guidance_interval),
        seed=options.seed,
        num_samples=options.num_samples,
        scheduler=options.scheduler,
        timestep_spacing=options.timestep_spacing,
        sigmas=options.sigmas,
        eta=options.eta,
        prediction_type=options.prediction,
        prompt_syntax=options.prompt_syntax,
        long_prompt=options.long_prompt,
        clip_skip=options.clip_skip,
        controls=tuple(controls),
        approximations=find_approximations(options),
    )


def find_approximations(options: ApproximationOptions) -> tuple[Approximation, ...]:
    """The approximations that the options name.

    Raises:
        UsageError: an option that says nothing without another.
    """
    from sdpy.optimizations.approximate import DeepCache, TokenMerging

    chosen: list[Approximation] = []
    if options.deepcache is not None:
        branch = 0 if options.deepcache_branch is None else options.deepcache_branch
        chosen.append(DeepCache(options.deepcache, branch))
    elif options.deepcache_branch is not None:
        raise UsageError("--deepcache-branch says nothing without --deepcache")
    if options.token_merging is not None:
        chosen.append(TokenMerging(options.token_merging))
    return tuple(chosen)


def read_interval(text: str | None) -> tuple[float, float]:
    """The two shares that ``LO,HI`` names; all of it where nothing is said.

    Raises:
        UsageError: they are no two numbers.
    """
    if text is None:
        return (0.0, 1.0)
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise UsageError(
            f"--guidance-interval {text}: give two numbers with a comma, such as 0.2,0.8"
        ) from None
    return (low, high)


def fit_picture(
    size: tuple[int, int], components: Components, width: int | None, height: int | None
) -> Frame:
    """How a picture of ``size`` (width, height) becomes one that the models take, and back.

    Raises:
        ImageError: it is, or becomes, too small to paint on.
    """
    from sdpy.images.frame import Frame
    from sdpy.pipelines.paint import min_side

    return Frame.fit(
        size,
        multiple=components.variant.vae.downsample_factor,
        max_pixels=components.variant.max_pixels,
        min_side=min_side(components),
        width=width,
        height=height,
    )


def paint_to_files(
    events: Iterator[Event],
    components: Components,
    settings: Settings,
    options: CommonOptions,
    finish: Callable[[Image], Image] = lambda image: image,
) -> None:
    """Run a pipeline, write each picture as soon as it is painted, and print its path.

    Args:
        events: of the pipeline.
        components: the models that paint.
        settings: the pipeline's.
        options: the command's.
        finish: what is still to be done to a picture before it is written.
    """
    from sdpy.images.files import save_image
    from sdpy.images.paths import numbered_paths
    from sdpy.images.tensors import tensor_to_image

    paths = numbered_paths(options.final_image, options.num_samples)
    # Closed at once when writing fails, so that the bar is gone before the error is printed.
    with closing(follow(events, quiet=options.quiet)) as pictures:
        for painted in pictures:
            path = paths[painted.sample - 1]
            image = finish(tensor_to_image(painted.picture))
            save_image(image, path, describe(components, settings, painted.seed, image.size))
            if not options.quiet:
                print(path, flush=True)


def describe(components: Components, settings: Settings, seed: int, size: tuple[int, int]) -> str:
    """How a picture was painted, as other Stable Diffusion programs write it into PNG files."""
    from sdpy import __version__
    from sdpy.pipelines.paint import effective_guidance_scale

    lines = [settings.prompt]
    if settings.negative_prompt:
        lines.append(f"Negative prompt: {settings.negative_prompt}")
    sampler, sigmas = find_sampler(settings.scheduler)
    facts: dict[str, object] = {"Steps": settings.steps, "Sampler": sampler}
    if settings.sigmas is not None or sigmas is not None:
        facts["Schedule type"] = sigmas if settings.sigmas is None else settings.sigmas
    if settings.guidance_rescale > 0:
        facts["CFG Rescale"] = settings.guidance_rescale
    facts |= {
        "CFG scale": effective_guidance_scale(components, settings),
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": components.variant.name,
    }
    if settings.clip_skip != 1:
        facts["Clip skip"] = settings.clip_skip
    if settings.prompt_syntax == "plain":
        facts["Emphasis"] = "None"  # what A1111's web UI calls it
    if settings.long_prompt == "truncate":
        facts["Long prompt"] = "truncate"
    for i, lora in enumerate(components.loras):
        facts[f"LoRA {i}"] = f"{lora.path.name}:{lora.weight:g}"
    for i, control in enumerate(settings.controls):
        name, span = control.weights.name, f"{control.start:g}-{control.end:g}"
        facts[f"ControlNet {i}"] = f"{name}:{control.scale:g} {span}"
    if settings.guidance_interval != (0.0, 1.0):
        facts["Guidance interval"] = "{:g}-{:g}".format(*settings.guidance_interval)
    for approximation in settings.approximations:
        facts |= approximation.facts()
    facts["Version"] = f"sdpy {__version__}"
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return "\n".join(lines)
