"""Whole runs of ten steps beside diffusers' pipelines, from the prompt's text to the picture.

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

import sdpy.pipelines.paint
from parity.test_tokenizer import byte_symbols
from sdpy.pipelines import Components, Event, Notice, Painted, Settings, generate, img2img, inpaint
from sdpy.schedulers import make_alphas_cumprod
from sdpy.zoo.variants import ModelVariant
from support.compare import RUN_TOLERANCE, relative_error
from support.references import (
    load_text_encoder,
    reference_ddim,
    reference_text_encoder,
    reference_unet,
    reference_vae,
)
from support.tiny import (
    MERGES,
    TINY,
    TINY_INPAINT,
    TINY_V,
    random_picture,
    tiny_components,
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


def latents_and_picture(pipeline: Any, **options: Any) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        latents = pipeline(
            PROMPT, num_inference_steps=STEPS, output_type="latent", return_dict=False, **options
        )[0]
        return latents, pipeline.vae.decode(latents / SCALE).sample


@dataclass
class Ours:
    """Runs a pipeline of sdpy and notes the latents that it decodes."""

    data: Path
    latents: list[Tensor]

    def settings(self, guidance_scale: float, **options: Any) -> Settings:
        return Settings(
            PROMPT, steps=STEPS, guidance_scale=guidance_scale, num_samples=1, **options
        )

    def finish(self, events: Iterator[Event]) -> tuple[Tensor, Tensor]:
        (painted,) = (event for event in events if isinstance(event, Painted))
        return self.latents[-1], painted.picture


@pytest.fixture
def ours(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Ours:
    result = Ours(tiny_data, [])
    decoding = sdpy.pipelines.paint.decoding

    def noting(components: Components, latents: Tensor) -> Generator[Notice, None, Tensor]:
        result.latents.append(latents)
        return decoding(components, latents)

    monkeypatch.setattr(sdpy.pipelines.paint, "decoding", noting)
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
    components = tiny_components(ours.data, variant)
    settings = ours.settings(guidance_scale, negative_prompt=NEGATIVE, seed=5)
    result = ours.finish(generate(components, settings, width=WIDTH, height=HEIGHT))
    theirs = latents_and_picture(
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
    settings = ours.settings(7.5, negative_prompt=NEGATIVE, seed=5)
    changes: dict[str, dict[str, Any]] = {
        "seed": {"seed": 6},
        "negative prompt": {"negative_prompt": ""},
        "guidance": {"guidance_scale": 7.4},
        "prompt": {"prompt": PROMPT + " a"},
    }
    settings = replace(settings, **changes[change])
    result = ours.finish(
        generate(tiny_components(ours.data, variant), settings, width=WIDTH, height=HEIGHT)
    )
    theirs = latents_and_picture(
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
    settings = ours.settings(3.0, eta=0.7, seed=0)
    components = tiny_components(ours.data, variant)
    result = ours.finish(generate(components, settings, width=WIDTH, height=HEIGHT))
    theirs = latents_and_picture(
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
    picture = random_picture(WIDTH, HEIGHT)
    settings = ours.settings(guidance_scale, negative_prompt=NEGATIVE, seed=7)
    result = ours.finish(
        img2img(tiny_components(ours.data, variant), settings, picture, strength=strength)
    )
    theirs = latents_and_picture(
        reference(diffusers.StableDiffusionImg2ImgPipeline, tokenizer, variant),
        negative_prompt=NEGATIVE,
        guidance_scale=guidance_scale,
        generator=seeded(7),
        image=picture / 2 + 0.5,
        strength=strength,
    )
    assert_agree(result, theirs)


def left_half() -> Tensor:
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 3 : HEIGHT - 5, : WIDTH // 2] = 1
    return mask


@BOTH
@GUIDANCE
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpaint_by_blending(
    ours: Ours, tokenizer: Any, variant: ModelVariant, guidance_scale: float, strength: float
) -> None:
    picture, mask = random_picture(WIDTH, HEIGHT), left_half()
    settings = ours.settings(guidance_scale, negative_prompt=NEGATIVE, seed=9)
    components = tiny_components(ours.data, variant)
    result = ours.finish(inpaint(components, settings, picture, mask, strength=strength))
    theirs = latents_and_picture(
        reference(diffusers.StableDiffusionInpaintPipeline, tokenizer, variant),
        negative_prompt=NEGATIVE,
        guidance_scale=guidance_scale,
        generator=seeded(9),
        image=picture / 2 + 0.5,
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
    """Ours draws the masked picture's posterior first, diffusers last: it is given the sample."""
    picture, mask = random_picture(WIDTH, HEIGHT), left_half()
    variant = variant.with_configs(unet=TINY_INPAINT.unet)
    settings = ours.settings(guidance_scale, negative_prompt=NEGATIVE, seed=11)
    components = tiny_components(ours.data, variant, unet="unet-inpaint.ot")
    result = ours.finish(inpaint(components, settings, picture, mask, strength=strength))

    kind = diffusers.StableDiffusionInpaintPipeline
    pipeline = reference(kind, tokenizer, variant, in_channels=9)
    generator = seeded(11)

    def sampled(picture: Tensor) -> Tensor:
        with torch.inference_mode():
            return pipeline.vae.encode(picture).latent_dist.sample(generator) * SCALE

    masked_latents = sampled(picture * (mask < 0.5))
    image = picture / 2 + 0.5 if strength == 1 else sampled(picture)
    theirs = latents_and_picture(
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


def test_the_original_schedule(ours: Ours, tokenizer: Any) -> None:
    """The original program's loop, written out on diffusers' models, its last evaluation included.

    For n steps it visits 1000 div n * s for s = n, ..., 0. The evaluation at timestep 0 changes
    nothing, so ours leaves it out.
    """
    guidance_scale, seed = 7.5, 32
    components = tiny_components(ours.data)
    settings = ours.settings(guidance_scale, seed=seed)
    result = ours.finish(generate(components, settings, width=WIDTH, height=HEIGHT))

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
        pictures = [pipeline.vae.decode(x / SCALE).sample for x in (before_last, latents)]
    assert_agree(result, (latents, pictures[1]))
    assert torch.equal(eight_bits(pictures[0]), eight_bits(pictures[1]))


def eight_bits(picture: Tensor) -> Tensor:
    return (picture / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
