"""Models beside the usual three: ControlNets, tiny autoencoders, UNets with guidance embedding.

How they are recognised, inspected, converted and loaded, in whichever names they come.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import ORIGINAL, write_checkpoint
from sdpy.checkpoints.dialects import in_dialect
from sdpy.models import (
    AutoencoderTiny,
    AutoencoderTinyConfig,
    ControlNetConfig,
    ControlNetModel,
    UNet2DConditionModel,
)
from sdpy.runtime.execution import Execution
from sdpy.zoo.convert import plan_conversion
from sdpy.zoo.find import find_source
from sdpy.zoo.inspect import inspect_weights
from sdpy.zoo.variants import SD15
from support.compare import randomise
from support.tiny import TINY, tiny_session

CONTROLNET = ControlNetConfig(TINY.unet, conditioning_embedding_out_channels=(4, 8))
# The original programs' names are known for the real structure alone.
REAL = ControlNetConfig(
    replace(
        SD15.unet,
        block_out_channels=(16, 16, 24, 24),
        cross_attention_dim=32,
        norm_num_groups=8,
        attention_heads=(2, 2, 2, 2),
    ),
    conditioning_embedding_out_channels=(4, 6, 8, 10),
)


def on_meta(model: type[nn.Module], config: object) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(model(config).state_dict())


def save_zeros(path: Path, state: dict[str, Tensor]) -> Path:
    """Tensors of these shapes that take one number of memory each."""
    write_checkpoint(path, {k: torch.zeros(1).expand(v.shape) for k, v in state.items()})
    return path


def convert(source: Path, target: Path) -> None:
    for _ in plan_conversion(inspect_weights(source), target).run():
        pass


def test_a_tiny_autoencoder_is_inspected(tmp_path: Path) -> None:
    state = on_meta(AutoencoderTiny, AutoencoderTinyConfig())
    (one,) = inspect_weights(save_zeros(tmp_path / "taesd.safetensors", state)).components
    assert (one.name, one.summary, one.problems) == ("vae", "a tiny VAE (TAESD)", {})
    assert (one.config, one.guessed) == (AutoencoderTinyConfig(), False)


def test_a_controlnet_is_inspected_in_all_names(tmp_path: Path) -> None:
    model = ControlNetModel(REAL)
    (one,) = inspect_weights(save_zeros(tmp_path / "a.safetensors", model.state_dict())).components
    assert (one.name, one.summary, one.problems) == ("controlnet", "a ControlNet", {})
    sizes = replace(REAL.unet, attention_heads=(8,) * 4)  # cannot be seen
    assert replace(one.config.unet, attention_heads=(8,) * 4) == sizes
    assert one.config.conditioning_embedding_out_channels == (4, 6, 8, 10)
    recipes = in_dialect("controlnet", model.state_dict(), ORIGINAL)
    original = {name: recipe.make(model.state_dict()) for name, recipe in recipes.items()}
    (two,) = inspect_weights(save_zeros(tmp_path / "b.safetensors", original)).components
    assert (two.name, two.config, two.problems) == ("controlnet", one.config, {})


def test_a_unet_with_guidance_embedding_is_inspected(tmp_path: Path) -> None:
    config = replace(TINY.unet, time_cond_proj_dim=12)
    state = UNet2DConditionModel(config).state_dict()
    (one,) = inspect_weights(save_zeros(tmp_path / "unet.safetensors", state)).components
    assert one.problems == {}
    assert one.config.time_cond_proj_dim == 12
    assert "guidance embedding" in str(one.summary)


@pytest.mark.parametrize("prefix", ["", "control_model."])
def test_a_controlnet_of_the_original_names_is_loaded(tmp_path: Path, prefix: str) -> None:
    model = randomise(ControlNetModel(REAL))
    recipes = in_dialect("controlnet", model.state_dict(), ORIGINAL)
    original = {
        prefix + name.removeprefix("control_model."): recipe.make(model.state_dict())
        for name, recipe in recipes.items()
    }
    path = tmp_path / "control.safetensors"
    write_checkpoint(path, original)
    vae = replace(TINY.vae, block_out_channels=(8, 8, 8, 8))
    variant = TINY.with_configs(unet=REAL.unet, vae=vae)
    session = tiny_session(tmp_path, variant, execution=Execution(fast_kernels=False))
    session.headers.check_companion(path)
    with session.models().controlnet(path) as loaded:
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_tiny_autoencoder_beside_a_whole_model(tmp_path: Path, tiny_data: Path) -> None:
    """``--model PATH --vae-weights taesd``: the rest is recognised as without it."""
    taesd = tmp_path / "taesd.safetensors"
    state = on_meta(AutoencoderTiny, AutoencoderTinyConfig())
    save_zeros(taesd, state)
    found = find_source(str(tiny_data), tiny_data, {"vae": taesd})
    assert found.files.weights["vae"] == taesd
    assert found.variant.tiny_vae == AutoencoderTinyConfig()
    assert found.variant.vae == SD15.vae


def test_a_unet_with_guidance_embedding_in_a_model(tmp_path: Path, tiny_data: Path) -> None:
    config = replace(TINY.unet, time_cond_proj_dim=12)
    unet = tmp_path / "unet.safetensors"
    write_checkpoint(unet, randomise(UNet2DConditionModel(config)).state_dict())
    found = find_source(str(tiny_data), tiny_data, {"unet": unet})
    assert found.variant.unet.time_cond_proj_dim == 12
    session = tiny_session(tiny_data)
    assert session.source.config("unet").time_cond_proj_dim is None
    session = tiny_session(tiny_data, unet=str(unet))
    assert session.source.config("unet").time_cond_proj_dim == 12


@pytest.mark.parametrize("kind", ["controlnet", "tiny vae", "unet"])
def test_converted_ones_are_loaded_by_diffusers(tmp_path: Path, kind: str) -> None:
    model, theirs = {
        "controlnet": (ControlNetModel(CONTROLNET), diffusers.ControlNetModel),
        "tiny vae": (AutoencoderTiny(AutoencoderTinyConfig()), diffusers.AutoencoderTiny),
        "unet": (
            UNet2DConditionModel(replace(TINY.unet, time_cond_proj_dim=12)),
            diffusers.UNet2DConditionModel,
        ),
    }[kind]
    weights = randomise(model).state_dict()
    write_checkpoint(tmp_path / "in.ot", weights)
    convert(tmp_path / "in.ot", tmp_path / "folder")
    loaded = theirs.from_pretrained(tmp_path / "folder").state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
