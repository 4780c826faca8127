"""Files of textual inversions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdpy.checkpoints import read_textual_inversion
from sdpy.errors import WeightsError

VECTORS = torch.arange(12, dtype=torch.float32).view(3, 4)


def written(path: Path, **tensors: Tensor) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return path


def test_the_web_uis_form_is_called_by_its_file(tmp_path: Path) -> None:
    word = read_textual_inversion(written(tmp_path / "style.v2.safetensors", emb_params=VECTORS))
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
    word = read_textual_inversion(path)
    assert word.names == ("style",)
    assert torch.equal(word.vectors, VECTORS)
    assert not word.vectors.requires_grad


def test_diffusers_form_is_called_by_its_own_word_too(tmp_path: Path) -> None:
    path = written(tmp_path / "learned_embeds.safetensors", **{"<cat-toy>": VECTORS[1]})
    word = read_textual_inversion(path)
    assert word.names == ("learned_embeds", "<cat-toy>")
    assert torch.equal(word.vectors, VECTORS[1:2])
    torch.save({"<cat-toy>": VECTORS[1]}, tmp_path / "learned_embeds.bin")
    pickled = read_textual_inversion(tmp_path / "learned_embeds.bin")
    assert pickled.names == word.names
    assert torch.equal(pickled.vectors, word.vectors)
    path = written(tmp_path / "style.safetensors", style=VECTORS)
    assert read_textual_inversion(path).names == ("style",)


def test_diffusers_reads_that_form(tmp_path: Path) -> None:
    loaders = pytest.importorskip("diffusers.loaders.textual_inversion")
    path = written(tmp_path / "learned_embeds.safetensors", **{"<cat-toy>": VECTORS[1]})
    (state,) = loaders.load_textual_inversion_state_dicts([str(path)])
    assert set(state) == {"<cat-toy>"}


def test_a_name_that_is_given_is_the_only_one(tmp_path: Path) -> None:
    path = written(tmp_path / "learned_embeds.safetensors", **{"<cat-toy>": VECTORS})
    assert read_textual_inversion(path, "toy").names == ("toy",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_are_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    path = written(tmp_path / "x.safetensors", emb_params=VECTORS.to(dtype))
    vectors = read_textual_inversion(path).vectors
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, VECTORS)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"clip_l": VECTORS, "clip_g": VECTORS}, "an embedding for Stable Diffusion XL"),
        ({"<a>": VECTORS, "<b>": VECTORS}, r"it holds <a> \[3, 4\], <b> \[3, 4\]"),
        ({"emb_params": VECTORS.long()}, "it holds no such tensor"),
        ({"emb_params": VECTORS[None]}, r"it holds emb_params \[1, 3, 4\]"),
        ({"emb_params": VECTORS[:0]}, r"emb_params \[0, 4\]"),
        ({"lora_te_q_proj.lora_up.weight": VECTORS, "x": VECTORS}, "it holds a LoRA"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    path = written(tmp_path / "x.safetensors", **tensors)
    with pytest.raises(WeightsError, match=message) as caught:
        read_textual_inversion(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        read_textual_inversion(tmp_path / "x.safetensors")
