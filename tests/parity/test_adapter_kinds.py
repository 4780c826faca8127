"""Adapters of all kinds beside those of LyCORIS and peft: what a layer gives after merging."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import Lora, check_loras, lora_changes, merge_loras, write_checkpoint
from sdpy.models import UNet2DConditionModel
from sdpy.models.meta import init_empty_weights
from support.compare import MODEL_TOLERANCE, normal, relative_error
from support.tiny import TINY, tiny_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lycoris = pytest.importorskip("lycoris.modules")
    from lycoris.utils import convert_diffusers_name_to_compvis

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"  # (16, 32)
POINT = "down_blocks.0.attentions.0.proj_in"  # (16, 16, 1, 1)
CONV = "down_blocks.1.resnets.0.conv1"  # (24, 16, 3, 3)
LAYERS = (LINEAR, POINT, CONV)
NORM = "down_blocks.0.resnets.0.norm1"
RANK = 3
Make = Callable[[str, nn.Module], nn.Module]


def kind(cls: str, **options: Any) -> Make:
    """A module of LyCORIS for a layer, of that class."""

    def make(name: str, layer: nn.Module) -> nn.Module:
        chosen = {"lora_dim": RANK, "alpha": 1.5, **options}
        return getattr(lycoris, cls)(name, layer, **chosen)

    return make


KINDS: dict[str, Make] = {
    "LoRA": kind("LoConModule"),
    "LoCon with a middle": kind("LoConModule", use_tucker=True),
    "LoHa": kind("LohaModule"),
    "LoHa with cores": kind("LohaModule", use_tucker=True),
    "LoKr": kind("LokrModule", lora_dim=1),
    "LoKr of two low ranks": kind("LokrModule", lora_dim=1, decompose_both=True, factor=4),
    "LoKr with a core": kind("LokrModule", lora_dim=1, use_tucker=True),
    "LoKr without a rank": kind("LokrModule", full_matrix=True),
    "LoKr with the factors exchanged": kind("LokrModule", factor=2, unbalanced_factorization=True),
    "DoRA of outputs": kind("LoConModule", weight_decompose=True),
    "DoRA of inputs": kind("LoConModule", weight_decompose=True, wd_on_out=False),
    "DoRA of a LoHa": kind("LohaModule", weight_decompose=True),
    "DoRA of a LoKr": kind("LokrModule", weight_decompose=True),
    "OFT": kind("DiagOFTModule", lora_dim=4),
    "OFT within bounds": kind("DiagOFTModule", lora_dim=4, constraint=0.01),
    "OFT that rescales": kind("DiagOFTModule", lora_dim=4, rescaled=True),
    "BOFT": kind("ButterflyOFTModule", lora_dim=8),
    "BOFT within bounds": kind("ButterflyOFTModule", lora_dim=8, constraint=0.01),
    "BOFT that rescales": kind("ButterflyOFTModule", lora_dim=8, rescaled=True),
    "full": kind("FullModule"),
}
LINEAR_IN_ITS_WEIGHT = ("LoRA", "LoHa", "LoKr", "OFT", "full")


def flat(layer: str) -> str:
    return f"lora_unet_{layer.replace('.', '_')}"


def trained(make: Make, name: str, layer: nn.Module, seed: int) -> nn.Module:
    """The kind's module with random numbers in place of those that training begins with."""
    module = make(name, layer).eval()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            noise = normal(*parameter.shape, seed=seed + i)
            # Lengths and scales stay near what they are, everything else becomes random.
            parameter.copy_(parameter * (1 + noise / 4) if parameter.any() else noise / 3)
    return module


def stored(module: nn.Module) -> dict[str, Tensor]:
    if type(module).__name__ == "FullModule":  # which is the difference until it is applied
        own = {"diff": module.weight, "diff_b": module.bias}
        own = {name: tensor for name, tensor in own.items() if tensor is not None}
    else:
        own = module.custom_state_dict() or module.state_dict()
    return {name: tensor.detach().clone().contiguous() for name, tensor in own.items()}


def sample(layer: nn.Module, seed: int) -> Tensor:
    if isinstance(layer, nn.Linear):
        return normal(5, layer.in_features, seed=seed)
    return normal(2, layer.weight.shape[1], 6, 7, seed=seed)


@torch.no_grad()
def assert_same_as_lycoris(folder: Path, make: Make, share: float) -> None:
    model = tiny_model("unet")
    modules: dict[str, nn.Module] = {}
    tensors: dict[str, Tensor] = {}
    for i, name in enumerate(LAYERS):
        modules[name] = trained(make, flat(name), model.get_submodule(name), seed=100 * i)
        modules[name].multiplier = share
        tensors |= {f"{flat(name)}.{k}": v for k, v in stored(modules[name]).items()}
    expected = {}
    for i, (name, module) in enumerate(modules.items()):
        expected[name] = module(sample(model.get_submodule(name), seed=i))
    write_checkpoint(folder / "adapter.safetensors", tensors)
    loras = [Lora(folder / "adapter.safetensors", share)]
    check_loras(loras, {"unet": model})
    before = {
        name: model.get_submodule(name)(sample(model.get_submodule(name), i))
        for i, name in enumerate(LAYERS)
    }
    merge_loras(loras, "unet", model)
    for i, name in enumerate(LAYERS):
        layer = model.get_submodule(name)
        assert relative_error(layer(sample(layer, seed=i)), expected[name]) <= MODEL_TOLERANCE, name
        assert relative_error(before[name], expected[name]) > 1e-3, name


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_lycoris(name: str, tmp_path: Path) -> None:
    assert_same_as_lycoris(tmp_path, KINDS[name], 1.0)


