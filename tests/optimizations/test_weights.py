"""Weights that are released and restored are what they were when they were loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import Lora, load_weights, lora_changes, merge_loras, write_checkpoint
from sdpy.models import UNet2DConditionModel
from sdpy.models.meta import init_empty_weights
from sdpy.optimizations.weights import ModelWeights
from support.compare import normal
from support.tiny import TINY, tiny_weights

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def loaded(
    folder: Path, stored: torch.dtype, ending: str, loras: tuple[Lora, ...] = ()
) -> tuple[nn.Module, ModelWeights]:
    """As it is done when a model is loaded to be used."""
    path = folder / f"unet{ending}"
    write_checkpoint(path, {key: value.to(stored) for key, value in tiny_weights("unet").items()})
    with init_empty_weights():
        model = UNet2DConditionModel(TINY.unet)
    file = load_weights(model, path)
    changes = lora_changes(loras, "unet", model)
    merge_loras(loras, "unet", model)
    return model, ModelWeights(model, file, changes=changes)


def write_lora(folder: Path) -> Lora:
    path = folder / "lora.safetensors"
    names = (f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight")
    down, up = normal(4, 24), normal(24, 4, seed=1)
    write_checkpoint(path, dict(zip(names, (down, up), strict=True)))
    return Lora(path, 0.7)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".ot"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.float64])
def test_the_same_bits_come_back(
    tmp_path: Path, stored: torch.dtype, ending: str, inference: bool
) -> None:
    lora = write_lora(tmp_path)
    plain, _ = loaded(tmp_path, torch.float32, ".bin")
    with torch.inference_mode(inference):
        model, weights = loaded(tmp_path, stored, ending, (lora,))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    unchanged = plain.get_parameter(f"{LAYER}.weight")
    assert not torch.equal(before[f"{LAYER}.weight"], unchanged)
    with torch.inference_mode():
        for _ in range(2):
            for parameter in model.parameters():
                weights.release(parameter)
                weights.release(parameter)
            for name, parameter in model.named_parameters():
                assert parameter.shape == before[name].shape
                weights.restore(parameter)
                weights.restore(parameter)
                assert torch.equal(parameter, before[name])
                assert not weights.is_released(parameter)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_memory_is_freed(tmp_path: Path, stored: torch.dtype) -> None:
    """Of what does not lie in the file itself; the rest stays usable."""
    model, weights = loaded(tmp_path, stored, ".safetensors", (write_lora(tmp_path),))
    for name, parameter in model.named_parameters():
        mapped = stored == torch.float32 and name != f"{LAYER}.weight"
        assert (weights.mapping_of(parameter) is not None) == mapped
        before = parameter.clone()
        weights.release(parameter)
        assert weights.is_released(parameter) != mapped
        if mapped:
            assert torch.equal(parameter, before)
        else:
            assert parameter.untyped_storage().nbytes() == parameter.element_size()
            assert parameter.isnan().all()  # so that an accidental use is noticed
        assert (parameter.dtype, parameter.device) == (before.dtype, before.device)


def test_a_released_storage_is_gone(tmp_path: Path) -> None:
    model, weights = loaded(tmp_path, torch.float16, ".safetensors")
    parameter = model.get_parameter(f"{LAYER}.weight")
    storage = parameter.untyped_storage()._weak_ref()
    weights.release(parameter)
    assert torch.UntypedStorage._expired(storage)
    torch.UntypedStorage._free_weak_ref(storage)


def test_others_are_never_released(tmp_path: Path) -> None:
    _, weights = loaded(tmp_path, torch.float16, ".safetensors")
    mine: Tensor = nn.Parameter(normal(3, 4))
    before = mine.clone()
    for one in (weights, ModelWeights()):
        one.release(mine)
        one.restore(mine)
        assert torch.equal(mine, before) and not one.is_released(mine)
        assert one.change_of(mine) is None and one.mapping_of(mine) is None
