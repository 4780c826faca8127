"""Files of textual inversions."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdpy.checkpoints import (
    Lora,
    TextualInversion,
    bundled_textual_inversions,
    read_textual_inversions,
)
from sdpy.errors import UsageError, WeightsError

VECTORS = torch.arange(12, dtype=torch.float32).view(3, 4)


def written(path: Path, **tensors: Tensor) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return path


def read_word(path: Path, name: str | None = None) -> TextualInversion:
    (word,) = read_textual_inversions(path, name)
    return word


def test_the_web_uis_form_is_called_by_its_file(tmp_path: Path) -> None:
    word = read_word(written(tmp_path / "style.v2.safetensors", emb_params=VECTORS))
    assert word.names == ("style.v2",)
    assert torch.equal(word.vectors, VECTORS)


@pytest.mark.parametrize("container", [dict, torch.nn.ParameterDict])
def test_the_web_uis_older_form(tmp_path: Path, container: Callable[..., object]) -> None:
    """A pickle of dicts in dicts; the number of the token that was trained is no vector."""
    path = tmp_path / "style.pt"
    stored = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": container({"*": torch.nn.Parameter(VECTORS.clone())}),
        "name": "another",
        "step": 500,
        "sd_checkpoint": None,
    }
    torch.save(stored, path)
    word = read_word(path)
    assert word.names == ("style",)
    assert torch.equal(word.vectors, VECTORS)
    assert not word.vectors.requires_grad


def test_diffusers_form_is_called_by_its_own_word_too(tmp_path: Path) -> None:
    path = written(tmp_path / "learned_embeds.safetensors", **{"<cat-toy>": VECTORS[1]})
    word = read_word(path)
    assert word.names == ("learned_embeds", "<cat-toy>")
    assert torch.equal(word.vectors, VECTORS[1:2])
    torch.save({"<cat-toy>": VECTORS[1]}, tmp_path / "learned_embeds.bin")
    pickled = read_word(tmp_path / "learned_embeds.bin")
    assert pickled.names == word.names
    assert torch.equal(pickled.vectors, word.vectors)
    path = written(tmp_path / "style.safetensors", style=VECTORS)
    assert read_word(path).names == ("style",)


def test_diffusers_reads_that_form(tmp_path: Path) -> None:
    loaders = pytest.importorskip("diffusers.loaders.textual_inversion")
    path = written(tmp_path / "learned_embeds.safetensors", **{"<cat-toy>": VECTORS[1]})
    (state,) = loaders.load_textual_inversion_state_dicts([str(path)])
    assert set(state) == {"<cat-toy>"}


def test_a_name_that_is_given_is_the_only_one(tmp_path: Path) -> None:
    path = written(tmp_path / "learned_embeds.safetensors", **{"<cat-toy>": VECTORS})
    assert read_word(path, "toy").names == ("toy",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_are_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    path = written(tmp_path / "x.safetensors", emb_params=VECTORS.to(dtype))
    vectors = read_word(path).vectors
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, VECTORS)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"clip_l": VECTORS, "clip_g": VECTORS[:2]}, r"it holds clip_g \[2, 4\], clip_l"),
        ({"<a>": VECTORS, "<b>": VECTORS[:, :2]}, r"it holds <a> \[3, 4\], <b> \[3, 2\]"),
        ({"a.weight": VECTORS, "b": VECTORS}, r"it holds a.weight \[3, 4\]"),
        ({"emb_params": VECTORS.long()}, "it holds no such tensor"),
        ({"emb_params": VECTORS[None]}, r"it holds emb_params \[1, 3, 4\]"),
        ({"emb_params": VECTORS[:0]}, r"emb_params \[0, 4\]"),
        ({"lora_te_q_proj.lora_up.weight": VECTORS, "x": VECTORS}, "it holds a LoRA"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    path = written(tmp_path / "x.safetensors", **tensors)
    with pytest.raises(WeightsError, match=message) as caught:
        read_word(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        read_word(tmp_path / "x.safetensors")


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_a_word_for_two_text_encoders(tmp_path: Path, names: tuple[str, str]) -> None:
    wide = torch.arange(18, dtype=torch.float32).view(3, 6)
    tensors = {names[0]: VECTORS, names[1]: wide}
    word = read_word(written(tmp_path / "style.safetensors", **tensors))
    assert word.names == ("style",)
    first, second = word.of("text_encoder"), word.of("text_encoder_2")
    assert first is not None and second is not None
    assert torch.equal(first, VECTORS)
    assert torch.equal(second, wide)
    assert word.is_named is False and read_word(word.path, "x").is_named is True


def test_a_file_of_several_words(tmp_path: Path) -> None:
    tensors = {"<s0>": VECTORS[0], "<s1>": VECTORS[1:]}
    path = written(tmp_path / "several.safetensors", **tensors)
    words = read_textual_inversions(path)
    assert {word.names: len(word.vectors) for word in words} == {("<s0>",): 1, ("<s1>",): 2}
    with pytest.raises(UsageError, match=r"2 words \(<s0>, <s1>\).*leave the name out"):
        read_textual_inversions(path, "x")


def card(path: Path, text: str | None) -> Path:
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat")
    if text is not None:
        info.add_text("sd-ti-embedding", text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def encoded(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def test_an_image_with_an_embedding_in_its_text(tmp_path: Path) -> None:
    stored = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}},
        "name": "zorbel",
    }
    word = read_word(card(tmp_path / "card.png", encoded(stored)))
    assert word.names == ("card", "zorbel")
    assert torch.equal(word.vectors, VECTORS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "an image without an embedding in its text"),
        ("!", "no base64"),
        (encoded([]), "embedding card"),
        (encoded({"string_to_param": {"*": 3}}), "no list of numbers"),
        (encoded({"string_to_param": {"*": [["a"]]}}), "embedding card"),
        (encoded({"string_to_param": {"*": [[1], [2, 3]]}}), "embedding card"),
        (encoded({"string_to_param": {}}), "no textual-inversion embedding"),
    ],
)
def test_images_without_one_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        read_textual_inversions(card(tmp_path / "card.png", text))
    assert "\n" not in str(caught.value)


def test_a_photograph_is_no_embedding(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    with pytest.raises(WeightsError, match="an image without an embedding"):
        read_textual_inversions(tmp_path / "x.jpg")


def test_words_within_a_lora(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    tensors = {
        "lora_unet_conv_in.alpha": torch.tensor(1.0),
        "bundle_emb.zorbel.string_to_param.*": VECTORS,
        "bundle_emb.two.clip_l": VECTORS[:1],
        "bundle_emb.two.clip_g": VECTORS[1:2],
        "bundle_emb.three.emb_params": VECTORS[:2],
    }
    written(path, **tensors)
    found = {word.names: word for word in bundled_textual_inversions(Lora(path))}
    assert set(found) == {("zorbel",), ("two",), ("three",)}
    assert all(word.is_bundled for word in found.values())
    assert torch.equal(found["zorbel",].vectors, VECTORS)
    assert found["two",].vectors_2 is not None and found["three",].vectors_2 is None
    written(path, **{"bundle_emb.x.a": VECTORS, "bundle_emb.x.b": VECTORS})
    with pytest.raises(WeightsError, match="no textual-inversion embedding"):
        bundled_textual_inversions(Lora(path))
