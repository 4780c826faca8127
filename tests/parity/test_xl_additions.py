"""LoRAs and textual inversions in whole runs of Stable Diffusion XL, beside diffusers' pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from parity.test_xl_adapters import of_diffusers, of_kohya
from sdpy.checkpoints import Lora, read_textual_inversions, write_checkpoint
from sdpy.errors import WeightsError
from sdpy.models import ControlNetConfig, ControlNetModel
from sdpy.pipelines.controlnet import Control
from sdpy.pipelines.request import Request
from sdpy.runtime.session import Session
from sdpy.zoo.find import find_source
from support.compare import RUN_TOLERANCE, normal, randomise, relative_error
from support.references import reference_controlnet
from support.tasks import one_image, text2img
from support.tiny import random_image
from support.tiny_xl import TINY_XL, reference_pipeline, write_tiny_xl

STEPS, WIDTH, HEIGHT, SEED = 4, 48, 32, 3
WORD = "<zorbel>"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = write_tiny_xl(tmp_path_factory.mktemp("xl") / "sdxl")
    return Session(find_source(str(folder), folder))


def our_image(session: Session, prompt: str, **options: Any) -> Tensor:
    sizes = {"steps": STEPS, "width": WIDTH, "height": HEIGHT, "seed": SEED}
    return one_image(text2img(session, Request(prompt, **sizes, **options)))


@torch.inference_mode()
def their_image(pipeline: Any, prompt: str, **options: Any) -> Tensor:
    noise = torch.randn(
        (1, 4, HEIGHT // 2, WIDTH // 2), generator=torch.Generator().manual_seed(SEED)
    )
    latents = pipeline(
        prompt,
        num_inference_steps=STEPS,
        width=WIDTH,
        height=HEIGHT,
        latents=noise,
        output_type="latent",
        return_dict=False,
        **options,
    )[0]
    return pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample


@pytest.mark.parametrize("memory", ["auto", "low"])
def test_a_lora(session: Session, tmp_path: Path, memory: str) -> None:
    """In kohya's names here and in diffusers' there; also where weights are read anew."""
    write_checkpoint(tmp_path / "kohya.safetensors", of_kohya())
    write_checkpoint(tmp_path / "lora.safetensors", of_diffusers())
    pipeline = reference_pipeline(diffusers.StableDiffusionXLPipeline, TINY_XL, tmp_path / "t")
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="a")
    pipeline.set_adapters(["a"], [0.3])
    expected = their_image(pipeline, "cat at the house")
    here = Session(session.source, execution=session.execution.__class__(memory=memory))
    found = our_image(here, "cat at the house", lora=(Lora(tmp_path / "kohya.safetensors", 0.3),))
    assert relative_error(found, expected) <= RUN_TOLERANCE
    assert relative_error(our_image(here, "cat at the house"), expected) > 1e-2


def test_a_word_with_vectors_for_both_text_encoders(session: Session, tmp_path: Path) -> None:
    first, second = normal(2, 32, seed=1), normal(2, 48, seed=2)
    write_checkpoint(tmp_path / "zorbel.safetensors", {"clip_l": first, "clip_g": second})
    pipeline = reference_pipeline(diffusers.StableDiffusionXLPipeline, TINY_XL, tmp_path / "t")
    for vectors, encoder, tokenizer in (
        (first, pipeline.text_encoder, pipeline.tokenizer),
        (second, pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        tokens = [WORD, f"{WORD}_1"]
        tokenizer.add_tokens(tokens)
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings().weight.data
        table[tokenizer.convert_tokens_to_ids(tokens)] = vectors
    expected = their_image(pipeline, f"a cat {WORD} at dark")  # which means both tokens
    words = read_textual_inversions(tmp_path / "zorbel.safetensors", WORD)
    found = our_image(session, f"a cat {WORD} at dark", embedding=words)
    assert relative_error(found, expected) <= RUN_TOLERANCE
    assert relative_error(our_image(session, f"a cat {WORD} at dark"), expected) > 1e-2


def test_a_word_for_one_text_encoder_is_refused(session: Session, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "zorbel.safetensors", {"emb_params": normal(2, 32)})
    words = read_textual_inversions(tmp_path / "zorbel.safetensors")
    with pytest.raises(WeightsError, match="one text encoder, but the model has a second"):
        our_image(session, "zorbel", embedding=words)


CONTROLNETS: dict[str, dict[str, Any]] = {
    "as deep as the UNet": {},
    "shallower": {"transformer_layers_per_block": 1},
    "that attends at one level": {"cross_attention": (False, True, False)},
}


@pytest.mark.parametrize("case", CONTROLNETS)
def test_a_controlnet(session: Session, tmp_path: Path, case: str) -> None:
    config = ControlNetConfig(
        unet=replace(TINY_XL.unet, **CONTROLNETS[case]), conditioning_embedding_out_channels=(4, 8)
    )
    ours = randomise(ControlNetModel(config), seed=40)
    write_checkpoint(tmp_path / "control.safetensors", ours.state_dict())
    theirs = reference_controlnet(config)
    theirs.load_state_dict(ours.state_dict())
    pipeline = reference_pipeline(
        diffusers.StableDiffusionXLControlNetPipeline, TINY_XL, tmp_path / "t", controlnet=theirs
    )
    shown = random_image(WIDTH, HEIGHT, 7) / 2 + 0.5
    expected = their_image(
        pipeline, "cat at the house", image=shown, controlnet_conditioning_scale=0.6
    )
    control = Control(tmp_path / "control.safetensors", shown, scale=0.6)
    found = our_image(session, "cat at the house", controls=(control,))
    assert relative_error(found, expected) <= RUN_TOLERANCE
    assert relative_error(our_image(session, "cat at the house"), expected) > 1e-2


def test_a_controlnet_for_another_family_is_told(session: Session, tmp_path: Path) -> None:
    config = ControlNetConfig(
        unet=replace(
            TINY_XL.unet,
            cross_attention_dim=768,
            addition_embed_type=None,
            addition_time_embed_dim=None,
            projection_class_embeddings_input_dim=None,
        ),
        conditioning_embedding_out_channels=(4, 8),
    )
    write_checkpoint(tmp_path / "c.safetensors", ControlNetModel(config).state_dict())
    control = Control(tmp_path / "c.safetensors", random_image(WIDTH, HEIGHT, 7) / 2 + 0.5)
    with pytest.raises(
        WeightsError,
        match="it is a ControlNet for Stable Diffusion 1.x, and sdxl takes those for .* XL",
    ):
        our_image(session, "cat", controls=(control,))
