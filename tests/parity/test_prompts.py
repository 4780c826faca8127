"""Prompts beside transformers' text encoder, the chunks and the weights worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import TextualInversion
from sdpy.models import CLIPTextModel
from sdpy.text.conditioning import Conditioning, encode_prompts
from sdpy.text.prompts import tokenize_prompt
from sdpy.text.tokenizer import CLIPTokenizer
from support.compare import MODEL_TOLERANCE, normal, randomise, relative_error
from support.references import load_text_encoder, reference_text_encoder
from support.tiny import MERGES, TINY

TOKENIZER = CLIPTokenizer(MERGES)
CONFIG = replace(TINY.text_encoder, num_hidden_layers=3)
START, END = TOKENIZER.start_id, TOKENIZER.end_id
CAT, DARK, COMMA = (TOKENIZER.encode(word)[0] for word in ("cat", "dark", ","))


@pytest.fixture(scope="module")
def ours() -> CLIPTextModel:
    return randomise(CLIPTextModel(CONFIG))


@pytest.fixture(scope="module")
def theirs(ours: CLIPTextModel) -> nn.Module:
    reference = reference_text_encoder(CONFIG)
    load_text_encoder(reference, ours.state_dict())
    return reference


@dataclass(frozen=True)
class Embeddings:
    """Of one prompt and its negative prompt, (1, S, D) each."""

    prompt: Tensor
    negative: Tensor

    @classmethod
    def of(cls, pair: tuple[Conditioning, ...]) -> Embeddings:
        for one in pair:
            assert (one.text_embeds, one.time_ids) == (None, None)
        prompt, negative = pair
        return cls(prompt.encoder_hidden_states, negative.encoder_hidden_states)


def encoded(
    text_encoder: CLIPTextModel,
    prompt: str,
    negative: str = "",
    *,
    textual_inversions: Sequence[TextualInversion] = (),
    **options: int,
) -> Embeddings:
    both = [
        tokenize_prompt(text, TOKENIZER, CONFIG, textual_inversions=textual_inversions)
        for text in (prompt, negative)
    ]
    (pair,) = encode_prompts(
        [(both[0], both[1])],
        TOKENIZER,
        text_encoder,
        added_embeddings=[one.vectors for one in textual_inversions],
        **options,
    )
    return Embeddings.of(pair)


def row(ids: Sequence[int], pad_id: int = END) -> Tensor:
    """(1, 77) token ids of one chunk."""
    return torch.tensor([[START, *ids, END, *[pad_id] * (75 - len(ids))]])


@torch.no_grad()
def reference(theirs: nn.Module, *chunks: Sequence[int], pad_id: int = END) -> Tensor:
    """(1, 77 n, D): each chunk by itself, end to end."""
    return torch.cat([theirs(row(ids, pad_id)).last_hidden_state for ids in chunks], dim=1)


def reweighted(embeddings: Tensor, weights: dict[int, float]) -> Tensor:
    """One chunk (1, 77, D), its tokens times their weights, then all of it times one number."""
    out = embeddings.clone()
    for place, weight in weights.items():
        out[0, place] = out[0, place] * weight
    return out * (embeddings.mean() / out.mean())


def test_without_syntax_it_is_the_plain_embedding_bit_by_bit(ours: CLIPTextModel) -> None:
    """One batch, one call."""
    with torch.inference_mode():
        expected = ours(torch.cat([row([CAT, DARK, COMMA]), row([DARK])]))
    found = encoded(ours, "cat dark,", "dark")
    assert torch.equal(found.prompt, expected[:1])
    assert torch.equal(found.negative, expected[1:])


@pytest.mark.parametrize("pad_id", [None, 0])
def test_one_chunk(ours: CLIPTextModel, theirs: nn.Module, pad_id: int | None) -> None:
    found = encoded(ours, "cat dark", pad_id=pad_id)
    padding = END if pad_id is None else pad_id
    expected = reference(theirs, [CAT, DARK], pad_id=padding)
    assert relative_error(found.prompt, expected) <= MODEL_TOLERANCE
    assert relative_error(found.negative, reference(theirs, [], pad_id=padding)) <= MODEL_TOLERANCE


def test_chunks_end_to_end_and_the_shorter_prompt_lengthened(
    ours: CLIPTextModel, theirs: nn.Module
) -> None:
    found = encoded(ours, "cat " * 60 + "," + " dark" * 100, "dark BREAK cat")
    expected = reference(theirs, [CAT] * 60 + [COMMA], [DARK] * 75, [DARK] * 25)
    assert found.prompt.shape == found.negative.shape == (1, 3 * 77, CONFIG.hidden_size)
    assert relative_error(found.prompt, expected) <= MODEL_TOLERANCE
    expected = reference(theirs, [DARK], [CAT], [])
    assert relative_error(found.negative, expected) <= MODEL_TOLERANCE


def test_a_longer_negative_prompt_lengthens_the_prompt(
    ours: CLIPTextModel, theirs: nn.Module
) -> None:
    found = encoded(ours, "cat", "dark " * 80)
    assert relative_error(found.prompt, reference(theirs, [CAT], [])) <= MODEL_TOLERANCE
    expected = reference(theirs, [DARK] * 75, [DARK] * 5)
    assert relative_error(found.negative, expected) <= MODEL_TOLERANCE


def test_weights(ours: CLIPTextModel, theirs: nn.Module) -> None:
    found = encoded(ours, "cat (dark cat:1.5), ([dark]:0.4)", "[[dark]]")
    plain = reference(theirs, [CAT, DARK, CAT, COMMA, DARK])
    expected = reweighted(plain, {2: 1.5, 3: 1.5, 5: 0.4 / 1.1})
    assert relative_error(found.prompt, expected) <= MODEL_TOLERANCE
    assert relative_error(found.prompt, plain) > 100 * MODEL_TOLERANCE
    expected = reweighted(reference(theirs, [DARK]), {1: 1 / 1.21})
    assert relative_error(found.negative, expected) <= MODEL_TOLERANCE


def test_each_chunk_keeps_its_own_mean(ours: CLIPTextModel, theirs: nn.Module) -> None:
    found = encoded(ours, "(cat:3) dark BREAK cat (dark:0.1) BREAK cat")
    expected = torch.cat(
        [
            reweighted(reference(theirs, [CAT, DARK]), {1: 3.0}),
            reweighted(reference(theirs, [CAT, DARK]), {2: 0.1}),
            reference(theirs, [CAT]),
        ],
        dim=1,
    )
    assert relative_error(found.prompt, expected) <= MODEL_TOLERANCE


@pytest.mark.parametrize("skip_layers", [0, 1, 2])
@torch.no_grad()
def test_clip_skip(ours: CLIPTextModel, theirs: nn.Module, skip_layers: int) -> None:
    found = encoded(ours, "cat dark", skip_layers=skip_layers)
    outputs = theirs(row([CAT, DARK]), output_hidden_states=True)
    norm = next(m for n, m in theirs.named_modules() if n.endswith("final_layer_norm"))
    expected = norm(outputs.hidden_states[-1 - skip_layers])
    assert relative_error(found.prompt, expected) <= MODEL_TOLERANCE


@pytest.mark.parametrize("skip_layers", [-1, 3])
def test_a_text_encoder_keeps_a_layer(ours: CLIPTextModel, skip_layers: int) -> None:
    with pytest.raises(ValueError, match=f"cannot skip {skip_layers} of 3 layers"):
        ours(row([CAT]), skip_layers=skip_layers)


@torch.no_grad()
def test_textual_inversions(ours: CLIPTextModel) -> None:
    """The reference gets three more rows in its table of embeddings, and their numbers."""
    vectors = normal(3, CONFIG.hidden_size, seed=3)
    given = [
        TextualInversion(Path("one.pt"), ("one",), vectors[:1]),
        TextualInversion(Path("two.pt"), ("<two>",), vectors[1:]),
    ]
    found = encoded(ours, "cat <two>, (one:1.2) dark", "one", textual_inversions=given)

    grown = reference_text_encoder(CONFIG)
    load_text_encoder(grown, ours.state_dict())
    grown.resize_token_embeddings(CONFIG.vocab_size + 3, mean_resizing=False)
    grown.get_input_embeddings().weight[CONFIG.vocab_size :] = vectors
    one, two, three = range(CONFIG.vocab_size, CONFIG.vocab_size + 3)
    expected = reweighted(reference(grown, [CAT, two, three, COMMA, one, DARK]), {5: 1.2})
    assert relative_error(found.prompt, expected) <= MODEL_TOLERANCE
    assert relative_error(found.negative, reference(grown, [one])) <= MODEL_TOLERANCE


def test_a_half_precision_text_encoder_takes_textual_inversions() -> None:
    half = randomise(CLIPTextModel(CONFIG)).to(torch.bfloat16)
    given = [TextualInversion(Path("one.pt"), ("one",), normal(1, CONFIG.hidden_size))]
    found = encoded(half, "one cat", textual_inversions=given)
    expected = encoded(randomise(CLIPTextModel(CONFIG)), "one cat", textual_inversions=given)
    assert found.prompt.dtype == torch.float32
    assert relative_error(found.prompt, expected.prompt) < 0.05


def test_what_is_left_out_does_not_count(ours: CLIPTextModel, theirs: nn.Module) -> None:
    cut = tokenize_prompt("cat " * 75 + "dark", TOKENIZER, CONFIG, long_prompt="truncate")
    (pair,) = encode_prompts([(cut, cut)], TOKENIZER, ours)
    found = Embeddings.of(pair)
    assert relative_error(found.prompt, reference(theirs, [CAT] * 75)) <= MODEL_TOLERANCE
    assert torch.equal(found.prompt, found.negative)


def test_nothing_is_kept_for_gradients() -> None:
    trained = randomise(CLIPTextModel(CONFIG)).requires_grad_(True)
    given = [TextualInversion(Path("one.pt"), ("one",), normal(1, CONFIG.hidden_size))]
    found = encoded(trained, "one (cat:1.3)", textual_inversions=given)
    assert not found.prompt.requires_grad
