"""What ``bench.py`` measures, each in a process of its own.

    python scripts/bench_workers.py JOB.json

``JOB.json`` holds the fields of `Job`. The task's result goes to the JSON file that it names.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sdpy.benchmark import inputs
from sdpy.benchmark.timing import Evaluate, measure

GUIDANCE_SCALE = 7.5
TIMESTEP_SPACING = "leading"  # which both programs know

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""torch's names, and sdpy's."""

FORMATS = ("contiguous", "channels_last")
"""Memory formats of diffusers' models."""


@dataclass(frozen=True)
class Job:
    """What one process is to do.

    Attributes:
        task: a key of `TASKS`.
        size: a key of `sizes`.
        folder: of the weights, as diffusers lays them out.
        width, height: of the picture, in pixels.
        steps: of the whole picture.
        result: JSON file to write.
        phase: one of `sdpy.benchmark.figures.TITLES`, for tasks that do one.
        sdpy_model: what sdpy reads instead of ``folder``; None for nothing else.
        evaluations: timed ones of a phase.
        dtype: a name of torch's.
        device: of all models.
        formats: one of `FORMATS` for diffusers' ``unet`` and ``vae`` each.
        fast_kernels: of sdpy.
        compiled: whether sdpy compiles, too.
        options: more arguments of sdpy's command line.
        started: by the clock of `now`, before the process began.
        output: NumPy file or picture to write; None for none.
    """

    task: str
    size: str
    folder: str
    width: int
    height: int
    steps: int
    result: str
    phase: str = ""
    sdpy_model: str | None = None
    evaluations: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    formats: dict[str, str] = field(default_factory=dict)
    fast_kernels: bool = True
    compiled: bool = False
    options: list[str] = field(default_factory=list)
    started: float = 0.0
    output: str | None = None

    @property
    def model(self) -> str:
        """What sdpy reads."""
        return self.folder if self.sdpy_model is None else self.sdpy_model

    def write(self, path: Path) -> None:
        """Write the job for `main`."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def now() -> float:
    """Seconds by a clock that is the same in all processes of the machine."""
    if hasattr(time, "CLOCK_MONOTONIC"):
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.time()


# --- the weights and the yardstick ----------------------------------------------------------------


def sizes() -> dict[str, Any]:
    """The variants that can be measured; imports torch."""
    from sdpy.models import AutoencoderKLConfig, CLIPTextConfig, UNet2DConditionConfig
    from sdpy.zoo.variants import SD15

    tiny = replace(SD15, sample_size=64).with_configs(
        text_encoder=CLIPTextConfig(
            vocab_size=600,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
        ),
        # Heads and groups are those that sdpy assumes where no config.json tells them.
        unet=UNet2DConditionConfig(
            block_out_channels=(16, 24),
            cross_attention=(True, False),
            attention_heads=(8, 8),
            layers_per_block=1,
            cross_attention_dim=32,
            norm_num_groups=8,
        ),
        vae=AutoencoderKLConfig(
            block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=8
        ),
    )
    return {"sd15": SD15, "tiny": tiny}


def prepare(job: Job) -> dict[str, Any]:
    """Write the random weights where there are none yet, and count the arithmetic."""
    import torch

    from sdpy.benchmark.arithmetic import count_flops
    from sdpy.benchmark.weights import write_random_model

    variant = sizes()[job.size]
    write_random_model(Path(job.folder), variant)
    if job.sdpy_model is not None:
        _write_ot(Path(job.folder), variant, Path(job.sdpy_model))
    factor = variant.vae.downsample_factor
    latent_size = (job.height // factor, job.width // factor)
    flops = count_flops(variant.text_encoder, variant.unet, variant.vae, latent_size)
    return {"flops": flops, "torch": torch.__version__, "threads": torch.get_num_threads()}


def _write_ot(folder: Path, variant: Any, target: Path) -> None:
    from sdpy.benchmark.weights import model_files
    from sdpy.checkpoints import read_checkpoint, write_checkpoint

    target.mkdir(exist_ok=True)
    files = model_files(folder, variant)
    for component, source in files.weights.items():
        path = target / variant.files.of(component)[0]
        if not path.exists():
            write_checkpoint(path, read_checkpoint(source).tensors)
    text = files.vocabulary.read_text(encoding="utf-8")
    (target / "bpe_simple_vocab_16e6.txt").write_text(text, encoding="utf-8")


def matrix_product(job: Job) -> dict[str, Any]:
    """The yardstick: this machine's own matrix product."""
    import torch

    from sdpy.benchmark.arithmetic import MATRIX_SIZE, matrix_product_rate

    size = 256 if job.size == "tiny" else MATRIX_SIZE
    return {"rate": matrix_product_rate(getattr(torch, job.dtype), job.device, size=size)}


