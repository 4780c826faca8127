"""Which model to load and how it computes: options, and the session that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdpy.components import cpu_words
from sdpy.errors import UsageError
from sdpy.options import check_ranges, either, option

if TYPE_CHECKING:  # at run time these would import torch before the command line needs it
    from sdpy.runtime.devices import Placement
    from sdpy.runtime.execution import Execution
    from sdpy.runtime.session import Session

_MODEL = "Model and weights"
_PLACE = "Where to compute"

DEFAULT_MODEL = "sd15"

VARIANT_HELP = "Which weights to take of a diffusers folder that has several: fp16, bf16, non_ema."
EMA_HELP = "Take the averaged weights (EMA) of the UNet where a checkpoint has both."


def read_words(value: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """One or several words, each entry one of them or several separated by commas."""
    return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Where and how the models compute."""

    cpu: tuple[str, ...] = option(
        (),
        "--cpu",
        help=f"Models to run on the CPU: {either(cpu_words())}. Repeat, or separate by commas.",
        panel=_PLACE,
        metavar="MODEL",
        shown_default="none",
        cli_type=list[str],
        parse=read_words,
    )
    device: str | None = option(
        None,
        "--device",
        help="Device of the other models: cuda, cuda:1, mps, cpu.",
        panel=_PLACE,
        shown_default="the GPU if there is one",
    )
    dtype: str | None = option(
        None,
        "--dtype",
        help="Precision that the models compute in. fp16 is for GPUs, bf16 for processors and "
        "GPUs that have it; both take half of the memory and change the image a little. "
        "auto: fp16 on a GPU.",
        panel=_PLACE,
        shown_default="fp32",
        metavar="DTYPE",
    )
    threads: int | None = option(
        None,
        "--threads",
        help="Threads to compute with on the CPU.",
        panel=_PLACE,
        shown_default="one for each core that this process may use",
        minimum=1,
        maximum=1024,
    )
    memory: str = option(
        "auto",
        "--memory",
        help="Memory to take. auto: what is free, of the machine, of a container, of the GPU; "
        "where that is too little, the decoder works in tiles and weights are read anew at "
        "each step, and a line says so. low: as little as possible. SIZE: so much, such as 4G.",
        panel=_PLACE,
        metavar="SIZE",
    )
    sliced_attention_size: int | None = option(
        None,
        "--sliced-attention-size",
        help="Compute attention in slices of so many heads, in less memory; 0 is automatic.",
        panel=_PLACE,
        shown_default="off",
        minimum=0,
    )
    offload: bool = option(
        False,
        "--offload",
        help="Keep models in main memory, and on the GPU only while they run.",
        panel=_PLACE,
    )
    compile: bool = option(
        False,
        "--compile",
        help="Compile UNet and autoencoder for the GPU with torch.compile, which may take minutes "
        "the first time: for many images.",
        panel=_PLACE,
    )
    cuda_graphs: bool = option(
        False,
        "--cuda-graphs",
        help="Launch all that a step does on the GPU as one CUDA graph, which keeps the memory of "
        "a step; --compile does so, too.",
        panel=_PLACE,
    )
    fast_kernels: bool = option(
        True,
        "--fast-kernels/--plain-kernels",
        help="Compute convolutions and others in faster ways on the CPU; the numbers are the "
        "same but for rounding.",
        panel=_PLACE,
    )


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ComputeOptions):
    """Which model, and where and how it computes."""

    model: str | None = option(
        None,
        "--model",
        "-m",
        help="A variant (sd15, sd15-inpaint, sd20, sd21, sd21-base, sd2-inpaint, sd-turbo, sdxl, "
        "sdxl-inpaint, sdxl-turbo, sdxl-lightning, sdxl-lcm, sdxl-refiner, ssd-1b, segmind-vega; "
        "or demo, "
        "which is small and comes with sdpy), or the path of a diffusers folder or of a single "
        "file, .safetensors or .ckpt.",
        panel=_MODEL,
        shown_default=DEFAULT_MODEL,
    )
    refiner: str | None = option(
        None,
        "--refiner",
        help="A second model that does the last steps, such as sdxl-refiner; a name or path as of "
        "--model.",
        panel=_MODEL,
        shown_default="none",
    )
    data: Path = option(Path("data"), "--data", help="Folder of the weights.", panel=_MODEL)
    weights: Mapping[str, Path] = option(
        None, help="Files of single components, by their names in the table.", panel=_MODEL
    )
    vocab_file: Path | None = option(
        None,
        "--vocab-file",
        help="CLIP's byte-pair merges, plain or .gz.",
        panel=_MODEL,
        shown_default="bpe_simple_vocab_16e6.txt in DATA",
    )
    variant: str | None = option(
        None,
        "--variant",
        help=VARIANT_HELP,
        panel=_MODEL,
        shown_default="those without one",
    )
    ema: bool = option(
        False,
        "--ema",
        help=EMA_HELP,
        panel=_MODEL,
    )
    prediction_type: str | None = option(
        None,
        "--prediction-type",
        "--prediction",
        help="What the UNet predicts: epsilon, v_prediction or sample.",
        panel=_MODEL,
        shown_default="the model's own",
    )


