"""Whole runs with ControlNets, guidance embedding and TAESD beside diffusers' pipelines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from parity.test_pipelines import (
    HEIGHT,
    NEGATIVE,
    PROMPT,
    SCALE,
    STEPS,
    VARIANTS,
    WIDTH,
    Ours,
    assert_agree,
    latents_and_image,
    left_half,
    ours,
    reference,
    seeded,
    tokenizer,
)
from sdpy.checkpoints import write_checkpoint
from sdpy.models import (
    AutoencoderTiny,
    AutoencoderTinyConfig,
    ControlNetConfig,
    ControlNetModel,
    UNet2DConditionModel,
)
from sdpy.pipelines.controlnet import Control
from sdpy.runtime.session import Session
from sdpy.zoo.source import ModelSource
from support.compare import RUN_TOLERANCE, randomise, relative_error
from support.references import reference_controlnet, reference_tiny_vae, reference_unet
from support.tasks import img2img, inpaint, text2img
from support.tiny import TINY, random_image, tiny_files, tiny_session

__all__ = ["ours", "tokenizer"]  # fixtures

EPSILON = VARIANTS["epsilon"]
CONTROLNET = ControlNetConfig(TINY.unet, conditioning_embedding_out_channels=(4, 8))
TINY_VAE = AutoencoderTinyConfig(channels=8, encoder_blocks=(1, 2), decoder_blocks=(2, 1))


def controlnet(seed: int) -> nn.Module:
    return randomise(ControlNetModel(CONTROLNET), seed)


def image(seed: int) -> Tensor:
    return random_image(WIDTH, HEIGHT, seed) / 2 + 0.5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("controlnets")
    paths = [folder / "one.safetensors", folder / "two.safetensors"]
    for seed, path in enumerate(paths):
        write_checkpoint(path, controlnet(seed).state_dict())
    return paths


def their_controlnet(seed: int) -> nn.Module:
    theirs = reference_controlnet(CONTROLNET)
    theirs.load_state_dict(controlnet(seed).state_dict())
    return theirs


def with_controlnets(kind: type, tokenizer: Any, seeds: list[int], in_channels: int = 4) -> Any:
    base = reference(diffusers.StableDiffusionPipeline, tokenizer, EPSILON)
    parts = {**base.components}
    if in_channels != 4:
        parts["unet"] = reference(
            diffusers.StableDiffusionInpaintPipeline, tokenizer, EPSILON, in_channels
        ).unet
    nets = [their_controlnet(seed) for seed in seeds]
    pipeline = kind(**parts, controlnet=nets if len(nets) > 1 else nets[0])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


SPANS = {
    "throughout": [(1.0, 0.0, 1.0)],
    "weak": [(0.3, 0.0, 1.0)],
    "at the beginning": [(0.8, 0.0, 0.35)],
    "at the end": [(0.8, 0.55, 1.0)],
    "in the middle": [(1.0, 0.2, 0.7)],
    "two": [(0.7, 0.0, 1.0), (0.5, 0.0, 1.0)],
    "one after the other": [(0.7, 0.0, 0.5), (-0.4, 0.5, 1.0)],
}


def their_options(spans: list[tuple[float, float, float]]) -> dict[str, Any]:
    scales, starts, ends = (list(values) for values in zip(*spans, strict=True))
    one = len(spans) == 1
    return {
        "controlnet_conditioning_scale": scales[0] if one else scales,
        "control_guidance_start": starts,
        "control_guidance_end": ends,
    }


def controls(files: list[Path], spans: list[tuple[float, float, float]]) -> tuple[Control, ...]:
    return tuple(Control(files[k], image(20 + k), *span) for k, span in enumerate(spans))


@pytest.mark.parametrize("name", SPANS)
def test_generate(ours: Ours, tokenizer: Any, files: list[Path], name: str) -> None:
    spans = SPANS[name]
    request = ours.request(7.5, negative_prompt=NEGATIVE, seed=5, controls=controls(files, spans))
    session = tiny_session(ours.data, EPSILON)
    result = ours.finish(text2img(session, request, width=WIDTH, height=HEIGHT))
    images = [image(20 + k) for k in range(len(spans))]
    theirs = latents_and_image(
        with_controlnets(
            diffusers.StableDiffusionControlNetPipeline, tokenizer, list(range(len(spans)))
        ),
        image=images if len(images) > 1 else images[0],
        negative_prompt=NEGATIVE,
        guidance_scale=7.5,
        generator=seeded(5),
        width=WIDTH,
        height=HEIGHT,
        **their_options(spans),
    )
    assert_agree(result, theirs)
    free = ours.finish(text2img(session, replace(request, controls=()), width=WIDTH, height=HEIGHT))
    assert relative_error(free[0], theirs[0]) > 100 * RUN_TOLERANCE


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
@pytest.mark.parametrize(
    "told",
    [{"global_pool_conditions": True}, {"controlnet_conditioning_channel_order": "bgr"}],
    ids=["pooled", "bgr"],
)
def test_what_the_file_beside_a_controlnet_says(
    ours: Ours, tokenizer: Any, tmp_path: Path, guidance_scale: float, told: dict[str, Any]
) -> None:
    """A ControlNet that pools steers the prompts alone, and not the negative ones."""
    nets = controlnet(0)
    theirs_net = reference_controlnet(CONTROLNET, **told)
    theirs_net.load_state_dict(nets.state_dict())
    theirs_net.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    request = ours.request(
        guidance_scale, negative_prompt=NEGATIVE, seed=5, controls=controls([file], [(0.7, 0, 1)])
    )
    session = tiny_session(ours.data, EPSILON)
    result = ours.finish(text2img(session, request, width=WIDTH, height=HEIGHT))
    pipeline = with_controlnets(diffusers.StableDiffusionControlNetPipeline, tokenizer, [0])
    pipeline.register_modules(controlnet=theirs_net)
    theirs = latents_and_image(
        pipeline,
        image=image(20),
        negative_prompt=NEGATIVE,
        guidance_scale=guidance_scale,
        generator=seeded(5),
        width=WIDTH,
        height=HEIGHT,
        **their_options([(0.7, 0.0, 1.0)]),
    )
    assert_agree(result, theirs)
    (tmp_path / "config.json").unlink()
    session = tiny_session(ours.data, EPSILON)
    unsaid = ours.finish(text2img(session, request, width=WIDTH, height=HEIGHT))
    assert relative_error(unsaid[0], theirs[0]) > 10 * RUN_TOLERANCE


@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_img2img(ours: Ours, tokenizer: Any, files: list[Path], guidance_scale: float) -> None:
    """The shares are those of the steps that are done."""
    spans = [(0.8, 0.2, 0.7)]
    request = ours.request(guidance_scale, seed=7, controls=controls(files, spans))
    start = random_image(WIDTH, HEIGHT)
    session = tiny_session(ours.data, EPSILON)
    result = ours.finish(img2img(session, request, start, strength=0.6))
    theirs = latents_and_image(
        with_controlnets(diffusers.StableDiffusionControlNetImg2ImgPipeline, tokenizer, [0]),
        image=start / 2 + 0.5,
        control_image=image(20),
        strength=0.6,
        guidance_scale=guidance_scale,
        generator=seeded(7),
        **their_options(spans),
    )
    assert_agree(result, theirs)


def test_inpaint_by_blending(ours: Ours, tokenizer: Any, files: list[Path]) -> None:
    spans = [(0.8, 0.0, 1.0)]
    request = ours.request(5.0, seed=9, controls=controls(files, spans))
    start, mask = random_image(WIDTH, HEIGHT), left_half()
    session = tiny_session(ours.data, EPSILON)
    result = ours.finish(inpaint(session, request, start, mask, strength=0.7))
    theirs = latents_and_image(
        with_controlnets(diffusers.StableDiffusionControlNetInpaintPipeline, tokenizer, [0]),
        image=start / 2 + 0.5,
        mask_image=mask,
        control_image=image(20),
        width=WIDTH,
        height=HEIGHT,
        strength=0.7,
        guidance_scale=5.0,
        generator=seeded(9),
        **their_options(spans),
    )
    assert_agree(result, theirs)


def test_inpaint_with_nine_channels(ours: Ours, tokenizer: Any, files: list[Path]) -> None:
    """The ControlNet sees the latents alone. Ours draws the masked image's posterior first."""
    spans = [(0.8, 0.0, 1.0)]
    request = ours.request(5.0, seed=11, controls=controls(files, spans))
    start, mask = random_image(WIDTH, HEIGHT), left_half()
    variant = EPSILON.with_configs(unet=replace(EPSILON.unet, in_channels=9))
    session = tiny_session(ours.data, variant, unet="unet-inpaint.ot")
    result = ours.finish(inpaint(session, request, start, mask))

    pipeline = with_controlnets(
        diffusers.StableDiffusionControlNetInpaintPipeline, tokenizer, [0], in_channels=9
    )
    generator = seeded(11)
    with torch.inference_mode():
        masked = start * (mask < 0.5)
        masked_latents = pipeline.vae.encode(masked).latent_dist.sample(generator) * SCALE

    def prepare_mask_latents(mask: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        small = nn.functional.interpolate(mask, size=masked_latents.shape[-2:])
        return small.repeat(2, 1, 1, 1), masked_latents.repeat(2, 1, 1, 1)

    pipeline.prepare_mask_latents = prepare_mask_latents
    theirs = latents_and_image(
        pipeline,
        image=start / 2 + 0.5,
        mask_image=mask,
        control_image=image(20),
        width=WIDTH,
        height=HEIGHT,
        guidance_scale=5.0,
        generator=generator,
        **their_options(spans),
    )
    assert_agree(result, theirs)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.3, 8.5])