def _measured(job: Job, phase: Callable[[int], Any]) -> dict[str, Any]:
    """Measure a phase that is told how many evaluations there will be, and the yardstick."""
    import numpy as np

    measurement = measure(phase(1 + job.evaluations), job.evaluations)
    if job.output is not None:
        np.save(job.output, measurement.output.float().numpy())
    return {
        "load": measurement.load,
        "first": measurement.first,
        "times": measurement.times,
        "peak": measurement.peak.bytes,
        "peak_method": measurement.peak.method,
        **matrix_product(job),
    }


# --- sdpy -----------------------------------------------------------------------------------------


def sdpy_phase(job: Job) -> dict[str, Any]:
    """One phase, on models that sdpy's `Components` have loaded."""
    from sdpy.benchmark.phases import PHASES, Subject
    from sdpy.pipelines import Execution
    from sdpy.runtime.allocator import keep_freed_memory
    from sdpy.runtime.devices import place
    from sdpy.zoo.recognise import find_source

    subject = Subject(
        find_source(job.model, Path(job.folder)),
        job.width,
        job.height,
        placement=place(device=job.device),
        execution=Execution(
            dtype=_dtype(job), fast_kernels=job.fast_kernels, compiled=job.compiled
        ),
        timestep_spacing=TIMESTEP_SPACING,
    )
    if job.fast_kernels:
        keep_freed_memory()  # as the command does
    return _measured(job, lambda evaluations: PHASES[job.phase](subject, evaluations))


def sdpy_arguments(job: Job, output: str) -> list[str]:
    """Of the command that paints the whole picture."""
    return [
        *("generate", inputs.PROMPT, "--negative-prompt", inputs.NEGATIVE_PROMPT),
        *("--model", job.model, "--seed", str(inputs.SEED), "--n-steps", str(job.steps)),
        *("--width", str(job.width), "--height", str(job.height), "--device", job.device),
        *("--guidance-scale", str(GUIDANCE_SCALE), "--timestep-spacing", TIMESTEP_SPACING),
        *("--dtype", DTYPES[job.dtype]),
        "--fast-kernels" if job.fast_kernels else "--plain-kernels",
        *(["--compile"] if job.compiled else []),
        *("-o", output, "--quiet", *job.options),
    ]


def sdpy_load(job: Job) -> dict[str, Any]:
    """The command, until the UNet's first step begins."""
    from sdpy.cli.app import run

    with _until_first_step(job) as result:
        run(sdpy_arguments(job, output=f"{job.result}.png"))
    return result


# --- diffusers ------------------------------------------------------------------------------------


def diffusers_phase(job: Job) -> dict[str, Any]:
    """One phase, done as diffusers' pipeline does it."""
    return _measured(job, lambda evaluations: _diffusers(job, evaluations))


