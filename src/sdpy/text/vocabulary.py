"""The files that a vocabulary of byte-pair merges is in, and words that were added to it.

Three forms are about:

- a merges file, plain or gzip: a line that holds ``#version``, then a merge a line;
- in the folder of a tokenizer, ``merges.txt`` and beside it ``vocab.json`` (tokens and their ids),
  ``added_tokens.json`` and ``tokenizer_config.json`` (words that were added);
- ``tokenizer.json``, which holds all of this, in folders that transformers 5 writes.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from gzip import GzipFile
from pathlib import Path
from typing import Any

from sdpy.errors import WeightsError
from sdpy.files import read_input

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"

TOKENS_BESIDE_MERGES = 256 + 256 + 2
"""256 bytes, 256 bytes that end a word, and the two special tokens."""
CLIP_MERGES = 48_894
"""So many of the 262,144 in OpenAI's file CLIP was trained with."""
MAX_BYTES = 64 * 2**20
"""Of a file, and of what it unpacks to. CLIP's have 4 MB."""

_GZIP_MAGIC = b"\x1f\x8b"
_FILE = "merges.txt"


@dataclass(frozen=True)
class Vocabulary:
    """What the files say.

    Attributes:
        merges: pairs of symbols, the most frequent first.
        added: words beyond the vocabulary, with their ids.
    """

    merges: tuple[tuple[str, str], ...]
    added: Mapping[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of its tokens, without words that were added."""
        return len(self.merges) + TOKENS_BESIDE_MERGES


def read_vocabulary(path: Path, vocab_size: int, own_size: int | None = None) -> Vocabulary:
    """Read a vocabulary. The files say how large it is; where they do not, the text encoder does.

    Args:
        path: a merges file or a ``tokenizer.json``.
        vocab_size: of the text encoder. It may have more rows than there are tokens: for words
            that were added, or to fill it up. A merges file by itself may hold more merges, and
            the first are used, of CLIP's `CLIP_MERGES`.
        own_size: of the model's own vocabulary, where ``path`` is a merges file in its place.

    Raises:
        WeightsError: a file is missing or broken, is no vocabulary, or has too few merges.
        ValueError: ``vocab_size`` is less than any vocabulary has.
    """
    if vocab_size < TOKENS_BESIDE_MERGES:
        raise ValueError(f"vocab_size is {vocab_size}, at least {TOKENS_BESIDE_MERGES} needed")
    try:
        text = _read_text(path)
        if text.lstrip().startswith("{"):
            found = _read_tokenizer_json(text)
        else:
            found = _read_merges_file(path, text, vocab_size, own_size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise not_a_vocabulary(path, error) from error
    beyond = {word: number for word, number in found.added.items() if number >= found.size}
    for word, number in beyond.items():
        if number >= vocab_size:
            raise WeightsError(
                f"{path}: the word {word!r} was added as number {number}, but the text encoder has "
                f"only {vocab_size} rows; this file belongs to another model"
            )
    if found.size > vocab_size:
        raise WeightsError(
            f"{path}: has {found.size} tokens, the text encoder only {vocab_size}; this file "
            "belongs to another model"
        )
    return Vocabulary(found.merges, beyond)


def not_a_vocabulary(path: Path, reason: Exception) -> WeightsError:
    """The error for a file that is no vocabulary."""
    return WeightsError(
        f"{path}: not a vocabulary of byte-pair merges ({reason}); CLIP's is called "
        "bpe_simple_vocab_16e6.txt"
    )


def _read_merges_file(path: Path, text: str, vocab_size: int, own_size: int | None) -> Vocabulary:
    ids, added = (None, {}) if path.name != _FILE else _read_beside(path)
    if ids is not None:
        own_size = max(ids.values()) + 1
    lines = text.split("\n")
    if "#version" not in lines[0]:
        raise ValueError("its first line does not say #version")
    held = len(lines) - 1
    while held and not lines[held].strip():
        held -= 1
    needed = vocab_size if own_size is None else own_size
    if own_size is None and vocab_size > CLIP_MERGES + TOKENS_BESIDE_MERGES:
        needed = CLIP_MERGES + TOKENS_BESIDE_MERGES
    count = needed - TOKENS_BESIDE_MERGES
    merges = []
    for number, line in enumerate(lines[1 : 1 + min(count, held)], start=2):
        pair = line.split()
        if len(pair) != 2:
            raise ValueError(f"line {number} does not hold two symbols")
        merges.append((pair[0], pair[1]))
    if len(merges) < count:
        raise WeightsError(
            f"{path}: holds {len(merges)} merges, {count} are needed for a vocabulary of "
            f"{needed} tokens; this file belongs to another model or was cut short"
        )
    if ids is not None:
        _check_ids(ids, merges, {})
    return Vocabulary(tuple(merges), added)


def _read_beside(merges: Path) -> tuple[dict[str, int] | None, dict[str, int]]:
    """What the other files in the folder of a tokenizer say: ids of tokens, and added words."""
    added: dict[str, int] = {}
    options = _read_json(merges.with_name("tokenizer_config.json"))
    for number, one in dict(options.get("added_tokens_decoder", {})).items():
        added[_text(one["content"])] = int(number)
    for word, number in _read_json(merges.with_name("added_tokens.json")).items():
        added[_text(word)] = _whole(number)
    ids = _read_json(merges.with_name("vocab.json"))
    return ({token: _whole(number) for token, number in ids.items()} or None), _words(added)


def _read_tokenizer_json(text: str) -> Vocabulary:
    found = json.loads(text)
    model = found["model"]
    if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != "</w>":
        raise ValueError("its tokenizer is not CLIP's")
    pairs = [one.split(" ") if isinstance(one, str) else one for one in model["merges"]]
    merges = [(_text(first), _text(second)) for first, second in pairs]
    added = {_text(one["content"]): _whole(one["id"]) for one in found.get("added_tokens", ())}
    _check_ids({token: _whole(number) for token, number in model["vocab"].items()}, merges, added)
    return Vocabulary(tuple(merges), _words(added))


def _check_ids(
    ids: Mapping[str, int], merges: list[tuple[str, str]], added: Mapping[str, int]
) -> None:
    """Raises ``ValueError`` where tokens are not numbered in the order of the merges."""
    expected = {a + b: TOKENS_BESIDE_MERGES - 2 + i for i, (a, b) in enumerate(merges)}
    expected[START_TOKEN] = len(merges) + TOKENS_BESIDE_MERGES - 2
    expected[END_TOKEN] = len(merges) + TOKENS_BESIDE_MERGES - 1
    for token, number in expected.items():
        if ids.get(token, added.get(token, number)) != number:
            raise ValueError(f"its token {token!r} has the number {ids.get(token)}, not {number}")


def _words(added: Mapping[str, int]) -> dict[str, int]:
    return {word: number for word, number in added.items() if word.strip()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("one of its tokens is no text")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**24:
        raise ValueError("one of its tokens has no proper number")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_input(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not a JSON file ({error}); download it again") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: holds no JSON object; download it again")
    return found


def _read_text(path: Path) -> str:
    try:
        data = read_input(path, MAX_BYTES)
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
            with GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise WeightsError(
                f"{path}: the vocabulary is a broken gzip file ({error}); download it again"
            ) from error
        if len(data) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES >> 20} MB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
