"""Whole runs of ten steps beside diffusers' pipelines, from the prompt's text to the image.

Both sides have the same random weights and draw from a CPU generator of the same seed. Where
diffusers draws in another order than the original program does, it is given what ours drew.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import Tensor

import sdpy.pipelines.generate as generate_module
from parity.test_tokenizer import byte_symbols
from sdpy.pipelines.events import Event, ImageDecoded, Notice
from sdpy.pipelines.generate import generate
from sdpy.pipelines.request import Request
from sdpy.runtime.request_models import RequestModels
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.zoo.variants import ModelVariant
from support.compare import RUN_TOLERANCE, relative_error
from support.references import (
    load_text_encoder,
    reference_ddim,
    reference_text_encoder,
    reference_unet,
    reference_vae,
)
from support.tasks import img2img, inpaint, text2img
from support.tiny import (
    MERGES,
    TINY,
    TINY_INPAINT,
    TINY_V,
    random_image,
    tiny_session,
    tiny_weights,
)

WIDTH, HEIGHT = 48, 32
STEPS = 10
SCALE = TINY.vae.scaling_factor
PROMPT = "A lighthouse, at dark; the cat's café 7"
NEGATIVE = "dark cat"

VARIANTS = {"epsilon": replace(TINY, timestep_spacing="leading"), "v_prediction": TINY_V}
GUIDANCE = pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
BOTH = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in MERGES)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return transformers.CLIPTokenizerFast.from_pretrained(folder, model_max_length=77)


def reference(kind: type, tokenizer: Any, variant: ModelVariant, in_channels: int = 4) -> Any:
    """A pipeline of diffusers with the tiny models."""
    text_encoder = reference_text_encoder(variant.text_encoder)
    load_text_encoder(text_encoder, tiny_weights("text_encoder"))
    unet = reference_unet(replace(variant.unet, in_channels=in_channels), sample_size=64)
    unet.load_state_dict(tiny_weights("unet", in_channels))
    vae = reference_vae(variant.vae, scaling_factor=SCALE)
    vae.load_state_dict(tiny_weights("vae"))
    pipeline = kind(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=reference_ddim(variant.noise, variant.timestep_spacing),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents_and_image(pipeline: Any, prompt: str = PROMPT, **options: Any) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        latents = pipeline(
            prompt, num_inference_steps=STEPS, output_type="latent", return_dict=False, **options
        )[0]
        return latents, pipeline.vae.decode(latents / SCALE).sample


@dataclass
class Ours:
    """Runs a pipeline of sdpy and notes the latents that it decodes."""

    data: Path
    latents: list[Tensor]

    def request(self, guidance_scale: float, **options: Any) -> Request:
        return Request(PROMPT, steps=STEPS, guidance_scale=guidance_scale, num_samples=1, **options)

    def finish(self, events: Iterator[Event]) -> tuple[Tensor, Tensor]:
        (decoded,) = (event for event in events if isinstance(event, ImageDecoded))
        return self.latents[-1], decoded.pixels

    def finish_batch(self, events: Iterator[Event]) -> list[tuple[Tensor, Tensor]]:
        """The latents and pixels of some images, which were all computed together."""
        images = [event.pixels for event in events if isinstance(event, ImageDecoded)]
        (latents,) = self.latents
        return list(zip(latents.split(1), images, strict=True))


@pytest.fixture
def ours(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Ours:
    result = Ours(tiny_data, [])
    decode = generate_module.decode

    def noting(
        models: RequestModels, latents: Tensor, **options: Any
    ) -> Generator[Notice, None, Tensor]:
        result.latents.append(latents)
        return decode(models, latents, **options)

    monkeypatch.setattr(generate_module, "decode", noting)
    return result


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_agree(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    assert all(tensor.std() > 0.1 for tensor in theirs)
    assert relative_error(ours[0], theirs[0]) <= RUN_TOLERANCE
    assert relative_error(ours[1], theirs[1]) <= RUN_TOLERANCE


@BOTH
@GUIDANCE
def test_generate(ours: Ours, tokenizer: Any, variant: ModelVariant, guidance_scale: float) -> None:
    session = tiny_session(ours.data, variant)
    request = ours.request(guidance_scale, negative_prompt=NEGATIVE, seed=5)
    result = ours.finish(text2img(session, request, width=WIDTH, height=HEIGHT))
    theirs = latents_and_image(
        reference(diffusers.StableDiffusionPipeline, tokenizer, variant),
        negative_prompt=NEGATIVE,
        guidance_scale=guidance_scale,
        generator=seeded(5),
        width=WIDTH,
        height=HEIGHT,
    )
    assert_agree(result, theirs)


@pytest.mark.parametrize("change", ["seed", "negative prompt", "guidance", "prompt"])
def test_another_run_is_noticed(ours: Ours, tokenizer: Any, change: str) -> None:
    variant = VARIANTS["epsilon"]
    request = ours.request(7.5, negative_prompt=NEGATIVE, seed=5)
    changes: dict[str, dict[str, Any]] = {
        "seed": {"seed": 6},
        "negative prompt": {"negative_prompt": ""},
        "guidance": {"guidance_scale": 7.4},
        "prompt": {"prompt": PROMPT + " a"},
    }
    request = replace(request, **changes[change])
    result = ours.finish(
        text2img(tiny_session(ours.data, variant), request, width=WIDTH, height=HEIGHT)
    )
    theirs = latents_and_image(
        reference(diffusers.StableDiffusionPipeline, tokenizer, variant),
        negative_prompt=NEGATIVE,
        guidance_scale=7.5,
        generator=seeded(5),
        width=WIDTH,
        height=HEIGHT,
    )
    assert relative_error(result[0], theirs[0]) > 10 * RUN_TOLERANCE


def test_generate_with_fresh_noise_at_each_step(ours: Ours, tokenizer: Any) -> None:
    variant = VARIANTS["epsilon"]
    request = ours.request(3.0, eta=0.7, seed=0)
    session = tiny_session(ours.data, variant)
    result = ours.finish(text2img(session, request, width=WIDTH, height=HEIGHT))
    theirs = latents_and_image(
        reference(diffusers.StableDiffusionPipeline, tokenizer, variant),
        guidance_scale=3.0,
        eta=0.7,
        generator=seeded(0),
        width=WIDTH,
        height=HEIGHT,
    )
    assert_agree(result, theirs)


@BOTH
@GUIDANCE
@pytest.mark.parametrize("strength", [0.1, 0.75, 1.0])
def test_img2img(
    ours: Ours, tokenizer: Any, variant: ModelVariant, guidance_scale: float, strength: float
) -> None:
    image = random_image(WIDTH, HEIGHT)
    request = ours.request(guidance_scale, negative_prompt=NEGATIVE, seed=7)
    result = ours.finish(
        img2img(tiny_session(ours.data, variant), request, image, strength=strength)
    )
    theirs = latents_and_image(
        reference(diffusers.StableDiffusionImg2ImgPipeline, tokenizer, variant),
        negative_prompt=NEGATIVE,
        guidance_scale=guidance_scale,
        generator=seeded(7),
        image=image / 2 + 0.5,
        strength=strength,
    )
    assert_agree(result, theirs)


def left_half() -> Tensor:
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 4 : HEIGHT - 6, : WIDTH // 2] = 1
    return mask


@BOTH
@GUIDANCE
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpaint_by_blending(
    ours: Ours, tokenizer: Any, variant: ModelVariant, guidance_scale: float, strength: float
) -> None:
    image, mask = random_image(WIDTH, HEIGHT), left_half()
    request = ours.request(guidance_scale, negative_prompt=NEGATIVE, seed=9)
    session = tiny_session(ours.data, variant)
    result = ours.finish(inpaint(session, request, image, mask, strength=strength))
    theirs = latents_and_image(
        reference(diffusers.StableDiffusionInpaintPipeline, tokenizer, variant),
        negative_prompt=NEGATIVE,
        guidance_scale=guidance_scale,
        generator=seeded(9),
        image=image / 2 + 0.5,
        mask_image=mask,
        width=WIDTH,
        height=HEIGHT,
        strength=strength,
    )
    assert_agree(result, theirs)


@BOTH
@GUIDANCE
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpaint_with_nine_channels(
    ours: Ours, tokenizer: Any, variant: ModelVariant, guidance_scale: float, strength: float
) -> None:
    """Ours draws the masked image's posterior first, diffusers last: it is given the sample."""
    image, mask = random_image(WIDTH, HEIGHT), left_half()
    variant = variant.with_configs(unet=TINY_INPAINT.unet)
    request = ours.request(guidance_scale, negative_prompt=NEGATIVE, seed=11)
    session = tiny_session(ours.data, variant, unet="unet-inpaint.ot")
    result = ours.finish(inpaint(session, request, image, mask, strength=strength))

    kind = diffusers.StableDiffusionInpaintPipeline
    pipeline = reference(kind, tokenizer, variant, in_channels=9)
    generator = seeded(11)

    def sampled(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return pipeline.vae.encode(image).latent_dist.sample(generator) * SCALE

    masked_latents = sampled(image * (mask < 0.5))
    image = image / 2 + 0.5 if strength == 1 else sampled(image)
    theirs = latents_and_image(
        pipeline,
        negative_prompt=NEGATIVE,
        guidance_scale=guidance_scale,
        generator=generator,
        image=image,
        mask_image=mask,
        masked_image_latents=masked_latents,
        width=WIDTH,
        height=HEIGHT,
        strength=strength,
    )
    assert_agree(result, theirs)


# --- batches -------------------------------------------------------------------------------------

PROMPTS = {  # with what each image of a batch has of its own
    PROMPT: {"negative_prompt": NEGATIVE, "seed": 5, "guidance_scale": 7.5},
    "dark house": {"negative_prompt": "", "seed": 5, "guidance_scale": 3.0},
    "the cat, the cat": {"negative_prompt": "light", "seed": 8, "guidance_scale": 1.5},
}


@BOTH
def test_a_batch_of_generated_images(ours: Ours, tokenizer: Any, variant: ModelVariant) -> None:
    size = {"width": WIDTH, "height": HEIGHT}
    requests = [Request(p, steps=STEPS, **own, **size) for p, own in PROMPTS.items()]
    results = ours.finish_batch(generate(tiny_session(ours.data, variant), requests))
    pipeline = reference(diffusers.StableDiffusionPipeline, tokenizer, variant)
    for result, request in zip(results, requests, strict=True):
        assert_agree(result, latents_and_image(pipeline, **their_options(request), **size))
    assert_differ(results)


@BOTH
def test_a_batch_of_changed_images(ours: Ours, tokenizer: Any, variant: ModelVariant) -> None:
    images = [random_image(WIDTH, HEIGHT, seed) for seed in range(3)]
    requests = [
        Request(p, steps=STEPS, image=image, strength=0.75, **own)
        for (p, own), image in zip(PROMPTS.items(), images, strict=True)
    ]
    results = ours.finish_batch(generate(tiny_session(ours.data, variant), requests))
    pipeline = reference(diffusers.StableDiffusionImg2ImgPipeline, tokenizer, variant)
    for result, request, image in zip(results, requests, images, strict=True):
        options = {"image": image / 2 + 0.5, "strength": 0.75}
        assert_agree(result, latents_and_image(pipeline, **their_options(request), **options))
    assert_differ(results)


@BOTH
def test_a_batch_of_inpainted_images(ours: Ours, tokenizer: Any, variant: ModelVariant) -> None:
    """By blending, and each image with a mask of its own."""
    images = [random_image(WIDTH, HEIGHT, seed) for seed in range(3)]
    masks = [left_half(), left_half().flip(3), 1 - left_half()]
    requests = [
        Request(p, steps=STEPS, image=image, mask=mask, strength=0.5, **own)
        for (p, own), image, mask in zip(PROMPTS.items(), images, masks, strict=True)
    ]
    results = ours.finish_batch(generate(tiny_session(ours.data, variant), requests))
    pipeline = reference(diffusers.StableDiffusionInpaintPipeline, tokenizer, variant)
    for result, request, image, mask in zip(results, requests, images, masks, strict=True):
        options = {"image": image / 2 + 0.5, "mask_image": mask, "strength": 0.5}
        size = {"width": WIDTH, "height": HEIGHT}
        theirs = latents_and_image(pipeline, **their_options(request), **options, **size)
        assert_agree(result, theirs)
    assert_differ(results)


@BOTH
def test_a_batch_inpainted_with_nine_channels(
    ours: Ours, tokenizer: Any, variant: ModelVariant
) -> None:
    images = [random_image(WIDTH, HEIGHT, seed) for seed in range(3)]
    masks = [left_half(), left_half().flip(3), 1 - left_half()]
    requests = [
        Request(p, steps=STEPS, image=image, mask=mask, strength=1.0, **own)
        for (p, own), image, mask in zip(PROMPTS.items(), images, masks, strict=True)
    ]
    variant = variant.with_configs(unet=TINY_INPAINT.unet)
    session = tiny_session(ours.data, variant, unet="unet-inpaint.ot")
    results = ours.finish_batch(generate(session, requests))
    kind = diffusers.StableDiffusionInpaintPipeline
    pipeline = reference(kind, tokenizer, variant, in_channels=9)
    for result, request, image, mask in zip(results, requests, images, masks, strict=True):
        options = their_options(request)
        with torch.inference_mode():
            posterior = pipeline.vae.encode(image * (mask < 0.5)).latent_dist
            masked_latents = posterior.sample(options["generator"]) * SCALE
        theirs = latents_and_image(
            pipeline,
            **options,
            image=image / 2 + 0.5,
            mask_image=mask,
            masked_image_latents=masked_latents,
            width=WIDTH,
            height=HEIGHT,
            strength=1.0,
        )
        assert_agree(result, theirs)
    assert_differ(results)


def their_options(request: Request) -> dict[str, Any]:
    """What diffusers is told of one image of a batch."""
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "guidance_scale": request.guidance_scale,
        "generator": seeded(request.seed),
    }