def compiled_phase(job: Job) -> dict[str, Any]:
    """The same with ``torch.compile`` and frozen weights; the first evaluation compiles."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    inductor.force_disable_caches = True  # a second run is to compile too
    return _measured(job, lambda evaluations: _diffusers(job, evaluations, _compile))


def diffusers_formats(job: Job) -> dict[str, Any]:
    """Seconds of a UNet step and a decoding in each memory format: the better of two, in turn."""
    seconds: dict[str, dict[str, float]] = {}
    for name, phase in (("unet", "unet"), ("vae", "decode")):
        times: dict[str, list[float]] = {one: [] for one in FORMATS}
        load, make_evaluation = _PARTS[phase]
        model = load(job)
        evaluate = make_evaluation(model, job, 4)
        for one in (*FORMATS, *FORMATS):
            _to_format(model, one)
            started = time.perf_counter()
            evaluate()
            times[one].append(time.perf_counter() - started)
        seconds[name] = {one: min(taken) for one, taken in times.items()}
    return {"seconds": seconds}


def diffusers_load(job: Job) -> dict[str, Any]:
    """The pipeline, until the UNet's first step begins."""
    with _until_first_step(job) as result:
        _paint_with_diffusers(job)
    return result


def diffusers_generate(job: Job) -> dict[str, Any]:
    """The whole picture, from loading the pipeline to writing the file."""
    _paint_with_diffusers(job).save(job.output)
    return {}


def _paint_with_diffusers(job: Job) -> Any:
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(job.folder, **_dtype_option(job))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(job.device)
    for name, one in job.formats.items():
        _to_format(getattr(pipeline, name), one)
    return pipeline(
        inputs.PROMPT,
        negative_prompt=inputs.NEGATIVE_PROMPT,
        width=job.width,
        height=job.height,
        num_inference_steps=job.steps,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(inputs.SEED),
    ).images[0]


@contextmanager
def _diffusers(
    job: Job, evaluations: int, adapt: Callable[[Any], Any] = lambda model: model
) -> Iterator[Evaluate]:
    load, make_evaluation = _PARTS[job.phase]
    model = load(job)
    part = "vae" if job.phase in ("decode", "encode") else job.phase
    if part in job.formats:
        _to_format(model, job.formats[part])
    yield make_evaluation(adapt(model), job, evaluations)


def _load_text_encoder(job: Job) -> Any:
    from transformers import CLIPTextModel

    model = CLIPTextModel.from_pretrained(f"{job.folder}/text_encoder")
    return model.eval().to(job.device, _dtype(job))


def _load_unet(job: Job) -> Any:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_pretrained(f"{job.folder}/unet", **_dtype_option(job))
    return model.eval().to(job.device)


def _load_vae(job: Job) -> Any:
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(f"{job.folder}/vae", **_dtype_option(job))
    return model.eval().to(job.device)


def _text_encoding(model: Any, job: Job, evaluations: int) -> Evaluate:
    import torch
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(f"{job.folder}/tokenizer")

    @torch.no_grad()
    def embed(text: str) -> Any:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids = tokenizer(text, max_length=tokenizer.model_max_length, **options).input_ids
        return model(ids.to(job.device))[0]

    # Its pipeline encodes the two prompts one after the other.
    return lambda: torch.cat([embed(inputs.NEGATIVE_PROMPT), embed(inputs.PROMPT)]).float().cpu()


def _unet_step(model: Any, job: Job, evaluations: int) -> Evaluate:
    import torch
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_pretrained(f"{job.folder}/scheduler")
    scheduler.set_timesteps(evaluations)
    timesteps = iter(scheduler.timesteps)
    config, text = model.config, sizes()[job.size].text_encoder
    options = {"device": job.device, "dtype": _dtype(job)}
    context = inputs.prompt_embeddings(text.max_position_embeddings, config.cross_attention_dim)
    context = context.to(**options)
    latents = inputs.noise(_latent_shape(job)).to(**options)

    @torch.no_grad()
    def evaluate() -> Any:
        nonlocal latents
        timestep = next(timesteps)
        sample = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
        prediction = model(sample, timestep, encoder_hidden_states=context).sample
        negative, positive = prediction.chunk(2)
        guided = negative + GUIDANCE_SCALE * (positive - negative)
        latents = scheduler.step(guided, timestep, latents).prev_sample
        latents.cpu()  # waits for a GPU
        return prediction.float().cpu()

    return evaluate


