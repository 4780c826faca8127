"""CLIPTokenizer beside transformers' on several thousand texts of every kind.

transformers' CLIPTokenizer does less cleaning than OpenAI's: it composes (NFC), collapses white
space and lower-cases, but does not repair mojibake nor resolve HTML entities. So texts that such
cleaning would not touch are given to both as they are, and for all the others the cleaning is
spelled out here and transformers is given its result, its own normaliser switched off. Special
tokens inside a text are left out: transformers looks for them before anything else, OpenAI by the
pattern (see ``tests/test_tokenizer.py``).
"""

from __future__ import annotations

import gzip
import html
import json
import os
import random
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ftfy
import pytest

import sdpy
from sdpy.models import CLIPTextConfig
from sdpy.text.conditioning import frame
from sdpy.text.prompts import tokenize_prompt
from sdpy.text.tokenizer import CLIPTokenizer

transformers = pytest.importorskip("transformers")

DEMO_MERGES = Path(sdpy.__file__).parent / "demo" / "merges.txt"

PLAIN = """
a photo of an astronaut riding a horse on mars, trending on artstation, 8k, highly
detailed Face of a yellow cat, high resolution, sitting on a park bench. don't we've
I'll they're he'd I'm it's DON'T WE'VE I'LL THEY'RE HE'D I'M IT'S rock'n'roll 'tis
o'clock dogs' x's' ''s '' ' der schöne Großvater läuft über die Brücke, el niño pequeño,
l'été à la plage, naïve café Ærøskøbing Zażółć gęślą jaźń, příliš žluťoučký kůň,
İstanbul'da ılık, các thành phố Việt Nam, Ελληνικά γράμματα широкая электрификация южных
губерний їжак ґанок, հայերեն, ქართული ენა, עִבְרִית שלום, العربية مرحبا हिन्दी में लिखा
हुआ, বাংলা, தமிழ் மொழி, తెలుగు, ไทยภาษา สวัสดี, ကမ္ဘာ, ភាសាខ្មែរ, አማርኛ, ᏣᎳᎩ 日本語の文章です
カタカナ 漢字 吾輩は猫である、中文句子 繁體字 한국어 문장 안녕하세요 ㅋㅋㅋ 𠜎𠜱 𝕳𝖊𝖑𝖑𝖔 😀 😂🤣
👩‍👩‍👧‍👦
👨🏽‍🚀 ❤️‍🔥 🏳️‍🌈 🇯🇵🇩🇪 1️⃣
☃️ ✨ ∑∫√∞ ≠ ± × ÷ → ⇔ ♠♣♥♦ ½ ² ³ Ⅷ ⑦ ٣٤٥ १२३ 一二三 1234567890 3.14159 1,000,000 2024-01-31
12:34:56 50% $9.99 €20 #hashtag @user C++ f(x)=x^2 a_b a-b a/b !!! ??? ... ,,, !?!? ;;;
::: --- ___ === +++ *** ((( [[[ {{{ ~~~ ``` ^^^ \\\\ ||| "quoted" (parenthesised)
https://example.org/a?b=c&d=e#f user@example.org C:\\Windows\\System32 /usr/bin
--option=value x86_64
""".split()

DIRTY = [
    *("&amp;", "&lt;b&gt;", "&amp;amp;lt;", "&#233;", "&#x1F600;", "&nbsp;", "&eacute;", "&x;"),
    *("<b>", "</i>", "&amp;quot;", "&amp;#39;s", "AT&T", "&#0;", "&#xD800;", "&#99999999;"),
    *("schÃ¶n", "â€œquotedâ€\x9d", "Ã©tÃ©", "naÃ¯ve", "â€¦", "ðŸ˜€", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "æ—¥æœ¬"),
    *("“curly”", "‘it’s’", "ﬁﬂﬃ", "ＦＵＬＬ", "繁體字，", "ｶﾀｶﾅ", "e\u0301\u0323", "\ufeff"),
    *("\x00", "\x07", "\x1b[31mred\x1b[0m", "\x1c", "\x7f", "\x85", "\x9f", "\r\n", "\v", "\f"),
    *("ΟΔΥΣΣΕΥΣ", "ẞ", "ǅ", "\u200b", "\u2028", "\u3000", "\u00a0", "\ufffd", "\ue000", "\ufff9"),
]

