"""CLIPTokenizer on merges written out here; CLIP's own vocabulary is in parity/."""

from __future__ import annotations

import gzip
import html
import subprocess
import sys
import time

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpy.errors import WeightsError
from sdpy.text.tokenizer import CLIPTokenizer, clean

# Ids 512 and up. "low" = 515, "lower" = 517.
MERGES = [("l", "o"), ("e", "r</w>"), ("e", "s"), ("lo", "w</w>"), ("lo", "w"), ("low", "er</w>")]
LO, ER_END, ES, LOW_END, LOW, LOWER_END, START, END = range(512, 520)


def char(letter: str, last: bool = False) -> int:
    """Id of a printable ASCII character: they come first, from "!" on."""
    return ord(letter) - ord("!") + (256 if last else 0)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(MERGES)


def merges_file(*lines: str, header: str = "#version: 0.2") -> bytes:
    return "\n".join([header, *lines, ""]).encode()


# --- ids ---------------------------------------------------------------------------------------


def test_special_tokens_follow_the_merges(tokenizer):
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.vocab_size) == (START, END, 520)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        (" \n\t ", []),
        ("!", [256]),
        ("low", [LOW_END]),
        ("LOWER", [LOWER_END]),
        ("lows", [LOW, char("s", last=True)]),
        ("low lower", [LOW_END, LOWER_END]),
        ("low,lower", [LOW_END, char(",", last=True), LOWER_END]),
        ("x12", [char("x", last=True), char("1", last=True), char("2", last=True)]),
        ("x's", [char("x", last=True), char("'"), char("s", last=True)]),
        ("?!", [char("?"), char("!", last=True)]),
        # The pattern ignores case beyond a to z: a long s (UTF-8 C5 BF) is an s too.
        ("'ſ", [char("'"), 106 + 0xC5 - 0xAE, 256 + 106 + 0xBF - 0xAE]),
        # UTF-8 C3 A9. Ids: 94 printable ASCII, A1..AC as 94..105, AE..FF from 106 on.
        ("é", [106 + 0xC3 - 0xAE, 256 + 94 + 0xA9 - 0xA1]),
        # UTF-8 E2 80 8B, a zero-width space: 80 is the 34th of the hidden bytes, after 00..20, 7F.
        ("\u200b", [106 + 0xE2 - 0xAE, 188 + 34, 256 + 188 + 34 + 0x0B]),
    ],
)
def test_encode(tokenizer, text, ids):
    assert tokenizer.encode(text) == ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<|startoftext|>", [START]),
        ("low<|endoftext|>low", [LOW_END, END, LOW_END]),
        ("<|EndOfText|>", [END]),  # the text is lower-cased before it is cut into words
        ("<|endoftext|><|endoftext|>", [END, END]),
    ],
)
def test_special_tokens_spelled_out_are_special(tokenizer, text, ids):
    assert tokenizer.encode(text) == ids


def test_punctuation_before_a_special_token_swallows_its_first_characters(tokenizer):
    """The pattern takes "!<|" as one word; so does OpenAI's."""
    ids = tokenizer.encode("!<|endoftext|>")
    assert END not in ids
    assert ids[:3] == [char("!"), char("<"), char("|", last=True)]


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  A \n\t B  ", "a b"),
        ("a\u3000b\u00a0c\u2028d", "a b c d"),
        ("fish &amp; chips", "fish & chips"),
        ("&amp;amp;lt;", "<"),  # ftfy resolves once where the text holds no "<", then twice more
        ("<b> &amp;amp;lt;", "<b> &lt;"),
        ("schÃ¶n", "schön"),  # UTF-8 read as Latin-1
        ("â€œquoteâ€\x9d", '"quote"'),
        ("‘it’s’", "'it's'"),
        ("cafe\u0301", "café"),
        ("ﬁne ＡＢＣ", "fine abc"),
        ("a\x00b\x1b[31mc", "abc"),
        ("ΟΔΟΣ", "οδος"),
    ],
)
def test_clean(raw, cleaned):
    assert clean(raw) == cleaned


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="&")))
@settings(max_examples=200, deadline=None)
def test_what_is_not_repaired_needs_no_repair(text):
    assert html.unescape(ftfy.fix_text(text)) == text


def test_a_plain_prompt_does_not_wait_for_what_repairs_others(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)  # it cannot be imported
    assert clean(" A (red:1.2)  house, ") == "a (red:1.2) house,"
    for broken in ("caf\u00c3\u00a9", "a & b", "a\x1bb"):
        with pytest.raises(ImportError):
            clean(broken)


