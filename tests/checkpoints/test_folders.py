"""diffusers' folders and weights in several files."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import find_weights, read_checkpoint, read_model_folder, write_checkpoint
from sdpy.errors import UsageError, WeightsError


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
    sd3 = write_index(
        tmp_path / "sd3",
        _class_name="StableDiffusion3Pipeline",
        unet=["diffusers", "UNet2DConditionModel"],
        text_encoder_3=["transformers", "T5EncoderModel"],
    )
    with pytest.raises(WeightsError, match="holds a StableDiffusion3Pipeline; sdpy runs"):
        read_model_folder(sd3)
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


# ------------------------------------------------------------------------------------- variants


def variants(folder: Path, **states: dict[str, Tensor]) -> Path:
    """The folder of a UNet with these variants; ``plain`` stands for none."""
    for variant, state in states.items():
        name = "" if variant == "plain" else f".{variant}"
        folder.mkdir(exist_ok=True, parents=True)
        write_checkpoint(folder / f"diffusion_pytorch_model{name}.safetensors", state)
    return folder


def state_of(number: float) -> dict[str, Tensor]:
    return {"conv_in.weight": torch.full((2,), number)}


@pytest.mark.parametrize("only", ["fp16", "bf16", "non_ema", "my-own"])
def test_the_only_variant_is_found_by_itself(tmp_path: Path, only: str) -> None:
    assert_holds(variants(tmp_path, **{only: state_of(1)}), state_of(1))


def test_which_of_several_variants_is_taken(tmp_path: Path) -> None:
    some = variants(tmp_path / "a", plain=state_of(0), fp16=state_of(1), non_ema=state_of(2))
    assert_holds(some, state_of(0))
    assert_holds(find_weights(some, "non_ema"), state_of(2))
    assert_holds(variants(tmp_path / "b", non_ema=state_of(2), bf16=state_of(1)), state_of(1))
    many = variants(tmp_path / "c", non_ema=state_of(2), other=state_of(1))
    assert refusal(many) == f"{many} holds the variants non_ema, other; choose one with --variant"


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors.index.fp16.json", None])
def test_a_variant_in_shards(tmp_path: Path, name: str | None) -> None:
    """Under both names that diffusers gave to such an index; shards are no variants."""
    unet = small_unet()
    unet.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    (index,) = tmp_path.glob("*.index*.json")
    index = index.rename(tmp_path / name) if name is not None else index
    assert find_weights(tmp_path) == find_weights(tmp_path, "fp16") == index
    assert_holds(tmp_path, unet.state_dict())


def test_the_variant_of_a_models_folder(tmp_path: Path) -> None:
    folder = write_index(tmp_path / "x", unet=["diffusers", "UNet2DConditionModel"])
    variants(folder / "unet", plain=state_of(0), non_ema=state_of(2))
    variants(folder / "vae", plain=state_of(0))
    assert_holds(read_model_folder(folder).weights["unet"], state_of(0))
    found = read_model_folder(folder, "non_ema").weights
    assert_holds(found["unet"], state_of(2))
    assert_holds(found["vae"], state_of(0))
    with pytest.raises(UsageError, match=r"no weights of the variant 'fp32': use one of non_ema"):
        read_model_folder(folder, "fp32")
