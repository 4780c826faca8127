"""Merged LoRAs beside those that diffusers and peft merge, in all the names that they go by."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.test_pipelines import VARIANTS, reference, tokenizer
from sdpy.checkpoints import Lora, check_loras, merge_loras, write_checkpoint
from support.compare import MODEL_TOLERANCE, normal, relative_error
from support.references import text_encoder_state
from support.tiny import tiny_model

__all__ = ["tokenizer"]  # a fixture

pytest.importorskip("peft")

RANK = 3
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
Spell = Callable[[str, str, str], str]
"""From part, layer and role to the name in a file."""


def layers(part: str, *ends: str) -> Iterator[tuple[str, Tensor]]:
    """The weights of linear layers and convolutions whose names end so; all where none is given."""
    for name, module in tiny_model(part).named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name.endswith(ends or ("",)):
            yield name, module.weight


def factors(weight: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Random down and up of a weight."""
    C_out, C_in, *kernel = weight.shape
    down = normal(RANK, C_in, *kernel, seed=seed) / 5
    return down, normal(C_out, RANK, *(1 for _ in kernel), seed=seed + 500)


def make(
    spell: Spell, *ends: str, alpha: bool = False, folded: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """A LoRA's tensors. Alphas differ from layer to layer, and may be ``folded`` into the rest."""
    tensors: dict[str, Tensor] = {}
    for part in ("unet", "text_encoder"):
        for i, (layer, weight) in enumerate(layers(part, *ends)):
            down, up = factors(weight, seed + i)
            alpha_i = 1.0 + i % 4
            if folded:
                up = up * alpha_i / RANK
            tensors[spell(part, layer, "down")] = down
            tensors[spell(part, layer, "up")] = up
            if alpha:
                tensors[spell(part, layer, "alpha")] = torch.tensor(alpha_i)
    return tensors


def peft(part: str, layer: str, role: str) -> str:
    letter = {"down": "A", "up": "B"}[role]
    return f"{part}.{layer.removeprefix('text_model.')}.lora_{letter}.weight"


def diffusers_linear(part: str, layer: str, role: str) -> str:
    kind = "lora" if part == "unet" else "lora_linear_layer"
    return f"{part}.{layer.removeprefix('text_model.')}.{kind}.{role}.weight"


def old_diffusers(part: str, layer: str, role: str) -> str:
    layer = layer.removeprefix("text_model.")
    if part == "unet":
        attention, _, projection = layer.removesuffix(".0").rpartition(".")
        return f"{part}.{attention}.processor.{projection}_lora.{role}.weight"
    attention, _, projection = layer.rpartition(".")
    renamed = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    return f"{part}.{attention}.{renamed[projection]}_lora.{role}.weight"


def kohya(part: str, layer: str, role: str) -> str:
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part]
    end = "alpha" if role == "alpha" else f"lora_{role}.weight"
    return f"{prefix}{layer.replace('.', '_')}.{end}"


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    write_checkpoint(path, tensors, metadata)
    return path


def merged(loras: list[Lora]) -> dict[str, dict[str, Tensor]]:
    models = {part: tiny_model(part) for part in ("unet", "text_encoder")}
    check_loras(loras, models)
    for part, model in models.items():
        merge_loras(loras, part, model)
    return {part: model.state_dict() for part, model in models.items()}


