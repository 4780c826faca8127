"""diffusers' folders and weights in several files."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import read_checkpoint, read_model_folder, write_checkpoint
from sdpy.errors import WeightsError


def small_unet() -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=12,
    )


def assert_holds(path: Path, state: dict[str, Tensor]) -> None:
    checkpoint = read_checkpoint(path)
    assert set(checkpoint.tensors) == set(checkpoint.outline) == set(state)
    for name, tensor in state.items():
        assert torch.equal(checkpoint.tensors[name], tensor)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", "20KB"], ids=["whole", "sharded"])
def test_the_folder_of_a_component(
    tmp_path: Path, safe: bool, variant: str | None, size: str
) -> None:
    unet = small_unet()
    unet.save_pretrained(tmp_path, safe_serialization=safe, variant=variant, max_shard_size=size)
    assert len(list(tmp_path.glob("*.index*.json"))) == (size == "20KB")
    assert_holds(tmp_path, unet.state_dict())


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shards(folder: Path, **weight_map: str) -> Path:
    write_checkpoint(folder / "one.safetensors", {"a": torch.ones(1)})
    write_checkpoint(folder / "two.safetensors", {"b": torch.ones(2)})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_shards_that_do_not_fit_together(tmp_path: Path) -> None:
    one, two = "one.safetensors", "two.safetensors"
    index = shards(tmp_path, a=one, b=two)
    assert list(read_checkpoint(index).tensors) == ["a", "b"]
    assert "one.safetensors does not hold b" in refusal(shards(tmp_path, a=one, b=one))
    assert "three.safetensors does not exist" in refusal(shards(tmp_path, a="three.safetensors"))
    assert "not beside it" in refusal(shards(tmp_path, a="../one.safetensors"))
    write_checkpoint(tmp_path / "more.safetensors", {"a": torch.ones(1), "c": torch.ones(1)})
    assert "1 more tensors than it lists" in refusal(shards(tmp_path, a="more.safetensors", b=two))
    for text in ("{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        assert str(index) in refusal(index)


@pytest.mark.parametrize("ending", [".part", ".incomplete", ".crdownload"])
def test_an_unfinished_download_is_named(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"diffusion_pytorch_model.safetensors{ending}").write_bytes(b"\x10")
    assert "is an unfinished download" in refusal(tmp_path)


def write_index(folder: Path, **content: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(content))
    return folder


def test_other_models_are_named(tmp_path: Path) -> None:
    xl = write_index(
        tmp_path / "xl",
        _class_name="StableDiffusionXLPipeline",
        unet=["diffusers", "UNet2DConditionModel"],
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
    )
    with pytest.raises(WeightsError, match="holds a StableDiffusionXLPipeline; sdpy runs"):
        read_model_folder(xl)
    flux = write_index(tmp_path / "flux", _class_name="FluxPipeline", transformer=["x", "y"])
    with pytest.raises(WeightsError, match="holds a FluxPipeline"):
        read_model_folder(flux)


def test_a_broken_index_and_missing_weights(tmp_path: Path) -> None:
    folder = write_index(tmp_path / "x", unet=["diffusers", "UNet2DConditionModel"])
    (folder / "unet").mkdir()
    with pytest.raises(WeightsError, match="holds no weights: looked for diffusion_pytorch_model"):
        read_model_folder(folder)
    for text in ("{", "[]"):
        (folder / "model_index.json").write_text(text)
        with pytest.raises(WeightsError, match="model_index.json"):
            read_model_folder(folder)