@pytest.mark.parametrize("name", LINEAR_IN_ITS_WEIGHT)
def test_a_share_of_each(name: str, tmp_path: Path) -> None:
    assert_same_as_lycoris(tmp_path, KINDS[name], -0.4)


@torch.no_grad()
def test_norms_and_biases(tmp_path: Path) -> None:
    """LyCORIS's kind for norms, and biases beside a LoRA of another layer."""
    model = tiny_model("unet")
    norm, conv = model.get_submodule(NORM), model.get_submodule(CONV)
    reference = lycoris.NormModule(flat(NORM), norm, 0.7).eval()
    reference.w_norm.copy_(normal(16, seed=1) / 3)
    reference.b_norm.copy_(normal(16, seed=2) / 3)
    lora = trained(KINDS["LoRA"], flat(CONV), conv, seed=3)
    bias = normal(24, seed=4)
    tensors = {f"{flat(NORM)}.{k}": v for k, v in stored(reference).items()}
    tensors |= {f"{flat(CONV)}.{k}": v for k, v in stored(lora).items()}
    tensors[f"{flat(CONV)}.diff_b"] = bias
    write_checkpoint(tmp_path / "adapter.safetensors", tensors)
    lora.multiplier = 0.7
    x = normal(2, 16, 6, 7, seed=5)
    expected = reference(x), lora(x) + 0.7 * bias[:, None, None]
    loras = [Lora(tmp_path / "adapter.safetensors", 0.7)]
    check_loras(loras, {"unet": model})
    merge_loras(loras, "unet", model)
    assert relative_error(norm(x), expected[0]) <= MODEL_TOLERANCE
    assert relative_error(conv(x), expected[1]) <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", KINDS)
def test_weight_0_changes_nothing(name: str, tmp_path: Path) -> None:
    model = tiny_model("unet")
    layer = model.get_submodule(CONV)
    module = trained(KINDS[name], flat(CONV), layer, seed=7)
    tensors = {f"{flat(CONV)}.{k}": v for k, v in stored(module).items()}
    write_checkpoint(tmp_path / "adapter.safetensors", tensors)
    before = layer.weight.clone()
    merge_loras([Lora(tmp_path / "adapter.safetensors", 0.0)], "unet", model)
    assert torch.equal(layer.weight, before)


def test_layers_by_the_names_of_the_original_programs(tmp_path: Path) -> None:
    """kohya's names for Stable Diffusion XL, and those of others with dots."""
    config = replace(
        TINY.unet,
        block_out_channels=(8, 8, 8, 8),
        cross_attention=(True, True, True, False),
        attention_heads=(2, 2, 2, 2),
        layers_per_block=2,
    )
    with init_empty_weights():
        model = UNet2DConditionModel(config)
    layers = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    known = {
        flat(name): convert_diffusers_name_to_compvis(f"{flat(name)}")
        for name in layers
        # Where a level does not attend, LyCORIS counts an upsampler's place as if it did.
        if name not in ("conv_in", "conv_out", "up_blocks.0.upsamplers.0.conv")
    }
    assert len(set(known.values())) == len(known) > 200
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in known.values()
    tensors = {
        f"{known[flat(name)]}.diff": torch.zeros(weight.shape)
        for name, weight in layers.items()
        if flat(name) in known
    }
    write_checkpoint(tmp_path / "original.safetensors", tensors)
    loras = [Lora(tmp_path / "original.safetensors")]
    check_loras(loras, {"unet": model})
    changed = lora_changes(loras, "unet", model)
    assert set(changed) == {f"{name}.weight" for name in layers if flat(name) in known}
    for name, change in changed.items():
        factors = change.keywords["adapters"][0][1].factors  # type: ignore[attr-defined]
        assert factors.names["diff"] == f"{known[flat(name.removesuffix('.weight'))]}.diff"


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
def test_original_names_with_dots(prefix: str, tmp_path: Path) -> None:
    theirs = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    down, up = normal(RANK, 32, seed=1), normal(16, RANK, seed=2)
    tensors = {f"{prefix}{theirs}.lora_A.weight": down, f"{prefix}{theirs}.lora_B.weight": up}
    write_checkpoint(tmp_path / "lora.safetensors", tensors)
    model = tiny_model("unet")
    before = model.get_submodule(LINEAR).weight.clone()
    check_loras([Lora(tmp_path / "lora.safetensors")], {"unet": model})
    merge_loras([Lora(tmp_path / "lora.safetensors")], "unet", model)
    change = model.get_submodule(LINEAR).weight - before
    assert relative_error(change, up @ down) <= MODEL_TOLERANCE