def fused(tokenizer: Any, loras: list[Lora]) -> dict[str, dict[str, Tensor]]:
    pipeline = reference(diffusers.StableDiffusionPipeline, tokenizer, VARIANTS["epsilon"])
    names = [f"lora{i}" for i in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        pipeline.load_lora_weights(lora.path.parent, weight_name=lora.path.name, adapter_name=name)
    pipeline.set_adapters(names, [lora.weight for lora in loras])
    pipeline.fuse_lora(components=["unet", "text_encoder"], adapter_names=names)
    pipeline.unload_lora_weights()
    return {
        "unet": pipeline.unet.state_dict(),
        "text_encoder": text_encoder_state(pipeline.text_encoder),
    }


def assert_equal_weights(
    ours: dict[str, dict[str, Tensor]], theirs: dict[str, dict[str, Tensor]], changed: set[str]
) -> None:
    for part in ours:
        assert ours[part].keys() == theirs[part].keys()
        before = tiny_model(part).state_dict()
        for name, tensor in ours[part].items():
            assert relative_error(tensor, theirs[part][name]) <= MODEL_TOLERANCE, name
            if f"{part} {name}" in changed:
                assert relative_error(tensor, before[name]) > 1e-3, name
            else:
                assert torch.equal(tensor, before[name]), name


def touched(*ends: str) -> set[str]:
    return {
        f"{part} {layer}.weight"
        for part in ("unet", "text_encoder")
        for layer, _ in layers(part, *ends)
    }


FORMS: dict[str, tuple[Spell, tuple[str, ...]]] = {
    "peft": (peft, ()),
    "diffusers, linear layers": (diffusers_linear, (*ATTENTION, *TEXT_ATTENTION)),
    "diffusers, attention processors": (old_diffusers, (*ATTENTION, *TEXT_ATTENTION)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weight", [1.0, -0.6])
def test_forms_of_diffusers(tokenizer: Any, tmp_path: Path, form: str, weight: float) -> None:
    spell, ends = FORMS[form]
    loras = [Lora(write(tmp_path / "lora.safetensors", make(spell, *ends)), weight)]
    assert_equal_weights(merged(loras), fused(tokenizer, loras), touched(*ends))


@pytest.mark.parametrize("ends", [(*ATTENTION, *TEXT_ATTENTION), ()], ids=["attention", "all"])
def test_kohya(tokenizer: Any, tmp_path: Path, ends: tuple[str, ...]) -> None:
    """diffusers drops some of the alphas of these names: it is given them folded, in peft's."""
    ours = Lora(write(tmp_path / "ours.safetensors", make(kohya, *ends, alpha=True)), 0.8)
    theirs = Lora(write(tmp_path / "theirs.safetensors", make(peft, *ends, folded=True)), 0.8)
    assert_equal_weights(merged([ours]), fused(tokenizer, [theirs]), touched(*ends))


def test_kohya_as_diffusers_reads_it(tokenizer: Any, tmp_path: Path) -> None:
    """All alphas alike, and no text encoder: this much diffusers translates itself."""
    ends = (*ATTENTION, "proj_in", "conv1", "conv_shortcut", "proj")
    tensors = make(kohya, *ends, alpha=True)
    tensors = {
        name: torch.tensor(2.0) if name.endswith("alpha") else tensor
        for name, tensor in tensors.items()
        if name.startswith("lora_unet_")
    }
    loras = [Lora(write(tmp_path / "lora.safetensors", tensors), 0.8)]
    changed = {name for name in touched(*ends) if name.startswith("unet ")}
    assert_equal_weights(merged(loras), fused(tokenizer, loras), changed)


def test_alpha_in_the_metadata(tokenizer: Any, tmp_path: Path) -> None:
    pattern = {"down_blocks.0.attentions.0.proj_in": 7, "mid_block.resnets.0.conv1": 2.5}
    ends = (*ATTENTION, *TEXT_ATTENTION, "proj_in", "conv1")
    settings = {
        **{
            f"{part}.{key}": value
            for part in ("unet", "text_encoder")
            for key, value in {
                "r": RANK,
                "rank_pattern": {},
                "use_dora": False,
                "lora_bias": False,
            }.items()
        },
        "unet.lora_alpha": 5,
        "unet.alpha_pattern": pattern,
        "unet.use_rslora": True,
        "unet.target_modules": [*ATTENTION, "proj_in", "conv1"],
        "text_encoder.lora_alpha": 4.5,
        "text_encoder.alpha_pattern": {},
        "text_encoder.use_rslora": False,
        "text_encoder.target_modules": list(TEXT_ATTENTION),
    }
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    path = write(tmp_path / "lora.safetensors", make(peft, *ends), metadata)
    ours, theirs = merged([Lora(path)]), fused(tokenizer, [Lora(path)])
    assert_equal_weights(ours, theirs, touched(*ends))
    plain = merged([Lora(write(tmp_path / "plain.safetensors", make(peft, *ends)))])
    name = "mid_block.resnets.0.conv1.weight"
    assert relative_error(plain["unet"][name], ours["unet"][name]) > 1e-3


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_several(tokenizer: Any, tmp_path: Path) -> None:
    ends = (*ATTENTION, *TEXT_ATTENTION)
    first = Lora(write(tmp_path / "a.safetensors", make(peft, *ends, "conv1", seed=1)), 0.7)
    ours = Lora(write(tmp_path / "b.safetensors", make(kohya, *ends, alpha=True, seed=2)), -0.4)
    theirs = Lora(write(tmp_path / "c.safetensors", make(peft, *ends, folded=True, seed=2)), -0.4)
    expected = fused(tokenizer, [first, theirs])
    for loras in ([first, ours], [ours, first]):
        assert_equal_weights(merged(loras), expected, touched(*ends, "conv1"))


@torch.no_grad()
def test_the_three_convolutions_of_locon(tmp_path: Path) -> None:
    """With a middle factor the change is that of three convolutions in a row."""
    layer = "mid_block.resnets.0.conv1"
    weight = dict(layers("unet"))[layer]
    C_out, C_in = weight.shape[:2]
    down, up = normal(RANK, C_in, 1, 1, seed=1) / 5, normal(C_out, 5, 1, 1, seed=2)
    mid = normal(5, RANK, 3, 3, seed=3) / 5
    tensors = {
        kohya("unet", layer, "down"): down,
        kohya("unet", layer, "mid"): mid,
        kohya("unet", layer, "up"): up,
        kohya("unet", layer, "alpha"): torch.tensor(2.0),
    }
    path = write(tmp_path / "locon.safetensors", tensors)
    conv = merged([Lora(path, 0.5)])["unet"][f"{layer}.weight"]
    x = normal(2, C_in, 6, 7, seed=4)
    three = F.conv2d(F.conv2d(F.conv2d(x, down), mid, padding=1), up)
    expected = F.conv2d(x, weight, padding=1) + 0.5 * 2.0 / RANK * three
    assert relative_error(F.conv2d(x, conv, padding=1), expected) <= MODEL_TOLERANCE


@torch.no_grad()
def test_linear_factors_for_a_1x1_convolution_and_the_other_way_round(tmp_path: Path) -> None:
    tensors = make(kohya, "proj_in", "to_q")
    other = {
        name: tensor.flatten(1) if tensor.ndim == 4 else tensor[..., None, None]
        for name, tensor in tensors.items()
    }
    ours = merged([Lora(write(tmp_path / "a.safetensors", tensors))])
    theirs = merged([Lora(write(tmp_path / "b.safetensors", other))])
    assert_equal_weights(ours, theirs, touched("proj_in", "to_q"))


def test_what_a_lora_does_not_touch_is_not_copied(tmp_path: Path) -> None:
    model = tiny_model("unet")
    before = {name: (p, p.data_ptr()) for name, p in model.named_parameters()}
    path = write(tmp_path / "lora.safetensors", make(kohya, "attn2.to_k"))
    merge_loras([Lora(path)], "unet", model)
    for name, parameter in model.named_parameters():
        if name.endswith("attn2.to_k.weight"):
            assert parameter is not before[name][0]
        else:
            assert parameter is before[name][0]
            assert parameter.data_ptr() == before[name][1]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_sum_is_made_in_float32(tmp_path: Path) -> None:
    path = write(tmp_path / "lora.safetensors", make(kohya, "to_q"))
    single, half = tiny_model("unet").half().float(), tiny_model("unet").half()
    for model in (single, half):
        merge_loras([Lora(path)], "unet", model)
    for (name, a), (_, b) in zip(
        single.state_dict().items(), half.state_dict().items(), strict=True
    ):
        assert b.dtype == torch.float16
        assert torch.equal(a.half(), b), name


def test_another_weight_is_noticed(tokenizer: Any, tmp_path: Path) -> None:
    ends = (*ATTENTION, *TEXT_ATTENTION)
    path = write(tmp_path / "lora.safetensors", make(peft, *ends))
    theirs = fused(tokenizer, [Lora(path, 0.5)])
    other = merged([replace(Lora(path), weight=0.501)])
    with pytest.raises(AssertionError):
        assert_equal_weights(other, theirs, touched(*ends))
