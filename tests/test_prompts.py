"""Prompt texts to embeddings, beside transformers' tokenizer-free text encoder."""

from __future__ import annotations

import pytest
import torch

from parity.compare import MODEL_TOLERANCE, relative_error
from parity.references import load_text_encoder, reference_text_encoder
from sdpy.models import CLIPTextModel
from sdpy.prompts import encode_prompt
from sdpy.tokenizer import CLIPTokenizer
from tiny import MERGES, TINY, tiny_model, tiny_weights

END = TINY.text_encoder.vocab_size - 1
START = END - 1


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(MERGES)


@pytest.fixture(scope="module")
def text_encoder() -> CLIPTextModel:
    model = tiny_model("text_encoder")
    assert isinstance(model, CLIPTextModel)
    return model


def ids_of(words: list[str], pad_id: int = END) -> torch.Tensor:
    """The ids of words that are merges, or single letters, between start and end."""
    ids = []
    for word in words:
        merged = [512 + i for i, (a, b) in enumerate(MERGES) if a + b == word + "</w>"]
        ids += merged or [256 + ord(word) - ord("!")]
    return torch.tensor([START, *ids, END] + [pad_id] * (75 - len(ids)))


@pytest.mark.parametrize("pad_id", [None, 0])
def test_both_prompts_are_encoded_as_transformers_does(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, pad_id: int | None
) -> None:
    encoded = encode_prompt(tokenizer, text_encoder, "The lighthouse", "CAT !", pad_id=pad_id)
    padding = END if pad_id is None else pad_id
    input_ids = torch.stack([ids_of(["the", "lighthouse"], padding), ids_of(["cat", "!"], padding)])
    reference = reference_text_encoder(TINY.text_encoder)
    load_text_encoder(reference, tiny_weights("text_encoder"))
    with torch.inference_mode():
        expected = reference(input_ids).last_hidden_state
    for ours, theirs in zip((encoded.prompt, encoded.negative), expected, strict=True):
        assert ours.shape == (1, 77, 32)
        assert ours.dtype == torch.float32
        assert relative_error(ours[0], theirs) <= MODEL_TOLERANCE
    assert relative_error(encoded.prompt, encoded.negative) > 0.01
    assert (encoded.dropped, encoded.negative_dropped) == ("", "")


def test_no_negative_prompt_is_the_empty_one(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> None:
    default = encode_prompt(tokenizer, text_encoder, "cat")
    swapped = encode_prompt(tokenizer, text_encoder, "", "cat")
    assert torch.equal(default.negative, swapped.prompt)
    assert torch.equal(default.prompt, swapped.negative)


def test_what_does_not_fit_is_told_and_does_not_count(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> None:
    full = "cat " * 75
    fitting = encode_prompt(tokenizer, text_encoder, full, full)
    assert (fitting.dropped, fitting.negative_dropped) == ("", "")
    encoded = encode_prompt(tokenizer, text_encoder, full + "dark house", full + "the cat")
    assert (encoded.dropped, encoded.negative_dropped) == ("dark house", "the cat")
    assert torch.equal(encoded.prompt, fitting.prompt)
    assert torch.equal(encoded.negative, fitting.negative)


def test_nothing_is_kept_for_gradients(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> None:
    trained = tiny_model("text_encoder").requires_grad_(True)
    assert isinstance(trained, CLIPTextModel)
    assert not encode_prompt(tokenizer, trained, "cat").prompt.requires_grad
