"""sdpy's own record of an image."""

from __future__ import annotations

import json

import pytest

from sdpy.metadata.record import ImageRecord, RecordedFile

RECORD = ImageRecord(
    task="img2img",
    prompt="a castle, 🏰",
    options={"seed": 2**63 - 1, "strength": 0.8, "lora": ["ink.safetensors:0.1"], "eta": None},
    size=(128, 96),
    model={"name": "demo"},
    files=(RecordedFile("unet", "unet.ot", "0" * 64), RecordedFile("image", "", "1" * 64)),
    environment={"torch": "2.6"},
)


def test_a_record_is_read_back() -> None:
    text = RECORD.to_json()
    assert "\n" not in text
    assert ImageRecord.from_json(text) == RECORD
    assert RECORD.seed == 2**63 - 1
    assert [file.name for file in RECORD.files_of("unet")] == ["unet.ot"]


def test_a_later_versions_record_is_read() -> None:
    later = {**json.loads(RECORD.to_json()), "sdpy": "9.0", "weather": "fine"}
    assert ImageRecord.from_json(json.dumps(later)).sdpy == "9.0"


def without(key: str) -> str:
    return json.dumps({k: v for k, v in json.loads(RECORD.to_json()).items() if k != key})


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "3", "[" * 100_000),
        *(without(key) for key in ("task", "prompt", "options", "size", "model", "files")),
        RECORD.to_json().replace("[128,96]", '"big"'),
        RECORD.to_json().replace(str(2**63 - 1), "null"),
        RECORD.to_json().replace('"role"', '"rule"'),
    ],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a record"):
        ImageRecord.from_json(text)