@pytest.mark.parametrize("text", ["a\udcffb", "\ud83d", "&#xD800;", "&#1114112;", "\U0010ffff"])
def test_encode_takes_text_that_is_no_unicode(tokenizer, text):
    """Bytes of an argument that are no UTF-8 reach Python as lone surrogates."""
    assert all(0 <= token < START for token in tokenizer.encode(text))


@given(st.text())
@settings(max_examples=100)
def test_decode_gives_back_the_words(text):
    tokenizer = CLIPTokenizer(MERGES)
    ids = tokenizer.encode(text)
    expected = clean(text).replace("\u0345", "")
    assert "".join(tokenizer.decode(ids).split()) == "".join(expected.split())


def test_the_one_character_that_the_pattern_leaves_out(tokenizer):
    """A combining iota: no letter, yet without regard to case it is one. OpenAI's drops it too."""
    assert tokenizer.encode("x\u0345") == tokenizer.encode("x")


def test_decode(tokenizer):
    assert tokenizer.decode([LOW, ER_END, char("x"), LOW_END]) == "lower xlow"
    assert tokenizer.decode([START, LOW_END, END]) == "<|startoftext|>low <|endoftext|>"
    assert tokenizer.decode([106 + 0xC3 - 0xAE]) == "\ufffd"


@pytest.mark.parametrize("token", [-1, 520])
def test_decode_refuses_ids_outside_the_vocabulary(tokenizer, token):
    with pytest.raises(ValueError, match=rf"{token} is not in 0\.\.519"):
        tokenizer.decode([token])


# --- merging -----------------------------------------------------------------------------------


def merge_one_pair_at_a_time(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The definition: join all places of the best-ranked pair, left to right; repeat."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    symbols = [*word[:-1], word[-1] + "</w>"]
    while pairs := [pair for pair in zip(symbols, symbols[1:], strict=False) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        joined: list[str] = []
        rest = symbols
        while rest:
            width = 2 if tuple(rest[:2]) == best else 1
            joined.append("".join(rest[:width]))
            rest = rest[width:]
        symbols = joined
    return symbols


@st.composite
def merge_lists(draw):
    """Merges over a, b, c that build on one another, at times two that make the same token."""
    symbols = ["a", "b", "c", "a</w>", "b</w>", "c</w>"]
    merges = []
    for _ in range(draw(st.integers(1, 25))):
        first = draw(st.sampled_from([s for s in symbols if not s.endswith("</w>")]))
        second = draw(st.sampled_from(symbols))
        if (first, second) not in merges:
            merges.append((first, second))
            symbols.append(first + second)
    return merges


@given(merge_lists(), st.text("abc", min_size=1, max_size=60))
@settings(max_examples=300)
def test_merging_equals_its_definition(merges, word):
    tokenizer = CLIPTokenizer(merges)
    names = {512 + i: first + second for i, (first, second) in enumerate(merges)}
    names |= {char(c): c for c in "abc"} | {char(c, last=True): c + "</w>" for c in "abc"}
    symbols = [names[token] for token in tokenizer.encode(word)]
    assert symbols == merge_one_pair_at_a_time(word, merges)


def test_all_places_of_a_pair_are_joined_before_the_next_is_chosen():
    """The first "ab c" joined makes a pair of lower rank, which must not take the second "ab"."""
    merges = [("a", "b"), ("b", "c"), ("a", "bc"), ("abc", "ab"), ("ab", "c")]
    abc = 512 + 4  # two merges make "abc"; the last gives it its number
    assert merge_one_pair_at_a_time("abcabcx", merges) == ["abc", "abc", "x</w>"]
    assert CLIPTokenizer(merges).encode("abcabcx") == [abc, abc, char("x", last=True)]


def test_a_huge_word_is_no_burden(tokenizer):
    """Merging pass after pass would take hours here."""
    merges = [("a" * 2**i, "a" * 2**i) for i in range(10)] + [("b", "a"), ("ba", "b")]
    word = "a" * 100_000 + "ba" * 50_000
    start = time.thread_time()
    result = CLIPTokenizer(merges).tokenize(word)
    assert time.thread_time() - start < 20
    assert "".join(token.text for token in result) == word


def test_merges_must_build_on_one_another():
    with pytest.raises(ValueError, match="merge 2 joins 'lo' and 'xy', unknown"):
        CLIPTokenizer([("l", "o"), ("lo", "xy")])


# --- tokens and their texts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("", []),
        ("low", ["low"]),
        (" Low  low,\nLOW ", ["low ", "low", ", ", "low"]),
        ("lowerlow", ["low", "e", "r", "low"]),
        ("lowx<|endoftext|>", ["low", "x", "<|endoftext|>"]),
        # a character of two tokens belongs to the second
        ("x é", ["x ", "", "é"]),
        ("é é", ["", "é ", "", "é"]),
        # what the pattern leaves out belongs to the token before it, or to the first
        ("\u0345x\u0345 x", ["\u0345x\u0345 ", "x"]),
    ],
)
def test_tokenize_gives_each_token_its_text(tokenizer, text, texts):
    assert [token.text for token in tokenizer.tokenize(text)] == texts


