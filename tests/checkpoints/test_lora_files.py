"""Where LoRAs are: files, folders, and names in a folder of LoRAs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from sdpy.checkpoints import find_lora, lora_files, lora_fingerprint, write_checkpoint
from sdpy.errors import UsageError, WeightsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files, folders of diffusers and of peft, and what is none of these."""
    for name in ("style.safetensors", "faces/Style.pt", "faces/v1.5.safetensors", "twice/a.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_checkpoint(tmp_path / name, {"x": torch.zeros(1)}, {"ss_output_name": f"my {name}"})
    for name in ("trained/pytorch_lora_weights", "deep/peft/adapter_model", "other/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(tmp_path / f"{name}.safetensors", {"x": torch.zeros(1)})
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "broken.safetensors").write_text("none")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("style", "style.safetensors"),
        ("style.safetensors", "style.safetensors"),
        ("Style", "faces/Style.pt"),
        ("faces/Style", "faces/Style.pt"),
        ("faces\\Style", "faces/Style.pt"),
        ("faces/style", "faces/Style.pt"),
        ("v1.5", "faces/v1.5.safetensors"),
        ("V1.5", "faces/v1.5.safetensors"),
        ("trained", "trained"),
        ("peft", "deep/peft"),
        ("deep/peft", "deep/peft"),
        ("my faces/v1.5.safetensors", "faces/v1.5.safetensors"),
    ],
)
def test_a_name_in_a_folder(folder: Path, name: str, found: str) -> None:
    assert find_lora(name, folder) == folder / found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stile", ["stile", "did you mean", "'style'"]),
        ("a", ["several", "other/a.safetensors", "twice/a.bin"]),
        ("STYLE", ["several"]),
        ("../style", ["no LoRA"]),
        ("notes", ["no LoRA"]),
        ("", ["no LoRA"]),
    ],
)
def test_a_name_that_is_not_there(folder: Path, name: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        find_lora(name, folder)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_a_folder_of_loras_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; name it with --lora-dir"):
        find_lora("style", tmp_path / "none")


def test_the_files_of_a_folder(folder: Path) -> None:
    assert lora_files(folder / "style.safetensors") == (folder / "style.safetensors",)
    assert lora_files(folder / "trained") == (
        folder / "trained" / "pytorch_lora_weights.safetensors",
    )
    assert lora_files(folder / "deep") == (folder / "deep/peft/adapter_model.safetensors",)
    assert lora_files(folder / "other") == (folder / "other" / "a.safetensors",)
    with pytest.raises(WeightsError, match=r"several weights files \(Style.pt, v1.5.safetensors\)"):
        lora_files(folder / "faces")
    (folder / "empty").mkdir()
    with pytest.raises(WeightsError, match="a folder without a LoRA"):
        lora_files(folder / "empty")


def test_the_configuration_beside_it_identifies_a_lora(folder: Path) -> None:
    path = folder / "deep" / "peft"
    before = lora_fingerprint(path)
    assert lora_fingerprint(path / "adapter_model.safetensors") == before
    (path / "adapter_config.json").write_text("{}")
    after = lora_fingerprint(path)
    assert after != before
    shutil.copy(path / "adapter_config.json", path / "copy.json")
    (path / "adapter_config.json").write_text('{"lora_alpha": 3}')
    assert lora_fingerprint(path) not in (before, after)
