"""Names under which the same weights are published: wrappers, old attentions, odd shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import load_weights, read_checkpoint, write_checkpoint
from sdpy.checkpoints.dialects import ORIGINAL, find_parts, in_dialect
from sdpy.models import AutoencoderKL, UNet2DConditionModel
from sdpy.zoo.classes import make_model
from support.tiny import TINY, tiny_weights

COMPONENTS = ("text_encoder", "unet", "vae")
ATTENTION = "mid_block.attentions.0."


def empty(component: str) -> nn.Module:
    return make_model(component, TINY.configs[component])


def assert_loads(path: Path, component: str, expected: dict[str, Tensor]) -> None:
    model = empty(component)
    load_weights(model, path, component=component)
    got = model.state_dict()
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "wrapper",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "model.",
        "params.",
        "state_dict.",
        "model.ema.",
    ],
)
@pytest.mark.parametrize("component", COMPONENTS)
def test_wrappers_before_all_names(tmp_path: Path, component: str, wrapper: str) -> None:
    state = tiny_weights(component)
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {wrapper + name: tensor for name, tensor in state.items()})
    if wrapper == "model.ema.":  # no wrapper that is known
        assert set(find_parts(read_checkpoint(path).outline).by_component) == {None}
    else:
        assert_loads(path, component, state)


def test_a_wrapper_before_some_names_stays(tmp_path: Path) -> None:
    names = [*(f"module.{name}" for name in tiny_weights("unet")), "time_embedding.x"]
    part = find_parts(names).by_component["unet"]
    assert part.origins["module.conv_out.weight"].name == "module.conv_out.weight"
    assert part.origins.keys() == set(names)


def test_a_compiled_unet_in_a_whole_file(tmp_path: Path) -> None:
    state = tiny_weights("unet")
    recipes = in_dialect("unet", list(state), ORIGINAL)
    file = {name: recipe.make(state) for name, recipe in recipes.items()}
    start = "model.diffusion_model."
    compiled = {name.replace(start, f"{start}_orig_mod."): tensor for name, tensor in file.items()}
    write_checkpoint(tmp_path / "x.safetensors", compiled)
    assert_loads(tmp_path / "x.safetensors", "unet", state)


def test_a_unet_below_diffusion_model(tmp_path: Path) -> None:
    """As programs save it that keep the wrapper around the UNet to themselves."""
    state = tiny_weights("unet")
    recipes = in_dialect("unet", list(state), ORIGINAL)
    file = {name.removeprefix("model."): recipe.make(state) for name, recipe in recipes.items()}
    write_checkpoint(tmp_path / "x.safetensors", file)
    assert_loads(tmp_path / "x.safetensors", "unet", state)


@pytest.mark.parametrize("key", ["model", "state_dict", "params"])
def test_weights_under_a_key_of_a_training_checkpoint(tmp_path: Path, key: str) -> None:
    state = tiny_weights("unet")
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-5}]}
    torch.save({key: state, "optimizer": optimizer, "epoch": 3}, tmp_path / "x.pt")
    assert_loads(tmp_path / "x.pt", "unet", state)


# Names of the projections and the norm, by those of today.
ATTENTIONS: dict[str, dict[str, str]] = {
    "diffusers until 0.17": {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    },
    "original": {
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
        "group_norm": "norm",
    },
    "without a number": {"to_out.0": "to_out"},
}


def renamed(state: dict[str, Tensor], attention: str, names: dict[str, str]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        start, place, rest = name.partition(attention)
        module, _, kind = rest.rpartition(".")
        found[f"{start}{place}{names.get(module, module)}.{kind}" if place else name] = tensor
    return found


@pytest.mark.parametrize("names", ATTENTIONS)
@pytest.mark.parametrize("original", [False, True])
def test_names_of_the_vaes_attention(tmp_path: Path, names: str, original: bool) -> None:
    state = tiny_weights("vae")
    file = renamed(state, ATTENTION, ATTENTIONS[names])
    assert file.keys() != state.keys()
    if original:
        recipes = in_dialect("vae", list(state), ORIGINAL)
        plain = {name: recipe.make(state) for name, recipe in recipes.items()}
        back = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
        file = renamed(renamed(plain, "mid.attn_1.", back), "mid.attn_1.", ATTENTIONS[names])
    write_checkpoint(tmp_path / "x.safetensors", file)
    assert_loads(tmp_path / "x.safetensors", "vae", state)


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "biases [C, 1, 1]": lambda t: t[:, None, None] if t.ndim == 1 else t,
    "projections [C, D, 1, 1]": lambda t: t[:, :, None, None] if t.ndim == 2 else t,
    "projections [C, D, 1]": lambda t: t[:, :, None] if t.ndim == 2 else t,
}


@pytest.mark.parametrize("shapes", SHAPES)
def test_odd_shapes_in_a_vae(tmp_path: Path, shapes: str) -> None:
    state = tiny_weights("vae")
    file = {name: SHAPES[shapes](tensor).contiguous() for name, tensor in state.items()}
    assert any(file[name].ndim != tensor.ndim for name, tensor in state.items())
    write_checkpoint(tmp_path / "x.safetensors", file)
    assert_loads(tmp_path / "x.safetensors", "vae", state)


def test_a_vector_of_another_length_is_no_odd_shape(tmp_path: Path) -> None:
    state = tiny_weights("vae")
    state["encoder.conv_in.bias"] = state["encoder.conv_in.bias"][None, None]  # (1, 1, C)
    write_checkpoint(tmp_path / "x.safetensors", state)
    with pytest.raises(Exception, match=r"encoder.conv_in.bias is \[1, 1, 8\] instead of \[8\]"):
        load_weights(empty("vae"), tmp_path / "x.safetensors")


MIDDLES = {"none": None, "a single ResNet": "UNetMidBlock2D"}


@pytest.mark.parametrize("middle", MIDDLES)
def test_unets_with_less_of_a_middle(tmp_path: Path, middle: str) -> None:
    """Their blocks are numbered as those of the whole one."""
    config = replace(TINY.unet, mid_block_type=MIDDLES[middle])
    whole, part = (UNet2DConditionModel(one).state_dict() for one in (TINY.unet, config))
    names = set(in_dialect("unet", list(part), ORIGINAL))
    missing = set(in_dialect("unet", list(whole), ORIGINAL)) - names
    gone = "middle_block." if middle == "none" else ("middle_block.1.", "middle_block.2.")
    assert missing
    assert all(name.removeprefix("model.diffusion_model.").startswith(gone) for name in missing)
    assert find_parts(names).by_component["unet"].origins.keys() == part.keys()


def test_levels_of_other_numbers_of_layers() -> None:
    config = replace(
        TINY.unet,
        block_out_channels=(16, 24, 32),
        cross_attention=(True, False, True),
        attention_heads=(2, 2, 2),
        layers_per_block=(2, 1, 3),
        mid_block_type=None,
    )
    with torch.device("meta"):
        state = UNet2DConditionModel(config).state_dict()
    names = {
        name.removeprefix("model.diffusion_model."): recipe.ours[0]
        for name, recipe in in_dialect("unet", list(state), ORIGINAL).items()
    }
    # 0 is the input; 3 and 5 halve the resolution.
    assert names["input_blocks.2.1.norm.weight"] == "down_blocks.0.attentions.1.norm.weight"
    assert names["input_blocks.5.0.op.weight"] == "down_blocks.1.downsamplers.0.conv.weight"
    assert names["input_blocks.8.1.norm.weight"] == "down_blocks.2.attentions.2.norm.weight"
    assert names["output_blocks.3.2.conv.weight"] == "up_blocks.0.upsamplers.0.conv.weight"
    assert names["output_blocks.5.1.conv.weight"] == "up_blocks.1.upsamplers.0.conv.weight"
    assert names["output_blocks.8.1.norm.weight"] == "up_blocks.2.attentions.2.norm.weight"
    back = find_parts([f"model.diffusion_model.{name}" for name in names]).by_component["unet"]
    assert back.origins.keys() == state.keys()


def test_old_names_are_written_as_before() -> None:
    state = dict(AutoencoderKL(TINY.vae).state_dict())
    names = in_dialect("vae", list(state), ORIGINAL)
    assert "first_stage_model.encoder.mid.attn_1.q.weight" in names
    assert "first_stage_model.encoder.mid.attn_1.norm.weight" in names
    assert not any("to_q" in name or "query" in name for name in names)
