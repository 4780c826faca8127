"""Whole runs of Stable Diffusion XL beside diffusers' pipelines, from the prompt to the image.

Both sides have the same random weights, and begin with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import write_checkpoint
from sdpy.errors import UsageError, WeightsError
from sdpy.models import ControlNetConfig, ControlNetModel
from sdpy.pipelines.controlnet import Control
from sdpy.pipelines.encoding import encode_plans
from sdpy.pipelines.events import Notice
from sdpy.pipelines.generate import generate
from sdpy.pipelines.plan import _size_hint, plan_request
from sdpy.pipelines.request import Request
from sdpy.runtime.execution import Execution
from sdpy.runtime.session import Session
from sdpy.runtime.workload import WeightsSize
from sdpy.zoo.find import find_source
from sdpy.zoo.variants import ModelVariant
from support.compare import RUN_TOLERANCE, assert_same_images, randomise, relative_error
from support.references import reference_controlnet
from support.tasks import decoded, one_image, text2img
from support.tiny import placed, random_image
from support.tiny_xl import TINY_REFINER, TINY_XL, reference_pipeline, write_tiny_xl

STEPS = 10
PROMPT, NEGATIVE = "A lighthouse, at dark; the cat's café 7", "dark cat"
PROMPT_2, NEGATIVE_2 = "house at the light", "the cat"
WIDTH, HEIGHT = 48, 32
LATENTS = (1, 4, HEIGHT // 2, WIDTH // 2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_xl(tmp_path_factory.mktemp("xl") / "sdxl")


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    return Session(find_source(str(folder), folder))


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = write_tiny_xl(tmp_path_factory.mktemp("xl") / "refiner", TINY_REFINER)
    return Session(find_source(str(folder), folder))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes a pipeline of diffusers with the models of a variant."""
    root = tmp_path_factory.mktemp("tokenizers")

    def make(kind: type, variant: ModelVariant = TINY_XL, **options: Any) -> Any:
        return reference_pipeline(kind, variant, root / variant.name, **options)

    return make


def their_image(pipeline: Any, prompt: str = PROMPT, **options: Any) -> Tensor:
    """What a pipeline of diffusers makes, (1, 3, H, W) in about [-1, 1]."""
    with torch.inference_mode():
        latents = pipeline(
            prompt,
            num_inference_steps=options.pop("num_inference_steps", STEPS),
            output_type="latent",
            return_dict=False,
            **options,
        )[0]
        return pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample


def our_image(session: Session, prompt: str = PROMPT, **options: Any) -> Tensor:
    request = Request(prompt, **{"steps": STEPS, "width": WIDTH, "height": HEIGHT, **options})
    return one_image(text2img(session, request))


TEXT_TO_IMAGE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it comes": ({}, {}),
    "negative prompt": ({"negative_prompt": NEGATIVE}, {}),
    "empty negative prompt": ({"negative_prompt": ""}, {}),
    "second prompts": (
        {
            "negative_prompt": NEGATIVE,
            "prompt_2": PROMPT_2,
            "negative_prompt_2": NEGATIVE_2,
        },
        {},
    ),
    "no guidance": ({"guidance_scale": 1.0}, {}),
    "clip skip": ({"clip_skip": 2}, {"clip_skip": 1}),
    "sizes": (
        {"original_size": (80, 40), "crop": (16, 4), "target_size": (96, 72)},
        {"original_size": (40, 80), "crops_coords_top_left": (4, 16), "target_size": (72, 96)},
    ),
    "guidance rescale": ({"guidance_rescale": 0.7, "negative_prompt": NEGATIVE}, {}),
}


