"""Whole runs of Stable Diffusion XL beside diffusers' pipelines, from the prompt to the image.

Both sides have the same random weights, and begin with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from sdpy.pipelines.request import Request
from sdpy.runtime.session import Session
from sdpy.zoo.recognise import find_source
from sdpy.zoo.variants import ModelVariant
from support.compare import RUN_TOLERANCE, relative_error
from support.tasks import one_image, text2img
from support.tiny_xl import TINY_XL, reference_pipeline, write_tiny_xl

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
