"""What is said of LoRAs that cannot be merged. Merging itself is in tests/parity/test_lora.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import Lora, check_loras, merge_loras, write_checkpoint
from sdpy.errors import WeightsError
from support.tiny import tiny_model

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # (16, 16)
KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"  # (16, 32)
CONV = "mid_block.resnets.0.conv1"  # (24, 24, 3, 3)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {name: tiny_model(name) for name in ("unet", "text_encoder")}


def pair(layer: str, down: tuple[int, ...], up: tuple[int, ...]) -> dict[str, Tensor]:
    return {
        f"unet.{layer}.lora_A.weight": torch.ones(down),
        f"unet.{layer}.lora_B.weight": torch.ones(up),
    }


def kohya(layer: str, down: tuple[int, ...], up: tuple[int, ...]) -> dict[str, Tensor]:
    name = layer.replace(".", "_")
    return {f"{name}.lora_down.weight": torch.ones(down), f"{name}.lora_up.weight": torch.ones(up)}


GOOD = pair(QUERY, (2, 16), (16, 2))
SDXL_TEXT = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
BAD: dict[str, tuple[dict[str, Tensor], list[str]]] = {
    "empty": ({}, ["empty"]),
    "no LoRA": (
        {"decoder.conv_in.weight": torch.ones(2, 2)},
        ["decoder.conv_in.weight", "no LoRA at all"],
    ),
    "a layer that is not there": (
        {**GOOD, **pair("down_blocks.7.attentions.0.to_q", (2, 16), (16, 2))},
        ["UNet2DConditionModel has no layers for", "down_blocks.7.attentions.0.to_q.lora_A"],
    ),
    "many that are not there": (
        {k: v for i in range(9) for k, v in pair(f"no.{i}", (2, 16), (16, 2)).items()},
        ["and 6 more"],
    ),
    "a tensor of no role": ({**GOOD, f"unet.{QUERY}.bias": torch.ones(16)}, [f"{QUERY}.bias"]),
    "one factor": (dict(list(GOOD.items())[:1]), ["belong together are missing", "lora_A"]),
    "alpha alone": ({f"lora_unet_{QUERY.replace('.', '_')}.alpha": torch.ones(())}, ["missing"]),
    "Stable Diffusion 2.x": (
        pair(KEY, (2, 1024), (16, 2)),
        ["of other sizes", "Stable Diffusion 2.x"],
    ),
    "Stable Diffusion XL": (
        kohya(f"lora_unet_{KEY}", (2, 2048), (16, 2)),
        ["of other sizes", "Stable Diffusion XL"],
    ),
    "its second text encoder": (
        kohya(SDXL_TEXT, (2, 16), (16, 2)),
        [SDXL_TEXT, "Stable Diffusion XL"],
    ),
    "ranks that differ": (pair(QUERY, (2, 16), (16, 3)), ["of other sizes", QUERY]),
    "rank 0": (pair(QUERY, (0, 16), (16, 0)), ["of other sizes"]),
    "another width": (pair(QUERY, (2, 16), (24, 2)), ["of other sizes"]),
    "vectors": (pair(QUERY, (16,), (16,)), ["of other sizes"]),
    "a linear LoRA for a 3x3 convolution": (pair(CONV, (2, 24), (24, 2)), ["of other sizes"]),
    "a kernel of another size": (pair(CONV, (2, 24, 5, 5), (24, 2, 1, 1)), ["of other sizes"]),
    "two kernels": (pair(CONV, (2, 24, 3, 3), (24, 2, 3, 3)), ["of other sizes"]),
    "an alpha for each channel": (
        {**GOOD, f"unet.{QUERY}.alpha": torch.ones(16)},
        ["of other sizes"],
    ),
    "a layer under two names": (
        {**GOOD, **kohya(f"lora_unet_{QUERY}", (2, 16), (16, 2))},
        ["two names mean the same"],
    ),
    "a factor under two names": (
        {**GOOD, f"unet.{QUERY}.lora.up.weight": torch.ones(16, 2)},
        ["two names mean the same"],
    ),
    "LoHa": (
        {f"lora_unet_{QUERY.replace('.', '_')}.hada_w1_a": torch.ones(2, 2)},
        ["hada_w1_a", "a LoHa"],
    ),
    "DoRA": (
        {**GOOD, f"unet.{QUERY}.lora_magnitude_vector.weight": torch.ones(17)},
        ["of other sizes", "a DoRA"],
    ),
    "FLUX": (
        {
            "transformer.x.attn.to_q.lora_A.weight": torch.ones(2, 16),
            "transformer.x.attn.to_q.lora_B.weight": torch.ones(16, 2),
        },
        ["diffusion transformer"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(
    case: str, tmp_path: Path, models: dict[str, nn.Module]
) -> None:
    tensors, words = BAD[case]
    write_checkpoint(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(WeightsError) as error:
        check_loras([Lora(tmp_path / "lora.safetensors")], models)
    message = str(error.value)
    assert "\n" not in message
    for word in ("lora.safetensors", *words):
        assert word in message


def test_a_missing_file_is_named(tmp_path: Path, models: dict[str, nn.Module]) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors"):
        check_loras([Lora(tmp_path / "none.safetensors")], models)


def test_metadata_that_is_no_json(tmp_path: Path, models: dict[str, nn.Module]) -> None:
    path = tmp_path / "lora.safetensors"
    write_checkpoint(path, GOOD, {"lora_adapter_metadata": "{"})
    with pytest.raises(WeightsError, match="no JSON"):
        check_loras([Lora(path)], models)


@pytest.mark.parametrize(
    "prefix", ["", "unet.", "base_model.model.", "unet.base_model.model."], ids=repr
)
def test_prefixes(prefix: str, tmp_path: Path) -> None:
    tensors = {name.replace("unet.", prefix, 1): tensor for name, tensor in GOOD.items()}
    write_checkpoint(tmp_path / "lora.safetensors", tensors)
    model = tiny_model("unet")
    before = model.get_submodule(QUERY).weight.clone()
    merge_loras([Lora(tmp_path / "lora.safetensors", 0.25)], "unet", model)
    change = model.get_submodule(QUERY).weight - before
    assert torch.allclose(change, torch.full((16, 16), 0.25 * 2))


def test_no_two_layers_share_a_flat_name(models: dict[str, nn.Module]) -> None:
    for model in models.values():
        names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert len({name.replace(".", "_") for name in names}) == len(names)