@pytest.mark.parametrize("case", TEXT_TO_IMAGE)
def test_text_to_image(session: Session, theirs: Callable[..., Any], case: str) -> None:
    """With the defaults of both: guidance 5, Euler's method, the image's own sizes."""
    own, other = TEXT_TO_IMAGE[case]
    pipeline = theirs(diffusers.StableDiffusionXLPipeline)
    expected = their_image(
        pipeline,
        width=WIDTH,
        height=HEIGHT,
        latents=torch.randn(LATENTS, generator=seeded(3)),
        **{**{k: v for k, v in own.items() if not other}, **other},
    )
    assert relative_error(our_image(session, seed=3, **own), expected) <= RUN_TOLERANCE


IMAGE = random_image(WIDTH, HEIGHT)
MASK = torch.zeros(1, 1, HEIGHT, WIDTH)
MASK[..., 4 : HEIGHT - 6, : WIDTH // 2] = 1


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_image_to_image(session: Session, theirs: Callable[..., Any], strength: float) -> None:
    expected = their_image(
        theirs(diffusers.StableDiffusionXLImg2ImgPipeline),
        image=IMAGE / 2 + 0.5,
        strength=strength,
        negative_prompt=NEGATIVE,
        generator=seeded(7),
    )
    ours = our_image(session, image=IMAGE, strength=strength, negative_prompt=NEGATIVE, seed=7)
    assert relative_error(ours, expected) <= RUN_TOLERANCE


def test_the_refiner_on_an_image(refiner: Session, theirs: Callable[..., Any]) -> None:
    """It is told a score of its own with the negative prompt, which is the empty text."""
    pipeline = theirs(
        diffusers.StableDiffusionXLImg2ImgPipeline,
        TINY_REFINER,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )
    options = {"aesthetic_score": 7.0, "negative_aesthetic_score": 2.0}
    for scores in ({}, options):
        expected = their_image(
            pipeline,
            image=IMAGE / 2 + 0.5,
            strength=0.5,
            generator=seeded(7),
            **scores,
        )
        ours = our_image(refiner, image=IMAGE, strength=0.5, seed=7, **scores)
        assert relative_error(ours, expected) <= RUN_TOLERANCE


def test_inpainting_by_blending(session: Session, theirs: Callable[..., Any]) -> None:
    for strength in (0.5, 1.0):
        expected = their_image(
            theirs(diffusers.StableDiffusionXLInpaintPipeline),
            image=IMAGE / 2 + 0.5,
            mask_image=MASK,
            strength=strength,
            width=WIDTH,
            height=HEIGHT,
            guidance_scale=5.0,
            generator=seeded(9),
        )
        ours = our_image(session, image=IMAGE, mask=MASK, strength=strength, seed=9)
        assert relative_error(ours, expected) <= RUN_TOLERANCE


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_with_nine_channels(
    theirs: Callable[..., Any], tmp_path: Path, strength: float
) -> None:
    """Ours draws the masked image's posterior first, diffusers last: it is given the sample."""
    variant = replace(TINY_XL, name="sdxl-inpaint").with_configs(
        unet=replace(TINY_XL.unet, in_channels=9)
    )
    folder = write_tiny_xl(tmp_path / "inpaint", variant)
    session = Session(find_source(str(folder), folder))
    ours = our_image(session, image=IMAGE, mask=MASK, strength=strength, seed=11)

    pipeline = theirs(diffusers.StableDiffusionXLInpaintPipeline, variant)
    generator, scale = seeded(11), variant.vae.scaling_factor

    def sampled(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return pipeline.vae.encode(image).latent_dist.sample(generator) * scale

    masked_latents = sampled(IMAGE * (1 - MASK))
    image = IMAGE / 2 + 0.5 if strength == 1 else sampled(IMAGE)
    expected = their_image(
        pipeline,
        image=image,
        mask_image=MASK,
        masked_image_latents=masked_latents,
        width=WIDTH,
        height=HEIGHT,
        strength=strength,
        guidance_scale=5.0,
        generator=generator,
    )
    assert relative_error(ours, expected) <= RUN_TOLERANCE


def test_the_refiner_as_second_stage(
    session: Session, refiner: Session, theirs: Callable[..., Any]
) -> None:
    """The refiner goes on where the base model ends, with what each of them is told."""
    both = Session(session.source, refiner=refiner)
    base = theirs(diffusers.StableDiffusionXLPipeline)
    second = theirs(
        diffusers.StableDiffusionXLImg2ImgPipeline,
        TINY_REFINER,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )
    images = {}
    for start in (0.8, 0.55):
        with torch.inference_mode():
            latents = base(
                PROMPT,
                num_inference_steps=STEPS,
                latents=torch.randn(LATENTS, generator=seeded(3)),
                width=WIDTH,
                height=HEIGHT,
                denoising_end=start,
                output_type="latent",
            ).images
        second.vae = base.vae  # which decodes what both have made
        expected = their_image(second, image=latents, denoising_start=start)
        images[start] = our_image(both, seed=3, refiner_start=start)
        assert relative_error(images[start], expected) <= RUN_TOLERANCE
    assert torch.equal(images[0.8], our_image(both, seed=3))
    alone = our_image(session, seed=3)
    assert relative_error(our_image(both, seed=3, refiner_start=1.0), alone) == 0
    assert relative_error(images[0.8], alone) > 100 * RUN_TOLERANCE


CONTROLNET = ControlNetConfig(TINY_XL.unet, conditioning_embedding_out_channels=(4, 8))


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_controlnet(
    session: Session, theirs: Callable[..., Any], tmp_path: Path, guidance_scale: float
) -> None:
    """It is told the pooled embeddings and sizes, too."""
    made = randomise(ControlNetModel(CONTROLNET), 31)
    file = tmp_path / "control.safetensors"
    write_checkpoint(file, made.state_dict())
    network = reference_controlnet(CONTROLNET)
    network.load_state_dict(made.state_dict())
    shown = random_image(WIDTH, HEIGHT, 5) / 2 + 0.5
    options = {"negative_prompt": NEGATIVE, "guidance_scale": guidance_scale}
    control = Control(file, shown, 0.8, 0.0, 0.7)
    steered = {
        "controlnet_conditioning_scale": 0.8,
        "control_guidance_end": 0.7,
        "width": WIDTH,
        "height": HEIGHT,
    }
    expected = their_image(
        theirs(diffusers.StableDiffusionXLControlNetPipeline, controlnet=network),
        image=shown,
        latents=torch.randn(LATENTS, generator=seeded(3)),
        **steered,
        **options,
    )
    ours = our_image(session, seed=3, controls=(control,), **options)
    assert relative_error(ours, expected) <= RUN_TOLERANCE
    assert relative_error(our_image(session, seed=3, **options), expected) > 0.01
    expected = their_image(
        theirs(diffusers.StableDiffusionXLControlNetImg2ImgPipeline, controlnet=network),
        image=IMAGE / 2 + 0.5,
        control_image=shown,
        strength=0.6,
        generator=seeded(7),
        **steered,
        **options,
    )
    ours = our_image(session, image=IMAGE, strength=0.6, seed=7, controls=(control,), **options)
    assert relative_error(ours, expected) <= RUN_TOLERANCE


def test_sizes_near_those_of_training_are_hinted_at(session: Session) -> None:
    for size, better in (
        ((96, 96), "1024x1024"),
        ((1920, 1080), "1344x768"),
        ((1024, 1024), None),
        ((1152, 896), None),
    ):
        variant = replace(session.variant, sample_size=1024)
        shape = (1, 4, size[1] // 2, size[0] // 2)
        plan = replace(plan_request(session, Request("cat", width=64, height=64)), shape=shape)
        hint = _size_hint(variant, plan)
        assert (hint is None) if better is None else (hint is not None and better in hint)


def told(session: Session, **options: Any) -> list[str]:
    """The notices of an image."""
    request = Request(PROMPT, **{"steps": 2, "width": WIDTH, "height": HEIGHT, **options})
    return [one.text for one in text2img(session, request) if isinstance(one, Notice)]


def test_what_training_had_not_is_told(session: Session, refiner: Session) -> None:
    said = "--crop 80,0 would cut off all of an image of 80x40 pixels"
    assert any(said in line for line in told(session, crop=(80, 0), original_size=(80, 40)))
    assert any("48x32 pixels" in line for line in told(session, crop=(0, 32)))
    assert not any(
        "--crop" in line for line in told(session, crop=(79, 39), original_size=(80, 40))
    )
    said = "sdxl-refiner was trained on the last steps alone"
    assert any(said in line for line in told(refiner))
    assert not any(said in line for line in told(refiner, image=IMAGE))
    both = Session(session.source, refiner=refiner)
    assert not any(said in line for line in told(both))


def test_a_refiner_for_latents_of_another_scale_is_refused(
    session: Session, refiner: Session
) -> None:
    vae = replace(session.variant.vae, scaling_factor=0.18215)
    source = replace(session.source, variant=session.variant.with_configs(vae=vae))
    with pytest.raises(WeightsError, match="cannot refine what sdxl generates"):
        told(Session(source, refiner=refiner))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refiner_start": 0.5}, "--refiner-start says nothing without --refiner"),
        ({"aesthetic_score": 5.0}, "--aesthetic-score: sdxl is not told"),
        ({"clip_skip": 3}, "--clip-skip 3: .* has 2 layers"),
        ({"prompt_2": "a AND b"}, "AND joins 1 prompts for the first .* 2 for the second"),
    ],
)
def test_what_says_nothing_is_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        our_image(session, **options)


def test_a_prompt_for_a_missing_text_encoder_is_refused(refiner: Session) -> None:
    with pytest.raises(UsageError, match="--prompt-2 is for models with two text encoders"):
        our_image(refiner, prompt_2="cat")
    with pytest.raises(UsageError, match="--target-size: sdxl-refiner is not told"):
        our_image(refiner, target_size=(8, 8))


def test_prompts_of_several_chunks(session: Session) -> None:
    """Both text encoders read as many chunks, and the first one is summed up."""
    long = "cat " * 100
    models = session.models()
    size = {"width": WIDTH, "height": HEIGHT}
    requests = [
        Request(long, **size),
        Request("cat", prompt_2=long, negative_prompt=long, **size),
    ]
    for request in requests:
        (made,) = encode_plans(models, [plan_request(session, request)])
        (one,) = made.conditionings
        (prompt,) = one.prompts
        assert prompt.encoder_hidden_states.shape == (1, 2 * 77, 80)
        assert one.negative.encoder_hidden_states.shape == (1, 2 * 77, 80)
        assert prompt.time_ids is not None
        assert prompt.time_ids.tolist() == [[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]]


def test_a_batch_of_images_is_that_of_single_ones(session: Session) -> None:
    size = {"width": WIDTH, "height": HEIGHT, "steps": 3}
    requests = [
        Request(PROMPT, seed=1, **size),
        Request("cat", negative_prompt=NEGATIVE, original_size=(20, 30), seed=5, **size),
    ]
    alone = [one_image(text2img(session, request)) for request in requests]
    together = [event.pixels for event in decoded(generate(session, requests))]
    assert_same_images(together, alone)
    assert relative_error(*alone) > 0.01


def test_the_autoencoder_computes_in_float32_where_float16_overflows(session: Session) -> None:
    gpu = torch.device("cuda")
    models = session.models(Execution(dtype=torch.float16))
    models = models.changed(placement=placed(gpu, gpu, gpu))
    assert models.vae_dtype == torch.float32
    assert models.key("vae").execution.dtype == torch.float32
    assert models.key("unet").execution.dtype == torch.float16
    assert models.computing(dtype=torch.bfloat16).vae_dtype == torch.bfloat16
    half = WeightsSize.of(models, "unet"), WeightsSize.of(models, "vae")
    unet, vae = (one.while_running(models.execution).gpu / one.numbers for one in half)
    assert (unet, vae) == (2, 4)
