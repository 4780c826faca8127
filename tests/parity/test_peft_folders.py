"""Adapters as peft saves them: a folder of weights and their configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import Lora, check_loras, merge_loras
from sdpy.errors import WeightsError
from support.compare import MODEL_TOLERANCE, normal, relative_error
from support.references import (
    load_text_encoder,
    reference_text_encoder,
    reference_unet,
)
from support.tiny import TINY, tiny_model

RANK = 3
pytestmark = [
    # Of peft beside the newest transformers.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # It takes the biases of a LoRA for broken factors.
    pytest.mark.filterwarnings("ignore:Adapter 'default'"),
]

TARGETS = ["to_q", "to_k", "proj_in", "conv1"]
TEXT_TARGETS = ["q_proj", "fc1"]


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": RANK, "lora_alpha": 5, "target_modules": TARGETS, **options})


CONFIGS: dict[str, Callable[[], Any]] = {
    "alpha": lora,
    "patterns": lambda: lora(
        alpha_pattern={"mid_block.*to_q": 7, "to_q": 2}, rank_pattern={"^down_blocks.*conv1": 2}
    ),
    "rsLoRA": lambda: lora(use_rslora=True),
    "DoRA": lambda: lora(use_dora=True),
    "biases": lambda: lora(lora_bias=True, target_modules=["conv1", "proj_in"]),
    "LoHa": lambda: peft.LoHaConfig(r=RANK, alpha=5, target_modules=TARGETS),
    "LoHa with cores": lambda: peft.LoHaConfig(
        r=RANK, alpha=5, target_modules=TARGETS, use_effective_conv2d=True
    ),
    "LoKr": lambda: peft.LoKrConfig(
        r=2, alpha=5, target_modules=TARGETS, rank_pattern={"mid_block.*to_q": 1}
    ),
    "LoKr of low ranks": lambda: peft.LoKrConfig(
        r=1, alpha=5, target_modules=TARGETS, decompose_both=True, use_effective_conv2d=True
    ),
}


def unet() -> nn.Module:
    reference = reference_unet(TINY.unet)
    reference.load_state_dict(tiny_model("unet").state_dict())
    return reference


def text_encoder() -> nn.Module:
    reference = reference_text_encoder(TINY.text_encoder)
    load_text_encoder(reference, tiny_model("text_encoder").state_dict())
    return reference


@torch.no_grad()
def save(model: nn.Module, config: Any, folder: Path) -> dict[str, Tensor]:
    """Save an adapter with random numbers; the weights of the model with it merged."""
    adapted = peft.get_peft_model(model, config)
    before = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    for i, (name, parameter) in enumerate(before.items()):
        noise = normal(*parameter.shape, seed=i) / 4
        parameter.copy_(parameter * (1 + noise) if "magnitude" in name else noise)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload().state_dict()


def assert_merged(path: Path, component: str, expected: dict[str, Tensor]) -> None:
    models = {name: tiny_model(name) for name in ("unet", "text_encoder")}
    check_loras([Lora(path)], models)
    before = tiny_model(component).state_dict()
    merge_loras([Lora(path)], component, models[component])
    merged = models[component].state_dict()
    assert merged.keys() == expected.keys()
    changed = 0
    for name, tensor in merged.items():
        assert relative_error(tensor, expected[name]) <= MODEL_TOLERANCE, name
        changed += not torch.equal(tensor, before[name])
    assert changed > 3


@pytest.mark.parametrize("name", CONFIGS)
def test_folders_of_peft(name: str, tmp_path: Path) -> None:
    expected = save(unet(), CONFIGS[name](), tmp_path)
    assert_merged(tmp_path, "unet", expected)
    assert_merged(tmp_path / "adapter_model.safetensors", "unet", expected)


def test_an_adapter_of_a_text_encoder(tmp_path: Path) -> None:
    config = lora(target_modules=TEXT_TARGETS)
    expected = save(text_encoder(), config, tmp_path)
    state = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in expected.items()}
    assert_merged(tmp_path, "text_encoder", state)


def test_a_folder_with_a_folder_for_each_component(tmp_path: Path) -> None:
    first = save(unet(), lora(), tmp_path / "unet")
    second = save(text_encoder(), lora(target_modules=TEXT_TARGETS), tmp_path / "text_encoder")
    assert_merged(tmp_path, "unet", first)
    state = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in second.items()}
    assert_merged(tmp_path, "text_encoder", state)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "VERA"}, "of the kind VERA"),
    "an unknown setting": ({"use_new_method": True}, "use_new_method"),
    "changed weights": ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    "alpha that is no number": ({"lora_alpha": "5"}, "no number for lora_alpha"),
    "patterns that are no object": ({"alpha_pattern": ["to_q"]}, "alpha_pattern"),
    "a pattern that is none": ({"alpha_pattern": {"(": 3}}, "cannot be read"),
    "the other way round": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_cannot_be_followed_are_named(case: str, tmp_path: Path) -> None:
    changes, word = WRONG[case]
    save(unet(), lora(), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(WeightsError) as error:
        assert_merged(tmp_path, "unet", {})
    assert word in str(error.value) and "adapter_config.json" in str(error.value)
    assert "\n" not in str(error.value)
