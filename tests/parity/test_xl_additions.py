"""LoRAs and textual inversions in whole runs of Stable Diffusion XL, beside diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from parity.test_xl_adapters import of_diffusers, of_kohya
from sdpy.checkpoints import Lora, read_textual_inversions, write_checkpoint
from sdpy.errors import WeightsError
from sdpy.pipelines.request import Request
from sdpy.runtime.session import Session
from sdpy.zoo.recognise import find_source
from support.compare import RUN_TOLERANCE, normal, relative_error
from support.tasks import one_image, text2img
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
def their_image(pipeline: Any, prompt: str) -> Tensor:
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