def open_session(
    options: ModelOptions, *, default_model: str = DEFAULT_MODEL, keep_models: bool = True
) -> Session:
    """The session that some options ask for. Reads headers of files, but no weights.

    Sets the number of threads, and how freed memory is kept, which hold for the whole process.

    Args:
        options: of the model and how it computes.
        default_model: where the options name none.
        keep_models: see `Session`.

    Raises:
        UsageError: an option that cannot work here.
        WeightsError: a file that is missing, broken or of the wrong kind.
    """
    import torch

    from sdpy.runtime.allocator import keep_freed_memory
    from sdpy.runtime.devices import place
    from sdpy.runtime.session import Session
    from sdpy.runtime.threads import limit_threads
    from sdpy.zoo.find import find_source

    check_ranges(options)
    placement = place(options.cpu, options.device)
    execution = make_execution(options, placement)
    given: dict[str, Path | None] = dict(options.weights or {})
    given["vocabulary"] = options.vocab_file
    model = default_model if options.model is None else options.model
    source = find_source(
        model,
        options.data,
        given,
        options.prediction_type,
        variant=options.variant,
        ema=options.ema,
    )
    if options.prediction_type is not None:
        noise = replace(source.variant.noise, prediction_type=options.prediction_type)
        source = replace(source, variant=replace(source.variant, noise=noise))
    if options.threads is None:
        limit_threads()
    else:
        torch.set_num_threads(options.threads)
    if options.fast_kernels and execution.memory == "auto":
        keep_freed_memory()
    asked = replace(options, model=model)
    refiner = None
    if options.refiner is not None:
        vocabulary = {"vocabulary": options.vocab_file}
        second = find_source(options.refiner, options.data, vocabulary)
        refiner = Session(second, placement, execution, keep_models=keep_models)
    return Session(
        source, placement, execution, keep_models=keep_models, options=asked, refiner=refiner
    )


def make_execution(options: ComputeOptions, placement: Placement) -> Execution:
    """How the options say to compute, on these devices.

    Raises:
        UsageError: an option that cannot work on them, or with another.
    """
    from sdpy.runtime.devices import find_dtype
    from sdpy.runtime.execution import Execution
    from sdpy.runtime.memory import parse_size

    memory = options.memory.strip().lower()
    execution = Execution(
        dtype=find_dtype("fp32" if options.dtype is None else options.dtype, placement),
        memory=memory if memory in ("auto", "low") else parse_size(memory),
        fast_kernels=options.fast_kernels,
        sliced_attention_size=options.sliced_attention_size,
        offload=options.offload,
        compile=options.compile,
        cuda_graphs=options.cuda_graphs,
    )
    if options.offload and not placement.gpus:
        raise UsageError("--offload is for GPUs, but all models run on the CPU: leave it out")
    if options.compile and not placement.gpus:
        raise UsageError(
            "--compile is for GPUs, but all models run on the CPU, where --fast-kernels are "
            "faster: leave it out"
        )
    if options.cuda_graphs and not any(gpu.type == "cuda" for gpu in placement.gpus):
        raise UsageError("--cuda-graphs is for GPUs that have CUDA: leave it out")
    for asked, name in ((options.compile, "--compile"), (options.cuda_graphs, "--cuda-graphs")):
        if asked and (options.offload or execution.memory == "low"):
            raise UsageError(
                f"{name} needs weights that stay on the GPU: leave it out, or --offload and "
                "--memory low"
            )
    return execution