def assert_differ(results: list[tuple[Tensor, Tensor]]) -> None:
    """So that images of a batch that change places are noticed."""
    latents = [latents for latents, _ in results]
    for i, one in enumerate(latents):
        for other in latents[:i]:
            assert relative_error(one, other) > 100 * RUN_TOLERANCE


def test_the_original_schedule(ours: Ours, tokenizer: Any) -> None:
    """The original program's loop, written out on diffusers' models, its last evaluation included.

    For n steps it visits 1000 div n * s for s = n, ..., 0. The evaluation at timestep 0 changes
    nothing, so ours leaves it out.
    """
    guidance_scale, seed = 7.5, 32
    session = tiny_session(ours.data)
    request = ours.request(guidance_scale, seed=seed)
    result = ours.finish(text2img(session, request, width=WIDTH, height=HEIGHT))

    pipeline = reference(diffusers.StableDiffusionPipeline, tokenizer, VARIANTS["epsilon"])
    alphas_cumprod = make_alphas_cumprod(TINY.noise)
    ratio = 1000 // STEPS
    with torch.inference_mode():
        prompt, negative = pipeline.encode_prompt(PROMPT, "cpu", 1, True)
        context = torch.cat([negative, prompt])
        latents = torch.randn(1, 4, HEIGHT // 2, WIDTH // 2, generator=seeded(seed))
        before_last = latents
        for s in range(STEPS, -1, -1):
            before_last, t = latents, ratio * s
            a_t = alphas_cumprod[min(t, 999)]
            a_prev = alphas_cumprod[max(min(t, 999) - ratio, 0)]
            empty, full = pipeline.unet(torch.cat([latents] * 2), t, context).sample.chunk(2)
            e = empty + guidance_scale * (full - empty)
            x0 = (latents - (1 - a_t).sqrt() * e) / a_t.sqrt()
            latents = (a_prev.sqrt() * x0 + (1 - a_prev).sqrt() * e).float()
        images = [pipeline.vae.decode(x / SCALE).sample for x in (before_last, latents)]
    assert_agree(result, (latents, images[1]))
    assert torch.equal(eight_bits(images[0]), eight_bits(images[1]))


def eight_bits(image: Tensor) -> Tensor:
    return (image / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
