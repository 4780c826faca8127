"""Options that several commands share, each declared once.

A command takes groups of options as dataclasses; `flatten` spreads them out for Typer. A field may
be a mapping, whose keys have an option each.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from sdpy.components import cpu_words, model_components

_SPREAD = "spread"
"""Key, in a field's metadata, of a function that gives the options of a mapping: by key, the name
of the parameter and its annotation."""


def flatten(command: Callable[..., None]) -> Callable[..., None]:
    """A function with the fields of ``command``'s dataclass parameters as its own parameters."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    spread: dict[str, dict[str, tuple[str, Any]]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        group = hints[name]
        if not dataclasses.is_dataclass(group):
            parameters.append(_keyword(name, group, parameter.default))
            continue
        groups[name] = group
        group_hints = get_type_hints(group, include_extras=True)
        for field in dataclasses.fields(group):
            if _SPREAD in field.metadata:
                spread[field.name] = field.metadata[_SPREAD]()
                parameters += [_keyword(*one, None) for one in spread[field.name].values()]
            else:
                parameters.append(_keyword(field.name, group_hints[field.name], field.default))

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        for name, options in spread.items():
            values[name] = {key: values.pop(parameter) for key, (parameter, _) in options.items()}
        for name, group in groups.items():
            fields = [field.name for field in dataclasses.fields(group)]
            values[name] = group(**{field: values.pop(field) for field in fields})
        command(**values)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del flat.__wrapped__
    return flat


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    if default is dataclasses.MISSING:
        default = inspect.Parameter.empty
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def either(words: Iterable[str]) -> str:
    """Words as a choice: "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


# Typer does not show the defaults of options that default to None; the help texts say them.
Prompt = Annotated[str, typer.Option("--prompt", "-p", help="What to paint.")]

Width = Annotated[int | None, typer.Option(min=1, max=8192, help="Width in pixels.")]
Height = Annotated[int | None, typer.Option(min=1, max=8192, help="Height in pixels.")]

Strength = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        callback=_finite,
        help="How much to change: the share of the steps that is walked.",
    ),
]

_PAINTING = "Painting"
_PROMPT = "Prompts"
_FASTER = "Faster, approximately"
_MODEL = "Model and weights"
_PLACE = "Where to compute"
_OUTPUT = "Output"


@dataclass(frozen=True)
class PaintingOptions:
    """How to paint."""

    negative_prompt: Annotated[
        str,
        typer.Option("--negative-prompt", "-n", help="What to avoid.", rich_help_panel=_PAINTING),
    ] = ""
    n_steps: Annotated[
        int,
        typer.Option("--n-steps", "--steps", min=1, help="Steps.", rich_help_panel=_PAINTING),
    ] = 30
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            callback=_finite,
            show_default="7.5; the demo model's is 4",
            help="How strongly to follow the prompt; 1 is without guidance and twice as fast.",
            rich_help_panel=_PAINTING,
        ),
    ] = None
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**63 - 1,
            metavar="INTEGER",
            help="Seed of the noise. Sample k, counted from 0, uses SEED + k.",
            rich_help_panel=_PAINTING,
        ),
    ] = 32
    num_samples: Annotated[
        int,
        typer.Option(min=1, max=100_000, help="Pictures to paint.", rich_help_panel=_PAINTING),
    ] = 1
    scheduler: Annotated[
        str,
        typer.Option(help="Sampler; 'sdpy schedulers' lists them.", rich_help_panel=_PAINTING),
    ] = "ddim"
    timestep_spacing: Annotated[
        str | None,
        typer.Option(
            show_default="the model's own",
            help="Timesteps to visit: leading, linspace or trailing; original for ddim.",
            rich_help_panel=_PAINTING,
        ),
    ] = None
    sigmas: Annotated[
        str | None,
        typer.Option(
            show_default="those of the timesteps",
            help="Noise levels to visit: karras, exponential, beta, sgm-uniform, simple or ays.",
            rich_help_panel=_PAINTING,
        ),
    ] = None
    eta: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            callback=_finite,
            show_default="ddim 0, tcd 0.3",
            help="Noise that ddim and tcd add at each step: 0 none, 1 for ddim as much as ddpm.",
            rich_help_panel=_PAINTING,
        ),
    ] = None
    guidance_rescale: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            callback=_finite,
            help="How far to undo the contrast that guidance adds.",
            rich_help_panel=_PAINTING,
        ),
    ] = 0.0
    prediction: Annotated[
        str | None,
        typer.Option(
            show_default="the model's own",
            help="What the UNet predicts: epsilon, v_prediction or sample.",
            rich_help_panel=_PAINTING,
        ),
    ] = None
    prompt_syntax: Annotated[
        str,
        typer.Option(
            help="weighted: as in A1111's web UI, (word), (word:1.3) and \\[word] weigh a word by "
            "1.1, 1.3 and 1/1.1, \\( is a bracket, BREAK starts a new chunk. plain: all is text.",
            rich_help_panel=_PROMPT,
        ),
    ] = "weighted"
    long_prompt: Annotated[
        str,
        typer.Option(
            help="What to do with more than 75 tokens: chunk reads 75 at a time, truncate leaves "
            "out the rest and says what that is, error refuses.",
            rich_help_panel=_PROMPT,
        ),
    ] = "chunk"
    clip_skip: Annotated[
        int,
        typer.Option(
            min=1,
            help="Layer of the text encoder to use: 1 is the last, 2 the last but one (as in "
            "A1111's web UI; diffusers calls these 0 and 1).",
            rich_help_panel=_PROMPT,
        ),
    ] = 1
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PATH",
            show_default="none",
            help="Textual inversion, for use in prompts by its file's name or by NAME. Repeat for "
            "more.",
            rich_help_panel=_PROMPT,
        ),
    ] = None


@dataclass(frozen=True)
class ApproximationOptions:
    """What may be computed less exactly. By default nothing is."""

    deepcache: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            show_default="off",
            help="DeepCache: evaluate the whole UNet every N-th time, and only its outermost "
            "layers in between; 2 to 5.",
            rich_help_panel=_FASTER,
        ),
    ] = None
    deepcache_branch: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default="0",
            help="How many layers of the way down count as outermost; more are slower and nearer "
            "to exact.",
            rich_help_panel=_FASTER,
        ),
    ] = None
    token_merging: Annotated[
        float | None,
        typer.Option(
            metavar="RATIO",
            min=0.0,
            max=0.75,
            callback=_finite,
            show_default="off",
            help="Share of the tokens that self-attention merges, at the highest resolution.",
            rich_help_panel=_FASTER,
        ),
    ] = None
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            metavar="LO,HI",
            show_default="0,1",
            help="Shares of the steps between which there is guidance; the other steps take half "
            "the work. 0.2,0.8 leaves out the first and the last fifth.",
            rich_help_panel=_FASTER,
        ),
    ] = None


def _weights_options() -> dict[str, tuple[str, Any]]:
    """The options that name the weights of components."""
    options: dict[str, tuple[str, Any]] = {}
    for component in model_components():
        if component.option is not None:
            option = typer.Option(
                component.option,
                show_default=f"{component.data_files[0]} in DATA",
                help=component.option_help,
                rich_help_panel=_MODEL,
            )
            parameter = component.option.lstrip("-").replace("-", "_")
            options[component.name] = parameter, Annotated[Path | None, option]
    return options


@dataclass(frozen=True)
class ModelOptions:
    """Which weights to use."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            show_default="sd15",
            help="A variant (sd15, sd15-inpaint, sd21, sd21-base, sd2-inpaint, sd-turbo; or demo, "
            "which is small and comes with sdpy), or the path of a diffusers folder or of a single "
            "file, .safetensors or .ckpt.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    data: Annotated[Path, typer.Option(help="Folder of the weights.", rich_help_panel=_MODEL)] = (
        Path("data")
    )
    weights: Mapping[str, Path | None] = dataclasses.field(
        default_factory=dict, metadata={_SPREAD: _weights_options}
    )
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH[:WEIGHT]",
            show_default="none",
            help="LoRA to merge, and how much of it, 1 unless said. Repeat for several.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    vocab_file: Annotated[
        Path | None,
        typer.Option(
            show_default="bpe_simple_vocab_16e6.txt in DATA",
            help="CLIP's byte-pair merges, plain or .gz.",
            rich_help_panel=_MODEL,
        ),
    ] = None


