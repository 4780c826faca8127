"""T2I-Adapters in the names of their authors: recognised, read, inspected, converted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import guess_kind, load_weights, write_checkpoint
from sdpy.models import T2IAdapter, T2IAdapterConfig
from sdpy.zoo.convert import plan_conversion
from sdpy.zoo.inspect import inspect_weights
from support.compare import randomise

FULL = T2IAdapterConfig(channels=(8, 16, 24, 24))
XL = T2IAdapterConfig(channels=(8, 16, 24, 24), downscale_factor=16, adapter_type="full_adapter_xl")
LIGHT = T2IAdapterConfig(channels=(8, 16, 24), num_res_blocks=4, adapter_type="light_adapter")
GREY = T2IAdapterConfig(in_channels=1, channels=(8, 16, 24, 24))
ADAPTERS = {"full": FULL, "grey": GREY, "xl": XL, "light": LIGHT}

# Where the authors' programs have what diffusers has elsewhere.
FULL_NAMES = {
    "conv_in": "adapter.conv_in",
    **{f"body.{2 * i + j}": f"adapter.body.{i}.resnets.{j}" for i in range(4) for j in range(2)},
}
FULL_IN_CONVS = {
    "body.2.in_conv": "adapter.body.1.in_conv",
    "body.4.in_conv": "adapter.body.2.in_conv",
}
LIGHT_NAMES = {
    f"body.{i}.body.{j}": f"adapter.body.{i}.resnets.{j}" for i in range(4) for j in range(4)
}
LIGHT_CONVS = {
    f"body.{i}.{conv}": f"adapter.body.{i}.{conv}"
    for i in range(4)
    for conv in ("in_conv", "out_conv")
}


def adapter(name: str) -> nn.Module:
    return randomise(T2IAdapter(ADAPTERS[name]), seed=1)


def original(name: str) -> dict[str, Tensor]:
    """An adapter's weights by the authors' names, written out."""
    found: dict[str, Tensor] = {}
    ours = adapter(name).state_dict()
    modules = {**LIGHT_NAMES, **LIGHT_CONVS} if name == "light" else {**FULL_NAMES, **FULL_IN_CONVS}
    for theirs, mine in modules.items():
        for key, tensor in ours.items():
            rest = key.removeprefix(mine)
            if key.startswith(f"{mine}."):
                found[theirs + rest] = tensor
    assert len(found) == len(ours)
    return found


def forms(name: str) -> Mapping[str, object]:
    tensors = original(name)
    return {
        "plain": tensors,
        "nested": {"adapter": tensors},
        "wrapped": {"module." + key: tensor for key, tensor in tensors.items()},
    }


@pytest.mark.parametrize("form", ["plain", "nested", "wrapped"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_authors_files_are_read(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / "t2iadapter.pth"
    torch.save(forms(name)[form], path)
    (seen,) = inspect_weights(path).components
    assert (seen.name, seen.config, seen.problems, seen.guessed) == (
        "t2i_adapter",
        ADAPTERS[name],
        {},
        False,
    )
    assert seen.weights.part.dialect == "original"
    with torch.device("meta"):
        model = T2IAdapter(ADAPTERS[name])
    load_weights(model, path, component="t2i_adapter")
    for key, tensor in adapter(name).state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ADAPTERS)
def test_converted_both_ways(tmp_path: Path, name: str) -> None:
    torch.save(original(name), tmp_path / "theirs.pth")
    for _ in plan_conversion(inspect_weights(tmp_path / "theirs.pth"), tmp_path / "folder").run():
        pass
    loaded = diffusers.T2IAdapter.from_pretrained(tmp_path / "folder")
    expected = adapter(name).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(loaded.state_dict()[key], expected[key]) for key in expected)
    assert loaded.config.adapter_type == ADAPTERS[name].adapter_type
    loaded.save_pretrained(tmp_path / "again")
    (seen,) = inspect_weights(tmp_path / "again").components
    assert (seen.config, seen.problems) == (ADAPTERS[name], {})
    back = tmp_path / "back.safetensors"
    source = inspect_weights(tmp_path / "again")
    for _ in plan_conversion(source, back, layout="original").run():
        pass
    (seen,) = inspect_weights(back).components
    assert seen.weights.checkpoint.outline.keys() == original(name).keys()
    for key, tensor in original(name).items():
        assert torch.equal(seen.weights.checkpoint.tensors[key], tensor)


def test_what_adapters_are_called() -> None:
    kinds = {
        "full": "a T2I-Adapter for Stable Diffusion 1.x",
        "grey": "a T2I-Adapter for Stable Diffusion 1.x that is shown grey images",
        "xl": "a T2I-Adapter for Stable Diffusion XL",
        "light": "a light T2I-Adapter for Stable Diffusion 1.x",
    }
    for name, kind in kinds.items():
        ours = {key: tuple(tensor.shape) for key, tensor in adapter(name).state_dict().items()}
        theirs = {key: tuple(tensor.shape) for key, tensor in original(name).items()}
        assert guess_kind(ours) == guess_kind(theirs) == kind
    assert guess_kind({"style_embedding": (1, 8, 1024), "proj": (1024, 768)}) == (
        "a T2I-Adapter of styles, which sdpy does not run"
    )


def test_a_file_with_other_layers_is_told(tmp_path: Path) -> None:
    tensors = original("full") | {"body.2.down_opt.op.weight": torch.zeros(8, 8, 3, 3)}
    write_checkpoint(tmp_path / "x.safetensors", tensors)
    (seen,) = inspect_weights(tmp_path / "x.safetensors").components
    assert seen.problems == {"unexpected": ["body.2.down_opt.op.weight"]}


def test_an_adapter_of_unknown_pixels_is_told(tmp_path: Path) -> None:
    odd = T2IAdapterConfig(channels=(8, 16, 24, 24), downscale_factor=4)
    write_checkpoint(tmp_path / "x.safetensors", randomise(T2IAdapter(odd)).state_dict())
    (seen,) = inspect_weights(tmp_path / "x.safetensors").components
    (problem,) = seen.problems["of unknown structure"]
    assert "48 input channels" in problem
