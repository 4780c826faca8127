"""From a prompt's text to chunks of tokens.

The text encoder reads 77 tokens at a time: start, 75 of the prompt, end or padding. A longer
prompt is cut into chunks of 75, each of which is encoded by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from sdpy.checkpoints import TextualInversion
from sdpy.errors import UsageError, WeightsError
from sdpy.models import CLIPTextConfig
from sdpy.text.syntax import Section, Span, parse
from sdpy.text.tokenizer import CLIPTokenizer

LONG_PROMPT = ("chunk", "truncate", "error")
PROMPT_SYNTAX = ("weighted", "plain")

COMMA_WINDOW = 20
"""A full chunk ends after its last comma if that is one of so many last tokens."""


@dataclass(frozen=True)
class PromptToken:
    """What is not cut apart: a token, or all those of a textual inversion.

    Attributes:
        ids: one, or as many as the textual inversion has vectors, from ``vocab_size`` on.
        text: its share of the prompt; see `sdpy.text.tokenizer.Token`.
        weight: of its attention; 1 for none.
        inversion: the textual inversion.
    """

    ids: tuple[int, ...]
    text: str
    weight: float = 1.0
    inversion: TextualInversion | None = None


Chunk = tuple[PromptToken, ...]


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt's tokens.

    Attributes:
        chunks: at least one; each of at most ``room`` ids.
        dropped: the end of the prompt that was left out, "" when nothing was.
        room: ids that fit into a chunk.
    """

    chunks: tuple[Chunk, ...]
    dropped: str
    room: int

    @property
    def tokens(self) -> list[PromptToken]:
        """Those of all chunks."""
        return [token for chunk in self.chunks for token in chunk]

    def uses(self, textual_inversion: TextualInversion) -> bool:
        """Whether the prompt says one of its names."""
        return any(token.inversion is textual_inversion for token in self.tokens)

    def __str__(self) -> str:
        """Number of tokens, and what is weighted, for people."""
        count = len(token_ids(self.tokens))
        told = f"{count} of {self.room} tokens"
        if len(self.chunks) > 1:
            told = f"{count} tokens in {len(self.chunks)} chunks of {self.room}"
        weighted = [
            f"'{_text(group)}' {weight:.3g}"
            for weight, group in groupby(self.tokens, key=lambda token: token.weight)
            if weight != 1
        ]
        return f"{told}; weighted: {', '.join(weighted)}" if weighted else told


def tokenize_prompt(
    text: str,
    tokenizer: CLIPTokenizer,
    config: CLIPTextConfig,
    *,
    syntax: str = "weighted",
    long_prompt: str = "chunk",
    textual_inversions: Sequence[TextualInversion] = (),
    what: str = "prompt",
) -> TokenizedPrompt:
    """The tokens of a prompt, in chunks.

    Args:
        text: as typed.
        tokenizer: of the text encoder's vocabulary.
        config: of the text encoder; the chunks are of its length, less start and end.
        syntax: ``weighted`` (see `sdpy.text.syntax`) or ``plain``: all characters are text.
        long_prompt: what to do with more than a chunk: ``chunk`` makes as many as are needed,
            ``truncate`` keeps the first of them, full without regard to commas, ``error`` raises.
        textual_inversions: words that the prompt may use beside the vocabulary.
        what: what an error calls the text.

    Raises:
        UsageError: the prompt is too long and ``long_prompt`` is ``error``, an unknown choice, or
            two textual inversions of one name.
        WeightsError: a textual inversion that is longer than a chunk.
    """
    _check_choice("prompt syntax", syntax, PROMPT_SYNTAX)
    _check_choice("way with long prompts", long_prompt, LONG_PROMPT)
    sections: tuple[Section, ...] = parse(text) if syntax == "weighted" else ((Span(text),),)
    words = _words(textual_inversions, config)
    room = config.max_position_embeddings - 2
    tokens = [list(_tokens(section, tokenizer, words)) for section in sections]
    if long_prompt == "chunk":
        (comma,) = tokenizer.encode(",")
        chunks = [chunk for section in tokens for chunk in _chunks(section, room, comma)]
        if len(chunks) > 1 and not chunks[-1]:
            del chunks[-1]  # nothing follows the last BREAK
        return TokenizedPrompt(tuple(chunks), "", room)

    first = tokens[0]
    kept = _fitting(first, room)
    dropped = _text([*first[kept:], *(token for section in tokens[1:] for token in section)])
    if dropped and long_prompt == "error":
        raise UsageError(
            f"the {what} takes more than one chunk of {room} tokens, '{dropped}' does not fit; "
            "shorten it, or use --long-prompt chunk"
        )
    return TokenizedPrompt((tuple(first[:kept]),), dropped, room)


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"unknown {what} '{value}': use one of {', '.join(choices)}")