@dataclass(frozen=True)
class PlaceOptions:
    """Where to compute."""

    cpu: Annotated[
        list[str] | None,
        typer.Option(
            show_default="none",
            help=f"Models to run on the CPU: {either(cpu_words())}. Repeat, or separate by commas.",
            rich_help_panel=_PLACE,
        ),
    ] = None
    device: Annotated[
        str | None,
        typer.Option(
            show_default="the GPU if there is one",
            help="Device of the other models: cuda, cuda:1, mps, cpu.",
            rich_help_panel=_PLACE,
        ),
    ] = None
    dtype: Annotated[
        str,
        typer.Option(
            metavar="fp32|fp16|bf16|auto",
            help="Numbers that the models compute in. fp16 is for GPUs, bf16 for processors and "
            "GPUs that have it; both take half of the memory and change the picture a little. "
            "auto: fp16 on a GPU.",
            rich_help_panel=_PLACE,
        ),
    ] = "fp32"
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            show_default="one a core",
            help="Threads to compute with on the CPU.",
            rich_help_panel=_PLACE,
        ),
    ] = None
    memory: Annotated[
        str,
        typer.Option(
            metavar="auto|low|SIZE",
            help="Memory to take. auto: what is free, of the machine, of a container, of the GPU; "
            "where that is too little, the decoder works in strips and weights are read anew at "
            "each step, as is said. low: as little as possible. SIZE: so much, such as 4G.",
            rich_help_panel=_PLACE,
        ),
    ] = "auto"
    sliced_attention_size: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default="off",
            help="Compute attention in slices of so many heads, in less memory; 0 is automatic.",
            rich_help_panel=_PLACE,
        ),
    ] = None
    offload: Annotated[
        bool,
        typer.Option(
            "--offload",
            help="Keep models in main memory, and on the GPU only while they run.",
            rich_help_panel=_PLACE,
        ),
    ] = False
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile UNet and autoencoder for the GPU with torch.compile, which takes minutes "
            "once: for many pictures of one size.",
            rich_help_panel=_PLACE,
        ),
    ] = False
    fast_kernels: Annotated[
        bool,
        typer.Option(
            "--fast-kernels/--plain-kernels",
            help="Compute convolutions and others in faster ways on the CPU; the numbers are the "
            "same but for rounding.",
            rich_help_panel=_PLACE,
        ),
    ] = True


@dataclass(frozen=True)
class OutputOptions:
    """Where the pictures go."""

    final_image: Annotated[
        Path,
        typer.Option(
            "--final-image",
            "--output",
            "-o",
            help="File to write: .png, .jpg or .webp. Several samples are numbered, as in "
            "sd_final.1.png.",
            rich_help_panel=_OUTPUT,
        ),
    ] = Path("sd_final.png")
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=_OUTPUT),
    ] = False


# Fields are collected from the last base to the first.
@dataclass(frozen=True)
class CommonOptions(
    OutputOptions, PlaceOptions, ModelOptions, ApproximationOptions, PaintingOptions
):
    """What every painting command takes."""
