"""Which Stable Diffusion a file or folder is, at the real sizes: headers without numbers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints.dialects import ORIGINAL, in_dialect
from sdpy.errors import UsageError, WeightsError
from sdpy.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from sdpy.zoo.find import find_source
from sdpy.zoo.inspect import inspect_weights
from sdpy.zoo.variants import (
    SD2_INPAINT,
    SD15,
    SD15_INPAINT,
    SD21,
    SD21_BASE,
    SD_TURBO,
    ModelVariant,
)

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}


def names_of(variant: ModelVariant) -> dict[str, dict[str, Tensor]]:
    models: dict[str, tuple[type[nn.Module], Any]] = {
        "text_encoder": (CLIPTextModel, variant.text_encoder),
        "unet": (UNet2DConditionModel, variant.unet),
        "vae": (AutoencoderKL, variant.vae),
    }
    with torch.device("meta"):
        return {name: dict(kind(config).state_dict()) for name, (kind, config) in models.items()}


def save_header(path: Path, state: dict[str, Tensor], **metadata: str) -> Path:
    """A .safetensors file whose numbers are a hole that takes no disk."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in state.items():
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        shape, offsets = list(tensor.shape), [start, end]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)
    return path


def single_file(
    folder: Path, variant: ModelVariant, more: dict[str, Tensor] | None = None, **metadata: str
) -> Path:
    tensors = dict(more or {})
    for component, state in names_of(variant).items():
        family = "sd2" if variant.unet.use_linear_projection else "sd1"
        recipes = in_dialect(component, list(state), ORIGINAL, family=family)
        tensors |= {name: recipe.make(state) for name, recipe in recipes.items()}
    return save_header(folder / "model.safetensors", tensors, **metadata)


def data_folder(folder: Path) -> Path:
    (folder / "bpe_simple_vocab_16e6.txt").write_text("#version\n")
    return folder


def sizes(variant: ModelVariant) -> tuple[object, ...]:
    return (variant.text_encoder, variant.unet, variant.vae, dict(variant.pad_ids))


@pytest.mark.parametrize("variant", [SD15, SD15_INPAINT, SD2_INPAINT], ids=lambda v: v.name)
def test_a_single_file_that_shapes_tell(tmp_path: Path, variant: ModelVariant) -> None:
    found = find_source(str(single_file(tmp_path, variant)), data_folder(tmp_path))
    assert found.variant == variant
    assert found.assumptions == ()


def test_what_a_2x_file_predicts_is_assumed_aloud(tmp_path: Path) -> None:
    path = single_file(tmp_path, SD21_BASE)
    found = find_source(str(path), data_folder(tmp_path))
    assert found.variant == SD21
    assert len(found.assumptions) == 1
    assert "assuming v_prediction" in found.assumptions[0]
    assert "--prediction-type epsilon" in found.assumptions[0]
    told = find_source(str(path), tmp_path, prediction="epsilon")
    assert told.variant == SD21_BASE
    assert told.assumptions == ()


def test_a_2x_file_may_say_it_itself(tmp_path: Path) -> None:
    data = data_folder(tmp_path)
    spec = {"modelspec.prediction_type": "epsilon"}
    found = find_source(str(single_file(tmp_path, SD21_BASE, **spec)), data)
    assert (found.variant, found.assumptions) == (SD21_BASE, ())
    marks = {"v_pred": torch.empty(0, device="meta"), "ztsnr": torch.empty(0, device="meta")}
    found = find_source(str(single_file(tmp_path, SD15, marks)), data)
    assert found.variant.noise.prediction_type == "v_prediction"
    assert found.variant.noise.rescale_betas_zero_snr
    assert sizes(found.variant) == sizes(SD15)


# As in the repositories of these models.
V_PREDICTION = {"prediction_type": "v_prediction", "steps_offset": 1}
SCHEDULERS: dict[str, tuple[ModelVariant, dict[str, Any]]] = {
    "sd15": (SD15, {"steps_offset": 1}),
    "sd21": (SD21, V_PREDICTION),
    "sd21-base": (SD21_BASE, {"prediction_type": "epsilon"}),
    "sd2-inpaint": (SD2_INPAINT, {"prediction_type": "epsilon"}),
    "sd-turbo": (SD_TURBO, {"prediction_type": "epsilon", "timestep_spacing": "trailing"}),
}
UNET_CONFIGS = {
    False: {"attention_head_dim": 8, "norm_num_groups": 32},
    True: {"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
}


def diffusers_folder(folder: Path, variant: ModelVariant, scheduler: dict[str, Any]) -> Path:
    files = {
        "text_encoder": "model",
        "unet": "diffusion_pytorch_model",
        "vae": "diffusion_pytorch_model",
    }
    second = variant.unet.use_linear_projection
    configs = {
        "text_encoder": {"hidden_act": "gelu", "num_attention_heads": 16}
        if second
        else {"hidden_act": "quick_gelu", "num_attention_heads": 12},
        "unet": UNET_CONFIGS[second],
        "vae": {"norm_num_groups": 32},
    }
    for name, state in names_of(variant).items():
        save_header(folder / name / f"{files[name]}.fp16.safetensors", halved(state))
        (folder / name / "config.json").write_text(json.dumps(configs[name]))
    texts = {
        "scheduler/scheduler_config.json": {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            **scheduler,
        },
        "model_index.json": {"unet": ["diffusers", "UNet2DConditionModel"]},
        "tokenizer/merges.txt": "#version",
        "tokenizer/special_tokens_map.json": {
            "pad_token": "!" if second else {"content": "<|endoftext|>"}
        },
    }
    for name, content in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.half() if t.is_floating_point() else t for name, t in state.items()}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_diffusers_folder(tmp_path: Path, name: str) -> None:
    variant, scheduler = SCHEDULERS[name]
    folder = diffusers_folder(tmp_path / "model", variant, scheduler)
    found = find_source(str(folder), tmp_path / "no data")
    assert found.variant == variant
    assert found.assumptions == ()
    assert found.files.vocabulary == folder / "tokenizer" / "merges.txt"


