"""Vocabularies as old and new transformers save them, with words that were added."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer as TheirTokenizer

from sdpy.errors import WeightsError
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.text.vocabulary import CLIP_MERGES, read_vocabulary
from sdpy.zoo.convert import tokenizer_files
from support.tiny import MERGES

SIZE = 514 + len(MERGES)
TEXTS = (
    "a lighthouse at night",
    "the <zorbel> house, <zorbel>!",
    "!!<Zorbel><zorbel>dark cat",
    "<|endoftext|> light <|startoftext|>",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer's folder of the old kind."""
    files = tokenizer_files(CLIPTokenizer(MERGES), MERGES, length=77)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def save_with_transformers(folder: Path, target: Path, *words: str) -> Any:
    theirs = TheirTokenizer.from_pretrained(folder)
    theirs.add_tokens(list(words))
    theirs.save_pretrained(target)
    return theirs


def assert_like_theirs(ours: CLIPTokenizer, theirs: Any) -> None:
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_tokenizer_json_alone(folder: Path, tmp_path: Path) -> None:
    theirs = save_with_transformers(folder, tmp_path / "new", "<zorbel>")
    names = {file.name for file in (tmp_path / "new").iterdir()}
    assert "tokenizer.json" in names and "merges.txt" not in names
    ours = CLIPTokenizer.from_file(tmp_path / "new/tokenizer.json", SIZE + 1)
    assert (ours.start_id, ours.end_id) == (SIZE - 2, SIZE - 1)
    assert ours.added == {"<zorbel>": SIZE}
    assert_like_theirs(ours, theirs)


def test_words_beside_a_merges_file(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<zorbel>": SIZE}))
    ours = CLIPTokenizer.from_file(folder / "merges.txt", SIZE + 8)
    assert (ours.end_id, ours.added) == (SIZE - 1, {"<zorbel>": SIZE})
    assert_like_theirs(ours, TheirTokenizer.from_pretrained(folder))


def test_texts_of_tokens_make_up_the_prompt(folder: Path) -> None:
    ours = CLIPTokenizer(MERGES, {"<zorbel>": SIZE, "<zorbel>_1": SIZE + 1})
    tokens = ours.tokenize("a <ZORBEL> light")
    assert "".join(token.text for token in tokens) == "a <zorbel> light"
    assert [SIZE, SIZE + 1] == [token.id for token in tokens if token.id >= SIZE]


def test_spare_rows_move_no_token(folder: Path) -> None:
    for rows in (SIZE, SIZE + 1, SIZE + 1000):
        assert CLIPTokenizer.from_file(folder / "merges.txt", rows).end_id == SIZE - 1


def test_clips_own_file_has_clips_size(tmp_path: Path) -> None:
    """It holds five times as many merges as CLIP has, whatever rows a text encoder has."""
    count = CLIP_MERGES + 20
    symbols = [chr(33 + i) for i in range(90)]
    pairs = [(a + b + c, d) for a in symbols for b in symbols for c in symbols for d in symbols[:1]]
    first = [(a, b) for a in symbols for b in symbols] + [
        (a + b, c) for a in symbols for b in symbols for c in symbols
    ]
    lines = [f"{a} {b}" for a, b in (*first, *pairs)][:count]
    path = tmp_path / "bpe_simple_vocab_16e6.txt"
    path.write_text("\n".join(["#version", *lines]), encoding="utf-8")
    for rows in (49408, 49409, 49416):
        assert CLIPTokenizer.from_file(path, rows).end_id == 49407


def test_another_vocabulary_has_the_models_own_size(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "merges.txt").read_text().rstrip("\n")
    (tmp_path / "long.txt").write_text(lines + "\nq z\n")
    assert read_vocabulary(tmp_path / "long.txt", SIZE + 1).size == SIZE + 1
    assert read_vocabulary(tmp_path / "long.txt", SIZE + 1, own_size=SIZE).size == SIZE


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("added_tokens.json", {"<x>": SIZE + 5}, f"was added as number {SIZE + 5}, but"),
        ("added_tokens.json", {"<x>": "7"}, "no proper number"),
        ("vocab.json", {"!": 7, "li": 3}, "its token 'li' has the number 3, not 512"),
        ("vocab.json", {"!": True}, "no proper number"),
        ("vocab.json", {"new": 10**6}, "1000001 tokens; this file belongs to another"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": 1}}, "not a vocabulary"),
        ("tokenizer_config.json", {"added_tokens_decoder": 3}, "not a vocabulary"),
    ],
)
def test_files_that_do_not_fit(folder: Path, file: str, keys: dict[str, Any], message: str) -> None:
    path = folder / file
    path.write_text(path.read_text() if path.exists() else "{}")
    change(path, **keys)
    with pytest.raises(WeightsError) as caught:
        CLIPTokenizer.from_file(folder / "merges.txt", SIZE + 2)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["{}", "{", '{"model": 3}', '{"model": {"type": "WordPiece"}}', "[" * 9999, "{" * 9999,
     '{"model": {"end_of_word_suffix": "</w>", "merges": [["a"]], "vocab": {}}}'],
)  # fmt: skip
def test_json_that_is_no_tokenizer(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(WeightsError, match="not a vocabulary"):
        CLIPTokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_small_file_that_unpacks_to_a_large_one(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"#version\n" + b"\n" * (70 * 2**20)))
    with pytest.raises(WeightsError, match="unpacks to more than 64 MB"):
        CLIPTokenizer.from_file(tmp_path / "x.gz")