def test_guidance_embedding(
    ours: Ours,
    tokenizer: Any,
    tmp_path: Path,
    guidance_scale: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(EPSILON.unet, time_cond_proj_dim=12)
    weights = randomise(UNet2DConditionModel(config), seed=4).state_dict()
    write_checkpoint(tmp_path / "unet.safetensors", weights)
    files = tiny_files(ours.data).with_weights(unet=tmp_path / "unet.safetensors")
    session = Session(ModelSource(EPSILON, files))
    batches = []
    forward = UNet2DConditionModel.forward

    def noting(self: Any, sample: Tensor, *args: Any, **options: Any) -> Tensor:
        batches.append(len(sample))
        return forward(self, sample, *args, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", noting)
    request = ours.request(guidance_scale, seed=3)
    result = ours.finish(text2img(session, request, width=WIDTH, height=HEIGHT))
    assert batches == [1] * STEPS

    pipeline = reference(diffusers.StableDiffusionPipeline, tokenizer, EPSILON)
    unet = reference_unet(config, sample_size=64)
    unet.load_state_dict(weights)
    pipeline.register_modules(unet=unet)
    theirs = latents_and_image(
        pipeline,
        guidance_scale=guidance_scale,
        generator=seeded(3),
        width=WIDTH,
        height=HEIGHT,
    )
    assert_agree(result, theirs)


@pytest.mark.parametrize("task", ["generate", "img2img"])
def test_tiny_autoencoder(ours: Ours, tokenizer: Any, tmp_path: Path, task: str) -> None:
    weights = randomise(AutoencoderTiny(TINY_VAE), seed=6).state_dict()
    write_checkpoint(tmp_path / "taesd.safetensors", weights)
    files = tiny_files(ours.data).with_weights(vae=tmp_path / "taesd.safetensors")
    session = Session(ModelSource(replace(EPSILON, tiny_vae=TINY_VAE), files))
    request = ours.request(6.0, seed=3)
    start = random_image(WIDTH, HEIGHT)
    options: dict[str, Any] = {"guidance_scale": 6.0, "num_inference_steps": STEPS}
    if task == "generate":
        result = ours.finish(text2img(session, request, width=WIDTH, height=HEIGHT))
        kind = diffusers.StableDiffusionPipeline
        options |= {"generator": seeded(3), "width": WIDTH, "height": HEIGHT}
    else:
        result = ours.finish(img2img(session, request, start, strength=0.6))
        kind = diffusers.StableDiffusionImg2ImgPipeline
        # Ours draws noise for the posterior in any case; this one needs none.
        generator = seeded(3)
        torch.randn(1, 4, HEIGHT // 2, WIDTH // 2, generator=generator)
        options |= {"generator": generator, "image": start / 2 + 0.5, "strength": 0.6}

    pipeline = reference(kind, tokenizer, EPSILON)
    vae = reference_tiny_vae(TINY_VAE)
    vae.load_state_dict(weights)
    pipeline.register_modules(vae=vae)
    pipeline.vae_scale_factor = 2
    pipeline.image_processor.config.vae_scale_factor = 2
    latents = pipeline(PROMPT, output_type="latent", return_dict=False, **options)[0]
    with torch.inference_mode():
        theirs = vae.decode(latents).sample
    assert_agree(result, (latents, theirs))