# Where the letters of many scripts lie; unassigned places among them are left out below.
BLOCKS = [
    *((0x21, 0x7F), (0xA1, 0x250), (0x370, 0x530), (0x531, 0x5F5), (0x620, 0x700), (0x900, 0xE00)),
    *((0xE01, 0x10C6), (0x1200, 0x137D), (0x1780, 0x17EA), (0x1E00, 0x2070), (0x2070, 0x2C00)),
    *((0x3041, 0x3130), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0x1D400, 0x1D800), (0x1F300, 0x1F700)),
]


IN_PLAIN = set("".join(PLAIN).lower())


def is_agreed(character: str) -> bool:
    """Whether Unicode knew it early enough for all libraries to agree on what kind it is."""
    return character in IN_PLAIN or unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs")


LETTERS = [[chr(c) for c in range(*block) if is_agreed(chr(c))] for block in BLOCKS]


def plain_texts(rng: random.Random, count: int) -> list[str]:
    return [
        "".join(
            rng.choice(PLAIN) + rng.choice([" ", " ", "  ", "\n", "\t "]) for _ in range(length)
        )
        for length in (rng.randint(0, 60) for _ in range(count))
    ]


def any_texts(rng: random.Random, count: int) -> list[str]:
    def script() -> str:
        letters = rng.choice(LETTERS)
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, 12)))

    def byte_salad() -> str:
        return "".join(chr(rng.randrange(256)) for _ in range(rng.randint(1, 12)))

    def misread() -> str:
        return rng.choice(PLAIN).encode("utf-8").decode("latin-1")

    def escaped() -> str:
        return html.escape(html.escape(rng.choice(PLAIN)))

    makers = [script, byte_salad, misread, escaped]
    makers += [lambda: rng.choice(DIRTY), lambda: rng.choice(PLAIN)] * 2
    texts = []
    for _ in range(count):
        separator = rng.choice(["", " ", "\t"])
        texts.append(separator.join(rng.choice(makers)() for _ in range(rng.randint(1, 25))))
    return texts


def long_texts(rng: random.Random) -> list[str]:
    letters = "etaoinshrdlu"
    return [
        "".join(rng.choice(letters) for _ in range(20_000)),
        "a" * 5_000 + "!" * 5_000 + "7" * 5_000,
        " ".join(rng.choice(PLAIN) for _ in range(5_000)),
        "日本語" * 3_000,
    ]


def cleaned(text: str) -> str:
    """OpenAI's cleaning, written out: repair, unescape, unescape, single spaces, lower case."""
    text = ftfy.fix_text(text)
    for _ in range(2):
        text = html.unescape(text)
    return " ".join(text.split()).lower()


@dataclass
class Pair:
    ours: CLIPTokenizer
    theirs: Any
    theirs_on_clean_text: Any


def trained_merges(count: int) -> list[str]:
    """Merges learned from the words above: the most frequent pair of neighbours, repeatedly."""
    symbols = byte_symbols()
    words = re.findall(r"[^\W\d_]+|\d|[^\w\s]+", " ".join(PLAIN).lower())
    spelled = [[symbols[byte] for byte in word.encode()] for word in words]
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in spelled]
    merges = []
    for _ in range(count):
        pairs = Counter(p for word in spelled for p in zip(word, word[1:], strict=False))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(" ".join(best))
        for word in spelled:
            for i in range(len(word) - 2, -1, -1):
                if tuple(word[i : i + 2]) == best:
                    word[i : i + 2] = ["".join(best)]
    return merges


def byte_symbols() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return dict(bytes_to_unicode())


