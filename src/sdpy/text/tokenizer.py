"""CLIP's text tokenizer: lower-cased byte-pair encoding, as OpenAI published it with CLIP.

Text is cleaned (mojibake repaired by ftfy, HTML entities resolved twice, runs of white space made
one space, lower-cased), cut into words by a pattern, and every word's UTF-8 bytes are joined pair
by pair in the order of a learned list of merges (Sennrich et al. 2016, "Neural Machine Translation
of Rare Words with Subword Units", on bytes as in Radford et al. 2019, GPT-2). A word's last symbol
carries the mark ``</w>``.
"""

from __future__ import annotations

import codecs
import gzip
import heapq
import html
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import ftfy
import regex

from sdpy.errors import WeightsError

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
WORD_END = "</w>"

# 256 bytes, 256 bytes that end a word, and the two special tokens.
_TOKENS_BESIDE_MERGES = 256 + 256 + 2

_WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>"  # the special tokens, spelled out
    r"|'s|'t|'re|'ve|'m|'ll|'d"  # English contractions
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",  # letters, one digit, anything else that is visible
    regex.IGNORECASE,
)
_WHITE_SPACE = regex.compile(r"\s+")

_GZIP_MAGIC = b"\x1f\x8b"
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

    def __init__(self, merges: Iterable[tuple[str, str]]) -> None:
        """Build the vocabulary from ``merges``, the most frequent pair first.

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
        self._cached_word_ids = lru_cache(maxsize=_CACHED_WORDS)(self._word_ids)

    @classmethod
    def from_file(cls, path: str | Path, vocab_size: int = 49408) -> CLIPTokenizer:
        """Read a merges file, plain or gzip: a line that holds ``#version``, then a merge a line.

        The first ``vocab_size - 514`` merges are used; CLIP's own file holds more than CLIP does.

        Raises:
            WeightsError: the file is missing or broken, is no merges file, or has too few merges.
        """
        if vocab_size < _TOKENS_BESIDE_MERGES:
            raise ValueError(f"vocab_size is {vocab_size}, at least {_TOKENS_BESIDE_MERGES} needed")
        count = vocab_size - _TOKENS_BESIDE_MERGES
        try:
            return cls(read_merges(Path(path), count))
        except ValueError as error:
            raise WeightsError(
                f"{path}: not a vocabulary of byte-pair merges ({error}); "
                "CLIP's is called bpe_simple_vocab_16e6.txt"
            ) from error

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
        return [token for word in _WORD.findall(clean(text)) for token in self._ids_of(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ``ids`` stand for, words separated by spaces.

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
        for match in _WORD.finditer(cleaned):
            word_ids = self._ids_of(match.group())
            ids += word_ids
            starts += self._starts(word_ids, match.start())
        bounds = [0, *starts[1:], len(cleaned)]
        return [Token(token, cleaned[bounds[i] : bounds[i + 1]]) for i, token in enumerate(ids)]

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


def read_merges(path: Path, count: int) -> list[tuple[str, str]]:
    """The first ``count`` merges of a file; ValueError says what is not as in a merges file."""
    lines = _read_text(path).split("\n")
    if "#version" not in lines[0]:
        raise ValueError("its first line does not say #version")
    merges = []
    for number, line in enumerate(lines[1 : 1 + count], start=2):
        pair = line.split()
        if not pair and not any(lines[number:]):
            break  # the end of the file
        if len(pair) != 2:
            raise ValueError(f"line {number} does not hold two symbols")
        merges.append((pair[0], pair[1]))
    if len(merges) < count:
        raise WeightsError(
            f"{path}: holds {len(merges)} merges, {count} are needed for a vocabulary of "
            f"{count + _TOKENS_BESIDE_MERGES} tokens; this file belongs to another model or was "
            "cut short"
        )
    return merges


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path}: no such vocabulary file (looked in {path.absolute().parent}); get "
            "bpe_simple_vocab_16e6.txt or its .gz, or name another with --vocab-file"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"{path}: the vocabulary cannot be read ({error.strerror}); "
            "give the path of a merges file"
        ) from error
    if data.startswith(_GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise WeightsError(
                f"{path}: the vocabulary is a broken gzip file ({error}); download it again"
            ) from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