@given(st.text())
@settings(max_examples=100)
def test_the_tokens_texts_are_the_whole_text(text):
    tokenizer = CLIPTokenizer(MERGES)
    tokens = tokenizer.tokenize(text)
    assert [token.id for token in tokens] == tokenizer.encode(text)
    if tokens:
        assert "".join(token.text for token in tokens) == clean(text)


# --- files -------------------------------------------------------------------------------------

LINES = [" ".join(pair) for pair in MERGES]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["merges.txt", "merges.txt.gz", "merges"])
def test_from_file_knows_gzip_by_its_content(tmp_path, compress, name):
    path = tmp_path / name
    path.write_bytes(compress(merges_file(*LINES)))
    tokenizer = CLIPTokenizer.from_file(path, vocab_size=520)
    assert tokenizer.encode("lower") == [LOWER_END]
    assert tokenizer.end_id == END


def test_from_file_uses_no_more_merges_than_the_vocabulary_has(tmp_path):
    path = tmp_path / "merges.txt"
    path.write_bytes(merges_file(*LINES, "this line is never read"))
    tokenizer = CLIPTokenizer.from_file(str(path), vocab_size=518)
    assert tokenizer.vocab_size == 518
    assert tokenizer.encode("lower") == [LO, char("w"), ER_END]


def test_from_file_takes_windows_line_ends_and_an_unfinished_last_line(tmp_path):
    path = tmp_path / "merges.txt"
    path.write_bytes(merges_file(*LINES).replace(b"\n", b"\r\n")[:-2])
    assert CLIPTokenizer.from_file(path, vocab_size=520).encode("lower") == [LOWER_END]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (merges_file(*LINES[:4]), "holds 4 merges, 6 are needed for a vocabulary of 520 tokens"),
        (merges_file(), "holds 0 merges, 6 are needed"),
        (b"", "its first line does not say #version"),
        (merges_file(*LINES, header="l o"), "its first line does not say #version"),
        (merges_file("l o", "lo w x"), "line 3 does not hold two symbols"),
        (merges_file("l o", "", *LINES[1:]), "line 3 does not hold two symbols"),
        (merges_file(*["lorem ipsum"] * 6), "merge 1 joins 'lorem' and 'ipsum', unknown"),
        (b"PK\x03\x04\xff\xfe\x00", "it is not UTF-8 text"),
        (gzip.compress(merges_file(*LINES), mtime=0)[:-12], "broken gzip file"),
        (gzip.compress(merges_file(*LINES), mtime=0)[:5], "broken gzip file"),
        (b"\x1f\x8bnot gzip at all", "broken gzip file"),
        (gzip.compress(merges_file(*LINES), mtime=0)[:-8] + b"\0" * 8, "broken gzip file"),
    ],
)
def test_from_file_says_in_one_line_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "merges.txt"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        CLIPTokenizer.from_file(path, vocab_size=520)
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert "\n" not in text


def test_from_file_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="no such vocabulary file") as caught:
        CLIPTokenizer.from_file("data/merges.txt")
    assert str(tmp_path / "data") in str(caught.value)


def test_from_file_refuses_a_folder(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read"):
        CLIPTokenizer.from_file(tmp_path)


def test_from_file_refuses_a_vocabulary_smaller_than_the_bytes(tmp_path):
    with pytest.raises(ValueError, match="vocab_size is 513"):
        CLIPTokenizer.from_file(tmp_path / "merges.txt", vocab_size=513)


def test_importing_the_tokenizer_does_not_import_torch():
    code = "import sys, sdpy.text.tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_html_of_every_letter_is_the_letter(tokenizer):
    for letter in "aéß日😀":
        assert tokenizer.encode(f"x &#{ord(letter)}; {html.escape('<')}") == tokenizer.encode(
            f"x {letter} <"
        )
