"""The phases done by diffusers, as its own pipeline does them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.bench.jobs import FORMATS, Job
from scripts.bench.measuring import (
    as_tensor,
    latent_shape,
    measure_phase,
    torch_dtype,
    until_first_step,
)
from scripts.bench.models import sizes
from sdpy.benchmark import inputs
from sdpy.benchmark.timing import Evaluate


def diffusers_phase(job: Job) -> dict[str, Any]:
    """Measure one phase."""
    return measure_phase(job, lambda evaluations: _diffusers(job, evaluations))


def compiled_phase(job: Job) -> dict[str, Any]:
    """Measure it with ``torch.compile`` and frozen weights; the first evaluation compiles."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    inductor.force_disable_caches = True  # a second run is to compile as well
    return measure_phase(job, lambda evaluations: _diffusers(job, evaluations, _compile))


def diffusers_formats(job: Job) -> dict[str, Any]:
    """Measure a UNet step and a decoding in each memory format: the better of two, in turn."""
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
    """Run the pipeline until the UNet's first step begins."""
    with until_first_step(job) as result:
        _generate(job, _load_pipeline(job))
    return result


def diffusers_generate(job: Job) -> dict[str, Any]:
    """Generate a whole image, from loading the pipeline to writing the file."""
    _generate(job, _load_pipeline(job))[0].save(job.output)
    return {}


def diffusers_images(job: Job) -> dict[str, Any]:
    """Generate the same images several times, with the models loaded."""
    return measure_phase(job, lambda evaluations: _images(job))


@contextmanager
def _images(job: Job) -> Iterator[Evaluate]:
    import torch

    pipeline = _load_pipeline(job)
    if job.way == "compiled":
        options: dict[str, Any] = {"mode": "reduce-overhead", "fullgraph": True}
        pipeline.unet = torch.compile(pipeline.unet, **options)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, **options)
    yield lambda: as_tensor(_generate(job, pipeline))


def _generate(job: Job, pipeline: Any) -> Any:
    import torch

    # As in sdpy, each image has a generator of its own.
    seeds = range(inputs.SEED, inputs.SEED + job.images)
    return pipeline(
        inputs.PROMPT,
        negative_prompt=inputs.NEGATIVE_PROMPT,
        width=job.width,
        height=job.height,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance_scale,
        num_images_per_prompt=job.images,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    ).images


def _load_pipeline(job: Job) -> Any:
    from diffusers import AutoencoderTiny, DiffusionPipeline

    parts = {}
    if job.tiny_vae:
        parts["vae"] = AutoencoderTiny.from_pretrained(job.tiny_vae_folder, **_dtype_option(job))
    pipeline = DiffusionPipeline.from_pretrained(job.folder, **parts, **_dtype_option(job))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.watermark = None  # that of Stable Diffusion XL where a package for it is installed
    pipeline.to(job.device)
    for name, one in job.formats.items():
        _to_format(getattr(pipeline, name), one)
    return pipeline


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


def _load_text_encoders(job: Job) -> Any:
    """A pipeline of nothing else."""
    from diffusers import DiffusionPipeline

    none = dict.fromkeys(("unet", "vae"))
    pipeline = DiffusionPipeline.from_pretrained(job.folder, **none, **_dtype_option(job))
    return pipeline.to(job.device)


def _load_unet(job: Job) -> Any:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_pretrained(f"{job.folder}/unet", **_dtype_option(job))
    return model.eval().to(job.device)


def _load_vae(job: Job) -> Any:
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(f"{job.folder}/vae", **_dtype_option(job))
    if job.dtype == "float16" and model.config.force_upcast:
        model.float()  # as the pipeline does
    return model.eval().to(job.device)


def _text_encoding(model: Any, job: Job, evaluations: int) -> Evaluate:
    import torch

    @torch.no_grad()
    def evaluate() -> Any:
        made = model.encode_prompt(
            inputs.PROMPT,
            device=job.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=inputs.NEGATIVE_PROMPT,
        )
        # The prompt's and the negative prompt's embeddings, then pooled ones if there are any.
        rows = (torch.cat([x.flatten(1) for x in some], dim=1) for some in (made[1::2], made[::2]))
        return torch.cat(list(rows)).float().cpu()

    return evaluate


def _unet_step(model: Any, job: Job, evaluations: int) -> Evaluate:
    import torch

    scheduler = _scheduler(job)
    scheduler.set_timesteps(evaluations)
    timesteps = iter(scheduler.timesteps)
    rows = 2 if job.guidance_scale != 1 else 1
    config, text = model.config, sizes()[job.size].text_encoder
    options = {"device": job.device, "dtype": torch_dtype(job)}
    context = inputs.prompt_embeddings(text.max_position_embeddings, config.cross_attention_dim)
    context = context[-rows:].to(**options)
    told = _added_conditions(model, job, rows)
    latents = (inputs.noise(latent_shape(job)) * scheduler.init_noise_sigma).to(**options)

    @torch.no_grad()
    def evaluate() -> Any:
        nonlocal latents
        timestep = next(timesteps)
        sample = scheduler.scale_model_input(torch.cat([latents] * rows), timestep)
        prediction = model(
            sample, timestep, encoder_hidden_states=context, added_cond_kwargs=told
        ).sample
        negative, positive = prediction[:1], prediction[-1:]
        guided = negative + job.guidance_scale * (positive - negative)
        latents = scheduler.step(guided, timestep, latents).prev_sample
        latents.cpu()  # waits for a GPU
        return prediction.float().cpu()

    return evaluate


def _scheduler(job: Job) -> Any:
    """The model's own."""
    import diffusers

    folder = Path(job.folder) / "scheduler"
    config = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
    return getattr(diffusers, config["_class_name"]).from_pretrained(folder)


def _added_conditions(model: Any, job: Job, rows: int) -> dict[str, Any] | None:
    """What the UNet is told beside time and prompt: pooled embeddings and the image's own sizes."""
    import torch

    pooled_dim = sizes()[job.size].pooled_dim
    if model.config.addition_embed_type is None or pooled_dim is None:
        return None
    options = {"device": job.device, "dtype": torch_dtype(job)}
    size = [job.height, job.width]
    time_ids = torch.tensor([[*size, 0, 0, *size]] * rows, **options)
    return {
        "text_embeds": inputs.pooled_embeddings(pooled_dim)[-rows:].to(**options),
        "time_ids": time_ids,
    }


def _decoding(model: Any, job: Job, evaluations: int) -> Evaluate:
    import torch

    latents = inputs.noise(latent_shape(job)).to(job.device, model.dtype)

    @torch.no_grad()
    def evaluate() -> Any:
        return model.decode(latents / model.config.scaling_factor).sample.float().cpu()

    return evaluate


def _encoding(model: Any, job: Job, evaluations: int) -> Evaluate:
    import torch

    image = inputs.image(job.width, job.height).to(job.device, model.dtype)

    @torch.no_grad()
    def evaluate() -> Any:
        distribution = model.encode(image).latent_dist
        return torch.cat([distribution.mean, distribution.std]).float().cpu()

    return evaluate


_PARTS: dict[str, tuple[Callable[[Job], Any], Callable[[Any, Job, int], Evaluate]]] = {
    "text": (_load_text_encoders, _text_encoding),
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


def _dtype_option(job: Job) -> dict[str, Any]:
    """An option of ``from_pretrained``. Newer versions warn of its name; float32 is the default."""
    return {} if job.dtype == "float32" else {"torch_dtype": torch_dtype(job)}
