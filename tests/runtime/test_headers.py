"""What is known of a model's files without reading numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdpy.errors import WeightsError
from sdpy.runtime.headers import Headers
from support.tiny import tiny_session, tiny_source


def test_check_reads_no_numbers(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdpy.runtime.loading.load_weights", pytest.fail)
    headers = Headers(tiny_source(tiny_data))
    headers.check()
    assert headers.config("unet").in_channels == 4


@pytest.mark.parametrize(
    ("changed", "instead"),
    [
        ("text_encoder", "vae.ot"),
        ("unet", "vae.ot"),
        ("unet", "pytorch_model.ot"),
        ("vae", "unet.ot"),
        ("vae", "bpe_simple_vocab_16e6.txt"),
    ],
)
def test_check_finds_a_file_of_the_wrong_kind(tiny_data: Path, changed: str, instead: str) -> None:
    source = tiny_source(tiny_data)
    files = source.files.with_weights(**{changed: tiny_data / instead})
    with pytest.raises(WeightsError) as caught:
        Headers(replace(source, files=files)).check()
    assert instead in str(caught.value)
    assert "\n" not in str(caught.value)


def test_check_finds_a_vocabulary_that_is_none(tiny_data: Path) -> None:
    source = tiny_source(tiny_data)
    files = replace(source.files, vocabulary=tiny_data / "vae.ot")
    with pytest.raises(WeightsError, match="vae.ot"):
        Headers(replace(source, files=files)).check()


@pytest.mark.parametrize(("file", "channels"), [("unet.ot", 4), ("unet-inpaint.ot", 9)])
def test_input_channels_are_the_file_s(tiny_data: Path, file: str, channels: int) -> None:
    session = tiny_session(tiny_data, unet=file)
    session.headers.check()
    assert session.source.config("unet").in_channels == channels
    with session.models().unet() as unet:
        assert unet.conv_in.weight.shape[1] == channels
