"""LoRAs that prompts name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sdpy
from sdpy.errors import UsageError
from sdpy.zoo.variants import VARIANTS
from support.compare import normal
from support.tiny import TINY

FAST: dict[str, Any] = {"steps": 2, "seed": 1}


@pytest.fixture
def model(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> sdpy.Pipeline:
    monkeypatch.setitem(VARIANTS, "sd15", TINY)
    return sdpy.load("sd15", data=tiny_data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a LoRA of the UNet's first attention."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    width = TINY.unet.block_out_channels[0]
    save_file(
        {
            f"{name}.lora_up.weight": normal(width, 2, seed=1),
            f"{name}.lora_down.weight": normal(2, width, seed=2),
            f"{name}.alpha": torch.tensor(2.0),
        },
        tmp_path / "detail.safetensors",
    )
    return tmp_path


def test_a_tag_does_what_the_option_does(model: sdpy.Pipeline, folder: Path) -> None:
    path = folder / "detail.safetensors"
    tagged = model.generate("the cat <lora:detail:0.8>", lora_dir=folder, **FAST)
    asked = model.generate("the cat", lora=f"{path}:0.8", **FAST)
    plain = model.generate("the cat", **FAST)
    assert np.array_equal(tagged, asked) and not np.array_equal(tagged, plain)
    assert tagged.parameters.startswith("the cat\n")
    assert "detail.safetensors:0.8" in tagged.parameters and "detail: " in tagged.parameters
    both = model.generate("<lora:detail:0.3>the cat<lora:DETAIL:0.5>", lora_dir=folder, **FAST)
    assert np.abs(np.asarray(both, int) - np.asarray(asked, int)).max() <= 1


def test_a_tag_without_a_folder_or_of_no_file_is_refused(
    model: sdpy.Pipeline, folder: Path
) -> None:
    with pytest.raises(UsageError, match="asks for the LoRA 'detail': say with --lora-dir"):
        model.generate("the cat <lora:detail:0.8>", **FAST)
    with pytest.raises(UsageError, match="'detial'; did you mean 'detail'"):
        model.generate("the cat <lora:detial:0.8>", lora_dir=folder, **FAST)


def test_as_plain_text_a_tag_is_words(model: sdpy.Pipeline) -> None:
    image = model.generate("the cat <lora:detail:0.8>", prompt_syntax="plain", **FAST)
    assert not np.array_equal(image, model.generate("the cat", **FAST))