def pair_from(merges_file: Path, merges: list[str], folder: Path) -> Pair:
    """Both tokenizers from one list of merges, transformers' by its two files."""
    symbols = list(byte_symbols().values())
    tokens = symbols + [s + "</w>" for s in symbols] + [m.replace(" ", "") for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    text = "\n".join(["#version: 0.2", *merges, ""])
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    ours = CLIPTokenizer.from_file(merges_file, vocab_size=len(tokens))
    theirs = transformers.CLIPTokenizerFast.from_pretrained(folder)
    bare = transformers.CLIPTokenizerFast.from_pretrained(folder)
    bare.backend_tokenizer.normalizer = None
    return Pair(ours, theirs, bare)


@pytest.fixture(scope="module", params=["clip", "demo", "trained here"])
def pair(request, tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "clip":
        if "SDPY_VOCAB" not in os.environ:
            pytest.skip(
                "SDPY_VOCAB does not name CLIP's vocabulary, bpe_simple_vocab_16e6.txt[.gz]"
            )
        path = Path(os.environ["SDPY_VOCAB"])
        opener = gzip.open if path.read_bytes()[:2] == b"\x1f\x8b" else open
        with opener(path, "rt", encoding="utf-8") as file:
            merges = file.read().split("\n")[1 : 1 + 49408 - 514]
        return pair_from(path, merges, folder)
    if request.param == "demo":
        if not DEMO_MERGES.exists():
            pytest.skip("this checkout holds no demo model")
        merges = DEMO_MERGES.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
        return pair_from(DEMO_MERGES, merges, folder)
    merges = trained_merges(400)
    path = folder / "trained.txt"
    path.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return pair_from(path, merges, folder)


def differences(texts: list[str], ours: list[list[int]], theirs: list[list[int]]) -> list[str]:
    triples = zip(texts, ours, theirs, strict=True)
    return [f"{text!r}: {a} != {b}" for text, a, b in triples if a != b]


def test_plain_texts_as_they_are(pair):
    texts = plain_texts(random.Random(1), 1500)
    ours = [pair.ours.encode(text) for text in texts]
    theirs = pair.theirs(texts, add_special_tokens=False)["input_ids"]
    assert differences(texts, ours, theirs)[:3] == []


def test_all_texts_with_the_cleaning_spelled_out(pair):
    rng = random.Random(2)
    texts = plain_texts(rng, 500) + any_texts(rng, 4000) + long_texts(rng)
    # Repairing mojibake can make characters that only the newest Unicode knows as letters.
    texts = [text for text in texts if all(is_agreed(c) for c in cleaned(text))]
    assert len(texts) > 4000
    ours = [pair.ours.encode(text) for text in texts]
    clean = [cleaned(text) for text in texts]
    theirs = pair.theirs_on_clean_text(clean, add_special_tokens=False)["input_ids"]
    assert differences(texts, ours, theirs)[:3] == []


def test_cut_and_padded_to_77(pair):
    texts = plain_texts(random.Random(3), 200)
    ours = [ids_of_77(text, pair.ours) for text in texts]
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    assert differences(texts, ours, pair.theirs(texts, **options)["input_ids"])[:3] == []


def ids_of_77(text: str, tokenizer: CLIPTokenizer) -> list[int]:
    config = CLIPTextConfig(vocab_size=tokenizer.vocab_size)
    options = {"syntax": "plain", "long_prompt": "truncate"}
    (chunk,) = tokenize_prompt(text, tokenizer, config, **options).chunks
    return frame(chunk, tokenizer, None, 75)[0]


def test_decode(pair):
    texts = plain_texts(random.Random(4), 300)
    for text in texts:
        ids = pair.ours.encode(text)
        # transformers drops a space before some punctuation when it tidies up
        theirs = pair.theirs.decode(ids, clean_up_tokenization_spaces=False)
        assert pair.ours.decode(ids) == theirs


def test_special_ids(pair):
    assert (pair.ours.start_id, pair.ours.end_id) == (
        pair.theirs.bos_token_id,
        pair.theirs.eos_token_id,
    )
    assert pair.ours.vocab_size == len(pair.theirs)