def _decoding(model: Any, job: Job, evaluations: int) -> Evaluate:
    import torch

    latents = inputs.noise(_latent_shape(job)).to(job.device, _dtype(job))

    @torch.no_grad()
    def evaluate() -> Any:
        return model.decode(latents / model.config.scaling_factor).sample.float().cpu()

    return evaluate


def _encoding(model: Any, job: Job, evaluations: int) -> Evaluate:
    import torch

    picture = inputs.picture(job.width, job.height).to(job.device, _dtype(job))

    @torch.no_grad()
    def evaluate() -> Any:
        distribution = model.encode(picture).latent_dist
        return torch.cat([distribution.mean, distribution.std]).float().cpu()

    return evaluate


_PARTS: dict[str, tuple[Callable[[Job], Any], Callable[[Any, Job, int], Evaluate]]] = {
    "text": (_load_text_encoder, _text_encoding),
    "unet": (_load_unet, _unet_step),
    "decode": (_load_vae, _decoding),
    "encode": (_load_vae, _encoding),
}


def _compile(model: Any) -> Any:
    import torch

    if hasattr(model, "decoder"):
        model.encoder, model.decoder = torch.compile(model.encoder), torch.compile(model.decoder)
        return model
    return torch.compile(model)


def _to_format(model: Any, name: str) -> None:
    import torch

    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    model.to(memory_format=layouts[name])


def _latent_shape(job: Job) -> tuple[int, int, int, int]:
    vae = sizes()[job.size].vae
    factor = vae.downsample_factor
    return 1, vae.latent_channels, job.height // factor, job.width // factor


def _dtype(job: Job) -> Any:
    import torch

    return getattr(torch, job.dtype)


def _dtype_option(job: Job) -> dict[str, Any]:
    """For ``from_pretrained``; newer versions warn of its name, and float32 is the default."""
    return {} if job.dtype == "float32" else {"torch_dtype": _dtype(job)}


# --- both -----------------------------------------------------------------------------------------


class FirstStep(BaseException):
    """The UNet has begun to compute. Not an `Exception`: the command line would report that."""


@contextmanager
def _until_first_step(job: Job) -> Iterator[dict[str, Any]]:
    """End the block when a UNet computes for the first time, and tell the seconds until then.

    That is when the first layer inside it is called: what is prepared when the UNet itself is
    called for the first time belongs to loading.
    """
    from torch.nn.modules.module import register_module_forward_pre_hook

    result: dict[str, Any] = {}
    unets: list[Any] = []

    def stop(module: Any, args: Any) -> None:
        if type(module).__name__ == "UNet2DConditionModel":  # in both programs
            unets.append(module)
        elif unets:
            result["times"] = [now() - job.started]
            raise FirstStep

    hook = register_module_forward_pre_hook(stop)
    try:
        yield result
    except FirstStep:
        return
    finally:
        hook.remove()
    raise RuntimeError("no step of the UNet has begun")


TASKS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "prepare": prepare,
    "matrix product": matrix_product,
    "sdpy phase": sdpy_phase,
    "sdpy load": sdpy_load,
    "diffusers phase": diffusers_phase,
    "diffusers formats": diffusers_formats,
    "diffusers load": diffusers_load,
    "diffusers generate": diffusers_generate,
    "compiled phase": compiled_phase,
}


def main(path: Path) -> None:
    """Do the job in a file."""
    job = Job(**json.loads(path.read_text(encoding="utf-8")))
    result = TASKS[job.task](job)
    Path(job.result).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
