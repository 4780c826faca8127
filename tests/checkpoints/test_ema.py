"""Averaged weights beside plain ones, and alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import load_weights, read_checkpoint, without_plain, write_checkpoint
from sdpy.checkpoints.dialects import ORIGINAL, find_parts, in_dialect
from sdpy.checkpoints.ema import name_with_dots
from sdpy.models import UNet2DConditionConfig, UNet2DConditionModel
from sdpy.zoo.classes import make_model
from support.tiny import TINY, tiny_weights

SIZES = {
    "1.5": UNet2DConditionConfig(time_cond_proj_dim=256),
    "2.1": UNet2DConditionConfig(
        attention_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
    ),
    "deep": UNet2DConditionConfig(transformer_layers_per_block=12),
}


def without_dots(name: str) -> str:
    """As the original program's LitEma registers the buffers of `model`, a DiffusionWrapper."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


@pytest.mark.parametrize("size", SIZES)
def test_every_name_gets_its_dots_back(size: str) -> None:
    with torch.device("meta"):
        state = UNet2DConditionModel(SIZES[size]).state_dict()
    names = in_dialect("unet", list(state), ORIGINAL)
    assert len(names) > 600
    assert [name_with_dots(without_dots(name)) for name in names] == list(names)


@pytest.mark.parametrize("name", ["model_ema.decay", "model_ema.num_updates", "conv_in.weight"])
def test_other_names_have_none(name: str) -> None:
    assert name_with_dots(name) is None


def checkpoint(folder: Path, *, plain: bool) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    """A file with averaged weights, what it averages, and the averages."""
    state = tiny_weights("unet")
    average = {name: tensor * 0.5 for name, tensor in state.items()}
    file = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}
    for name, recipe in in_dialect("unet", list(state), ORIGINAL).items():
        file[without_dots(name)] = recipe.make(average).clone()
        if plain:
            file[name] = recipe.make(state)
    write_checkpoint(folder / "x.ckpt", file)
    return folder / "x.ckpt", state, average


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("ema", [True, False])
def test_which_weights_are_taken(tmp_path: Path, plain: bool, ema: bool) -> None:
    path, state, average = checkpoint(tmp_path, plain=plain)
    opened = read_checkpoint(path)
    if ema:
        opened = without_plain(opened)
    part = find_parts(opened.outline).by_component["unet"]
    assert part.is_averaged == (ema or not plain)
    model = make_model("unet", TINY.unet)
    load_weights(model, opened)
    expected = average if ema or not plain else state
    assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())


def test_without_averages_nothing_changes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x.safetensors", tiny_weights("unet"))
    opened = read_checkpoint(tmp_path / "x.safetensors")
    assert without_plain(opened) is opened