def check_textual_inversions(
    textual_inversions: Iterable[TextualInversion], encoders: Mapping[str, CLIPTextConfig]
) -> None:
    """Check that there are vectors of each word for all text encoders of a model.

    Args:
        textual_inversions: the words.
        encoders: sizes of the text encoders, by component.

    Raises:
        WeightsError: a word is for other text encoders.
    """
    for inversion in textual_inversions:
        if inversion.vectors_2 is not None and "text_encoder_2" not in encoders:
            raise WeightsError(
                f"{inversion.path} is an embedding for Stable Diffusion XL, but the model has one "
                "text encoder; use one that was made for this model"
            )
        for name, config in encoders.items():
            vectors = inversion.of(name)
            if vectors is None:
                raise WeightsError(
                    f"{inversion.path}: an embedding for one text encoder, but the model has a "
                    "second; use one with clip_l and clip_g"
                )
            if vectors.shape[1] != config.hidden_size:
                raise WeightsError(
                    f"{inversion.path}: an embedding {vectors.shape[1]} wide, but the text encoder "
                    f"is {config.hidden_size} wide; use one that was made for this model"
                )


def _words(
    textual_inversions: Iterable[TextualInversion], config: CLIPTextConfig
) -> dict[str, PromptToken]:
    """The new words by their names, lower-cased; their ids begin at the vocabulary's end."""
    room = config.max_position_embeddings - 2
    words: dict[str, PromptToken] = {}
    start = config.vocab_size
    for inversion in textual_inversions:
        count = len(inversion.vectors)
        if count > room:
            raise WeightsError(
                f"{inversion.path}: an embedding of {count} vectors, but the text encoder takes "
                f"{room}; use a shorter one"
            )
        word = PromptToken(tuple(range(start, start + count)), "", inversion=inversion)
        start += count
        for name in inversion.names:
            if name.lower() in words:
                raise UsageError(
                    f"two embeddings are called '{name}'; rename one: --embedding NAME=PATH"
                )
            words[name.lower()] = word
    return words


def _tokens(
    section: Section, tokenizer: CLIPTokenizer, words: Mapping[str, PromptToken]
) -> Iterator[PromptToken]:
    for span in section:
        for text, word in _split_at_words(span.text, words):
            if word is not None:
                yield replace(word, text=f"{text} ", weight=span.weight)
                continue
            tokens = tokenizer.tokenize(text)
            for i, token in enumerate(tokens, start=1):
                space = " " if i == len(tokens) else ""  # before what follows
                yield PromptToken((token.id,), token.text + space, span.weight)


def _split_at_words(
    text: str, words: Mapping[str, PromptToken]
) -> Iterator[tuple[str, PromptToken | None]]:
    """Pieces of a text: the names in it, in upper or lower case, and what is between them.

    A name is no part of a longer word; of two that fit, the longer counts.
    """
    position = 0
    if words:
        ordered = sorted(words, key=len, reverse=True)
        pattern = "|".join(rf"({_whole(name)})" for name in ordered)
        for match in re.finditer(pattern, text, re.IGNORECASE):
            assert match.lastindex is not None  # the group that matched, from 1 on
            yield text[position : match.start()], None
            yield match.group(), words[ordered[match.lastindex - 1]]
            position = match.end()
    yield text[position:], None


def _whole(name: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", name[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", name[-1]) else ""
    return before + re.escape(name) + after


def _chunks(tokens: Sequence[PromptToken], room: int, comma: int) -> Iterator[Chunk]:
    """Cut a section. As in A1111's web UI, a full chunk ends after a comma, if there is one near.

    It does not if the token after it is itself a comma.
    """
    while (fitting := _fitting(tokens, room)) < len(tokens):
        chunk = tokens[:fitting]
        ids = token_ids(chunk)
        if len(ids) == room and tokens[fitting].ids != (comma,) and comma in ids[-COMMA_WINDOW:]:
            fitting -= [token.ids for token in reversed(chunk)].index((comma,))
        yield tuple(tokens[:fitting])
        tokens = tokens[fitting:]
    yield tuple(tokens)


def _fitting(tokens: Sequence[PromptToken], room: int) -> int:
    """How many of the tokens fit. A textual inversion longer than a chunk never does."""
    for i, token in enumerate(tokens):
        room -= len(token.ids)
        if room < 0:
            return i
    return len(tokens)


def token_ids(tokens: Iterable[PromptToken]) -> list[int]:
    """The ids of some tokens, one after another."""
    return [number for token in tokens for number in token.ids]


def _text(tokens: Iterable[PromptToken]) -> str:
    return "".join(token.text for token in tokens).strip()
