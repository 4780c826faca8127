"""Prompts as chunks of tokens, and their weights; beside transformers they are in parity/."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdpy.checkpoints import TextualInversion
from sdpy.errors import UsageError, WeightsError
from sdpy.models import CLIPTextConfig
from sdpy.text.conditioning import frame, weigh
from sdpy.text.prompts import Chunk, TokenizedPrompt, tokenize_prompt
from sdpy.text.tokenizer import CLIPTokenizer, clean
from support.compare import normal
from support.tiny import MERGES, TINY

TOKENIZER = CLIPTokenizer(MERGES)
CONFIG = TINY.text_encoder
SHORT = replace(CONFIG, max_position_embeddings=12)  # chunks of 10
CAT, DARK, COMMA = (TOKENIZER.encode(word)[0] for word in ("cat", "dark", ","))


def tokenized(text: str, config: CLIPTextConfig = CONFIG, **options: object) -> TokenizedPrompt:
    return tokenize_prompt(text, TOKENIZER, config, **options)  # type: ignore[arg-type]


def ids(chunk: Chunk) -> list[int]:
    return [number for token in chunk for number in token.ids]


def lengths(prompt: TokenizedPrompt) -> list[int]:
    return [len(ids(chunk)) for chunk in prompt.chunks]


def inversion(*names: str, count: int = 1, width: int = CONFIG.hidden_size) -> TextualInversion:
    return TextualInversion(Path(f"{names[0]}.pt"), names, normal(count, width))


# --- chunks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"), [(0, [0]), (1, [1]), (75, [75]), (76, [75, 1]), (200, [75, 75, 50])]
)
def test_a_chunk_holds_75_tokens(count: int, expected: list[int]) -> None:
    assert lengths(tokenized("cat " * count)) == expected


def test_the_length_of_a_chunk_is_the_text_encoders() -> None:
    assert lengths(tokenized("cat " * 25, SHORT)) == [10, 10, 5]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # (tokens before the comma, tokens after it) -> lengths of chunks; the comma is token 76
        # of none, and ends a chunk if it is one of its last 20 tokens
        ((60, 30), [61, 30]),
        ((55, 30), [56, 30]),
        ((54, 30), [75, 10]),
        ((74, 30), [75, 30]),
        ((60, 14), [75]),
        ((60, 15), [61, 15]),
        # it would be the 76th itself: nothing is carried over
        ((75, 30), [75, 31]),
    ],
)
def test_a_full_chunk_ends_after_a_comma_that_is_near(
    words: tuple[int, int], expected: list[int]
) -> None:
    before, after = words
    prompt = tokenized("cat " * before + "," + " dark" * after)
    assert lengths(prompt) == expected
    assert [number for chunk in prompt.chunks for number in ids(chunk)] == [
        *[CAT] * before,
        COMMA,
        *[DARK] * after,
    ]


def test_of_several_commas_the_last_counts() -> None:
    prompt = tokenized("cat, " * 37 + "cat dark dark")  # the 75th token is a cat
    assert lengths(prompt) == [74, 3]


def test_a_comma_that_does_not_fit_cuts_at_no_other() -> None:
    assert lengths(tokenized("cat " * 65 + ", " + "cat " * 9 + ", dark")) == [75, 2]


def test_break_starts_a_chunk() -> None:
    assert [ids(chunk) for chunk in tokenized("cat BREAK dark, BREAK cat dark").chunks] == [
        [CAT],
        [DARK, COMMA],
        [CAT, DARK],
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("BREAK", [0]),
        ("cat BREAK", [1]),
        ("BREAK cat", [0, 1]),
        ("cat BREAK BREAK cat", [1, 0, 1]),
        ("cat " * 75 + "BREAK cat", [75, 1]),
        ("cat " * 80 + "BREAK cat", [75, 5, 1]),
        ("cat " * 60 + "," + " cat" * 10 + " BREAK cat", [71, 1]),  # no full chunk, so no comma
    ],
)
def test_chunks_around_breaks(text: str, expected: list[int]) -> None:
    assert lengths(tokenized(text)) == expected


@given(st.lists(st.sampled_from(["cat", "dark", ",", "é", "BREAK", "(dark:1.2)", "new"])))
def test_chunks_hold_all_tokens_in_their_order(words: list[str]) -> None:
    new = inversion("new", count=3)
    prompt = tokenized(" ".join(words), SHORT, textual_inversions=[new])
    expected = []
    for word in words:
        if word == "new":
            expected += [CONFIG.vocab_size, CONFIG.vocab_size + 1, CONFIG.vocab_size + 2]
        elif word != "BREAK":
            expected += TOKENIZER.encode(word.removeprefix("(").removesuffix(":1.2)"))
    assert [number for chunk in prompt.chunks for number in ids(chunk)] == expected
    assert all(length <= 10 for length in lengths(prompt))
    assert len(prompt.chunks) >= min(len(words), words.count("BREAK"))


# --- long prompts that are not chunked -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept", "dropped"),
    [
        ("cat", 1, ""),
        ("cat " * 10, 10, ""),
        ("cat " * 10 + "dark,  Cat", 10, "dark, cat"),
        ("cat, " * 5 + "dark", 10, "dark"),  # no heed to commas
        ("cat " * 10 + "(dark (cat:1.3)) dark", 10, "dark cat dark"),
        ("cat BREAK dark", 1, "dark"),
        ("cat BREAK", 1, ""),
        # "lightcat" is light cat</w>: its second part does not fit
        ("cat " * 9 + "lightcat dark", 10, "cat dark"),
        # half of é fits, so all of it counts as dropped
        ("cat " * 9 + "é dark", 10, "é dark"),
    ],
)
def test_truncating_says_what_is_left_out(text: str, kept: int, dropped: str) -> None:
    prompt = tokenized(text, SHORT, long_prompt="truncate")
    assert lengths(prompt) == [kept]
    assert prompt.dropped == dropped


@given(st.text())
def test_truncating_a_plain_prompt_keeps_and_drops_the_whole_text(text: str) -> None:
    prompt = tokenized(text, SHORT, long_prompt="truncate", syntax="plain")
    kept = "".join(token.text for token in prompt.tokens)
    if prompt.tokens:
        assert (kept + prompt.dropped).split() == clean(text).split()


def test_an_error_names_what_does_not_fit() -> None:
    assert tokenized("cat " * 10, SHORT, long_prompt="error") == tokenized("cat " * 10, SHORT)
    with pytest.raises(UsageError, match="the negative prompt takes more than one .* 'dark, at'"):
        tokenized("cat " * 10 + "Dark, at", SHORT, long_prompt="error", what="negative prompt")
    with pytest.raises(UsageError, match="'dark' does not fit"):
        tokenized("cat BREAK dark", long_prompt="error")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_prompt": "cut"}, "'cut': use one of chunk, truncate, error"),
        ({"syntax": "a1111"}, "'a1111': use one of weighted, plain"),
    ],
)
def test_unknown_choices_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tokenized("cat", **options)


# --- weights -------------------------------------------------------------------------------------


def test_tokens_have_the_weights_of_their_spans() -> None:
    prompt = tokenized("cat (lightcat [dark]:1.5) BREAK (cat:0)")
    weights = [[(t.text.strip(), round(t.weight, 3)) for t in chunk] for chunk in prompt.chunks]
    assert weights == [
        [("cat", 1), ("light", 1.5), ("cat", 1.5), ("dark", 1.364)],
        [("cat", 0)],
    ]


def test_a_plain_prompt_has_no_syntax() -> None:
    text = r"cat (dark:1.5) [the] \( BREAK"
    prompt = tokenized(text, syntax="plain")
    assert [token.ids[0] for token in prompt.tokens] == TOKENIZER.encode(text)
    assert {token.weight for token in prompt.tokens} == {1.0}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "0 of 75 tokens"),
        ("cat dark", "2 of 75 tokens"),
        ("cat " * 76, "76 tokens in 2 chunks of 75"),
        ("cat BREAK dark", "2 tokens in 2 chunks of 75"),
        ("a (cat, dark:1.25) b", "5 of 75 tokens; weighted: 'cat, dark' 1.25"),
        ("([cat])", "1 of 75 tokens"),
        ("(cat) BREAK [dark]", "2 tokens in 2 chunks of 75; weighted: 'cat' 1.1, 'dark' 0.909"),
    ],
)
def test_a_prompt_tells_its_length_and_weights(text: str, told: str) -> None:
    assert str(tokenized(text)) == told


def test_a_chunk_is_framed_and_padded() -> None:
    start, end = TOKENIZER.start_id, TOKENIZER.end_id
    (chunk,) = tokenized("cat (dark:2)").chunks
    assert frame(chunk, TOKENIZER, None, 4) == (
        [start, CAT, DARK, end, end, end],
        [1, 1, 2, 1, 1, 1],
    )
    assert frame(chunk, TOKENIZER, 0, 3) == ([start, CAT, DARK, end, 0], [1, 1, 2, 1, 1])
    assert frame((), TOKENIZER, None, 1) == ([start, end, end], [1, 1, 1])


def test_weights_keep_the_mean_of_their_row_and_spare_the_others() -> None:
    embeddings = normal(3, 5, 4) + 0.3
    weights = torch.ones(3, 5)
    weights[1, 2], weights[1, 3], weights[2, 0] = 1.5, 0.0, -1.0
    weighted = weigh(embeddings, weights)
    assert torch.equal(weighted[0], embeddings[0])
    torch.testing.assert_close(weighted.mean(dim=(1, 2)), embeddings.mean(dim=(1, 2)))
    ratio = weighted[1] / embeddings[1]
    torch.testing.assert_close(ratio / ratio[0, 0], weights[1, :, None].expand(5, 4))
    assert torch.equal(weigh(embeddings, torch.ones(3, 5)), embeddings)


@pytest.mark.parametrize("weight", [float("inf"), float("-inf"), float("nan"), 1e38])
def test_weights_out_of_all_bounds_are_refused(weight: float) -> None:
    weights: Tensor = torch.ones(2, 5)
    weights[1, 2] = weight
    with pytest.raises(UsageError, match="weights are too large"):
        weigh(100 * normal(2, 5, 4), weights)


# --- textual inversions --------------------------------------------------------------------------

STYLE, CATTISH = inversion("style", count=3), inversion("cattish", "<cat>", count=2)
FIRST = CONFIG.vocab_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("style", [FIRST, FIRST + 1, FIRST + 2]),
        ("cattish", [FIRST + 3, FIRST + 4]),
        ("<cat>", [FIRST + 3, FIRST + 4]),
        ("cat,<Cat>,", [CAT, COMMA, FIRST + 3, FIRST + 4, COMMA]),
        ("cat STYLE dark", [CAT, FIRST, FIRST + 1, FIRST + 2, DARK]),
        ("styles lifestyle", TOKENIZER.encode("styles lifestyle")),
        ("cat<cat>cat", [CAT, FIRST + 3, FIRST + 4, CAT]),
    ],
)
def test_a_textual_inversion_stands_for_its_vectors(text: str, expected: list[int]) -> None:
    (chunk,) = tokenized(text, textual_inversions=[STYLE, CATTISH]).chunks
    assert ids(chunk) == expected


def test_it_is_weighted_and_counted_as_its_vectors() -> None:
    prompt = tokenized("cat (style:1.5)", textual_inversions=[STYLE])
    assert str(prompt) == "4 of 75 tokens; weighted: 'style' 1.5"
    assert frame(prompt.chunks[0], TOKENIZER, None, 5)[1] == [1, 1, 1.5, 1.5, 1.5, 1, 1]
    assert prompt.uses(STYLE)
    assert not prompt.uses(CATTISH)


def test_it_is_not_cut_apart() -> None:
    text = "cat " * 8 + "style dark"
    assert lengths(tokenized(text, SHORT, textual_inversions=[STYLE])) == [8, 4]
    cut = tokenized(text, SHORT, textual_inversions=[STYLE], long_prompt="truncate")
    assert (lengths(cut), cut.dropped) == ([8], "style dark")


def test_of_two_names_the_longer_counts() -> None:
    given = [inversion("dark"), inversion("dark cat"), inversion("dark-cat")]
    (chunk,) = tokenized("dark cat, dark-cat dark", textual_inversions=given).chunks
    assert ids(chunk) == [FIRST + 1, COMMA, FIRST + 2, FIRST]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([inversion("x"), inversion("y", "X")], UsageError, "two embeddings are called 'X'"),
        ([inversion("x", count=76)], WeightsError, r"x\.pt: .* 76 vectors, .* takes 75"),
    ],
)
def test_textual_inversions_that_cannot_be_used(
    given: list[TextualInversion], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tokenized("cat", textual_inversions=given)