def test_a_name_finds_its_folder_or_file_in_the_data_folder(tmp_path: Path) -> None:
    diffusers_folder(tmp_path / "sd21", SD21, V_PREDICTION)
    found = find_source("sd21", tmp_path)
    assert found.variant == SD21
    assert found.files.weights["unet"].parent == tmp_path / "sd21" / "unet"
    with pytest.raises(WeightsError, match="unet_v2.1.ot"):
        find_source("sd20", tmp_path)
    (tmp_path / "data").mkdir()
    single_file(tmp_path / "data", SD21_BASE).rename(tmp_path / "data" / "sd-turbo.safetensors")
    found = find_source("sd-turbo", data_folder(tmp_path / "data"))
    assert found.variant == SD_TURBO
    assert found.assumptions == ()


def test_a_file_of_the_users_takes_the_place_of_the_models(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "model", SD15, {})
    other = save_header(tmp_path / "vae.safetensors", names_of(SD15)["vae"])
    found = find_source(str(folder), tmp_path, {"vae": other, "unet": None})
    assert found.files.weights["vae"] == other
    assert found.files.weights["unet"].parent == folder / "unet"
    inpaint = save_header(tmp_path / "i.safetensors", names_of(SD15_INPAINT)["unet"])
    found = find_source(str(folder), tmp_path, {"unet": inpaint})
    assert sizes(found.variant) == sizes(SD15_INPAINT)


def test_what_is_missing_is_named_with_its_flag(tmp_path: Path) -> None:
    unet = save_header(tmp_path / "unet.safetensors", names_of(SD15)["unet"])
    with pytest.raises(WeightsError, match="no text encoder and no VAE.*--clip-weights"):
        find_source(str(unet), tmp_path)
    path = single_file(tmp_path, SD15)
    with pytest.raises(WeightsError, match="no vocabulary .*--vocab-file"):
        find_source(str(path), tmp_path)
    with pytest.raises(WeightsError, match="holds no text encoder but one UNet"):
        find_source(str(path), data_folder(tmp_path), {"text_encoder": unet})
    with pytest.raises(UsageError, match="use one of sd15.* or the path"):
        find_source("sd9", tmp_path)


def test_unknown_schedules_are_refused(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "model", SD15, {"beta_schedule": "sigmoid"})
    with pytest.raises(WeightsError, match="sigmoid"):
        find_source(str(folder), tmp_path)


# ---------------------------------------------------------------------------------- inspection


def test_inspect_a_whole_file(tmp_path: Path) -> None:
    more = {
        "model_ema.decay": torch.empty((), device="meta"),
        "what.is.this": torch.empty(3, device="meta"),
        "model.diffusion_model.strange": torch.empty(2, device="meta"),
    }
    found = inspect_weights(single_file(tmp_path, SD15, more))
    assert [one.name for one in found.components] == ["text_encoder", "unet", "vae"]
    assert [one.parameters for one in found.components][::2] == [123_060_480, 83_653_863]
    unet = found.component("unet")
    assert unet is not None
    assert unet.problems == {"unexpected": ["model.diffusion_model.strange"]}
    assert unet.weights.part.dialect == "original"
    assert unet.dtypes == {"float32": 687}
    assert found.unexpected == ("what.is.this",)
    assert found.variant == SD15


def test_inspect_an_incomplete_component(tmp_path: Path) -> None:
    state = names_of(SD21)["unet"]
    del state["conv_in.bias"], state["mid_block.resnets.0.norm1.weight"]
    found = inspect_weights(save_header(tmp_path / "x.safetensors", halved(state)))
    assert found.components[0].problems == {
        "missing": ["conv_in.bias", "mid_block.resnets.0.norm1.weight"]
    }
    assert found.components[0].dtypes == {"float16": 684}
    assert found.variant == SD21


@pytest.mark.parametrize(
    ("build", "summary"),
    [
        (
            lambda: diffusers.ControlNetModel(block_out_channels=(8,) * 4, norm_num_groups=4),
            "a ControlNet",
        ),
        (
            lambda: diffusers.UNet2DConditionModel(
                block_out_channels=(8,) * 4,
                norm_num_groups=4,
                cross_attention_dim=768,
                time_cond_proj_dim=256,
            ),
            "a Stable Diffusion 1.x UNet with 4 input channels and a guidance embedding (LCM)",
        ),
    ],
    ids=["controlnet", "lcm"],
)
def test_inspect_other_networks(tmp_path: Path, build: Any, summary: str) -> None:
    with torch.device("meta"):
        state = build().state_dict()
    found = inspect_weights(save_header(tmp_path / "x.safetensors", state))
    assert found.components[0].summary == summary
