"""CLIP's text tokenizer: lower-cased byte-pair encoding, as OpenAI published it with CLIP.

Text is cleaned (mojibake repaired by ftfy, HTML entities resolved twice, runs of white space made
one space, lower-cased), cut into words by a pattern, and every word's UTF-8 bytes are joined pair
by pair in the order of a learned list of merges (Sennrich et al. 2016, "Neural Machine Translation
of Rare Words with Subword Units", on bytes as in Radford et al. 2019, GPT-2). A word's last symbol
carries the mark ``</w>``.
"""

from __future__ import annotations

import codecs
import heapq
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import regex

from sdpy.text.vocabulary import END_TOKEN, START_TOKEN, not_a_vocabulary, read_vocabulary

WORD_END = "</w>"

_WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>"  # the special tokens, spelled out
    r"|'s|'t|'re|'ve|'m|'ll|'d"  # English contractions
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",  # letters, one digit, anything else that is visible
    regex.IGNORECASE,
)
_WHITE_SPACE = regex.compile(r"\s+")

_CACHED_WORDS = 8192


class Token(NamedTuple):
    """A token's id, and its share of the text.

    A character of several tokens belongs to the last of them; white space to the token before it.
    """

    id: int
    text: str


class CLIPTokenizer:
    """Byte-level byte-pair encoding with CLIP's vocabulary.

    Token ids are numbered: 256 bytes, the same 256 as a word's last byte, one per merge, start,
    end. With CLIP's own 48,894 merges start is 49406 and end is 49407.
    """

    def __init__(
        self, merges: Iterable[tuple[str, str]], added: Mapping[str, int] | None = None
    ) -> None:
        """Build the vocabulary.

        Args:
            merges: the most frequent pair first.
            added: words that were added to it, with their ids. A prompt that says one of them says
                those called ``WORD_1``, ``WORD_2`` ... as well, as diffusers does.

        Raises:
            ValueError: a merge joins symbols that no earlier merge makes.
        """
        symbols = list(_byte_symbols().values())
        tokens = symbols + [symbol + WORD_END for symbol in symbols]
        ids = {token: i for i, token in enumerate(tokens)}
        pairs: list[tuple[str, str]] = []
        for first, second in merges:
            if first not in ids or second not in ids:
                raise ValueError(f"merge {len(pairs) + 1} joins {first!r} and {second!r}, unknown")
            pairs.append((first, second))
            # Should two merges make the same token, its last number counts, as in OpenAI's.
            ids[first + second] = len(tokens)
            tokens.append(first + second)

        self.start_id = len(tokens)
        self.end_id = len(tokens) + 1
        self._tokens = [*tokens, START_TOKEN, END_TOKEN]
        self._byte_ids = [ids[symbol] for _, symbol in sorted(_byte_symbols().items())]
        self._ranks = {(ids[a], ids[b]): rank for rank, (a, b) in enumerate(pairs)}
        self._merged = [ids[a + b] for a, b in pairs]
        self.added = {} if added is None else dict(added)
        self._added_ids = {word.lower(): self._ids_of_added(word) for word in self.added}
        longest_first = sorted(self._added_ids, key=len, reverse=True)
        self._added_words = regex.compile("|".join(map(regex.escape, longest_first)) or "(?!)")
        self._cached_word_ids = lru_cache(maxsize=_CACHED_WORDS)(self._word_ids)

    @classmethod
    def from_file(
        cls, path: str | Path, vocab_size: int = 49408, own_size: int | None = None
    ) -> CLIPTokenizer:
        """Read a vocabulary; see `sdpy.text.vocabulary.read_vocabulary`, which raises the same."""
        vocabulary = read_vocabulary(Path(path), vocab_size, own_size)
        try:
            return cls(vocabulary.merges, vocabulary.added)
        except ValueError as error:
            raise not_a_vocabulary(Path(path), error) from error

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens as a vocabulary file spells them, by id."""
        return tuple(self._tokens)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the two special ones included."""
        return len(self._tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` without start and end, however many there are."""
        return [token for _, ids in self._words(clean(text)) for token in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ``ids`` of the vocabulary stand for, words separated by spaces.

        Special tokens appear by name; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        out = bytearray()
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is not in 0..{self.vocab_size - 1}")
            out += self._token_bytes(token)
            if self._tokens[token].endswith(WORD_END):
                out += b" "
        return out.decode("utf-8", errors="replace").strip()

    def tokenize(self, text: str) -> list[Token]:
        """What `encode` gives, with each token's text; together these are the cleaned text."""
        cleaned = clean(text)
        ids: list[int] = []
        starts: list[int] = []  # where in the cleaned text a token's share begins
        for start, word_ids in self._words(cleaned):
            ids += word_ids
            starts += self._starts(word_ids, start)
        bounds = [0, *starts[1:], len(cleaned)]
        return [Token(token, cleaned[bounds[i] : bounds[i + 1]]) for i, token in enumerate(ids)]

    def _words(self, cleaned: str) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Where each word begins, and its ids; words that were added come before all others."""
        begin = 0
        for added in self._added_words.finditer(cleaned):
            yield from self._usual_words(cleaned, begin, added.start())
            yield added.start(), self._added_ids[added.group()]
            begin = added.end()
        yield from self._usual_words(cleaned, begin, len(cleaned))

    def _usual_words(
        self, cleaned: str, begin: int, end: int
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        for match in _WORD.finditer(cleaned, begin, end):
            yield match.start(), self._ids_of(match.group())

    def _ids_of_added(self, word: str) -> tuple[int, ...]:
        ids = [self.added[word]]
        while (more := self.added.get(f"{word}_{len(ids)}")) is not None:
            ids.append(more)
        return tuple(ids)

    def _ids_of(self, word: str) -> tuple[int, ...]:
        if word == START_TOKEN:
            return (self.start_id,)
        if word == END_TOKEN:
            return (self.end_id,)
        return self._cached_word_ids(word)

    def _word_ids(self, word: str) -> tuple[int, ...]:
        ids = [self._byte_ids[byte] for byte in word.encode("utf-8")]
        ids[-1] += 256  # the same byte with the mark of a word's end
        return tuple(_merge(ids, self._ranks, self._merged))

    def _token_bytes(self, token: int) -> bytes:
        if token >= len(self._tokens):
            return b""  # of a word that was added, whose last token has all of its text
        text = self._tokens[token]
        if token in (self.start_id, self.end_id):
            return text.encode("ascii")
        return bytes(_SYMBOL_BYTES[symbol] for symbol in text.removesuffix(WORD_END))

    def _starts(self, word_ids: Sequence[int], start: int) -> Iterator[int]:
        """Where the tokens of a word begin that begins at ``start``, counted in characters."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        for token in word_ids:
            yield start
            start += len(decoder.decode(self._token_bytes(token)))


def clean(text: str) -> str:
    """``text`` as the tokenizer sees it: repaired, unescaped, single-spaced, lower-cased."""
    if not (text.isascii() and text.isprintable()) or "&" in text:  # else it is as it should be
        import ftfy  # its import takes as long as a step of a small model

        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _WHITE_SPACE.sub(" ", text).strip().lower()


def _byte_symbols() -> dict[int, str]:
    """The visible character that stands for each byte in a merges file, in the order of the ids.

    Visible Latin-1 characters stand for themselves and come first; the others are moved to 256
    and up.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    moved = {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return {byte: chr(byte) for byte in visible} | moved


_SYMBOL_BYTES = {symbol: byte for byte, symbol in _byte_symbols().items()}


def _merge(ids: list[int], ranks: dict[tuple[int, int], int], merged: list[int]) -> list[int]:
    """Join pairs of a word's ``ids``, lowest rank first, until no pair has a rank.

    All occurrences of a pair are joined, from left to right, before the next pair is chosen. The
    pairs wait in a heap and the symbols form a linked list, so that a word of n bytes takes
    n log n steps, however long the word: prompts also come from other programs.
    """
    n = len(ids)
    ids = list(ids)
    before = list(range(-1, n - 1))
    after = list(range(1, n + 1))  # n: nothing follows
    joined = [False] * n  # this symbol has become part of the one before it

    def rank_at(i: int) -> int | None:
        return ranks.get((ids[i], ids[after[i]])) if after[i] < n else None

    heap = [(rank, i) for i in range(n) if (rank := rank_at(i)) is not None]
    heapq.heapify(heap)
    while heap:
        rank = heap[0][0]
        places = []
        while heap and heap[0][0] == rank:
            places.append(heapq.heappop(heap)[1])
        for i in places:
            if joined[i] or rank_at(i) != rank:  # an earlier merge has taken one of the two
                continue
            gone = after[i]
            ids[i] = merged[rank]
            joined[gone] = True
            after[i] = after[gone]
            if after[i] < n:
                before[after[i]] = i
            for left in (before[i], i):
                if left >= 0 and (new := rank_at(left)) is not None:
                    heapq.heappush(heap, (new, left))
    return [token for token, is_gone in zip(ids, joined, strict=True) if not is_gone]
