"""Stable Diffusion XL and distilled UNets in the original's names, beside diffusers' conversion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from torch import Tensor

from sdpy.checkpoints import load_weights, read_checkpoint, write_checkpoint
from sdpy.checkpoints.dialects import ORIGINAL, SINGLE_FILES, find_parts, in_dialect
from sdpy.checkpoints.ema import name_with_dots
from sdpy.models import UNet2DConditionConfig, UNet2DConditionModel
from sdpy.zoo.classes import make_model
from sdpy.zoo.variants import SDXL, SDXL_REFINER
from support.compare import MODEL_TOLERANCE, relative_error
from support.references import reference_text_encoder_2
from support.tiny_xl import TINY_REFINER, TINY_XL, tiny_xl_model

BK_SDM = UNet2DConditionConfig(layers_per_block=1)
UNETS: dict[str, UNet2DConditionConfig] = {
    "XL": SDXL.unet,
    "refiner": SDXL_REFINER.unet,
    "SSD-1B": replace(
        SDXL.unet,
        transformer_layers_per_block=(1, 2, 4),
        reverse_transformer_layers_per_block=((4, 4, 10), (2, 1, 1), 1),
        mid_block_type="UNetMidBlock2D",
    ),
    "KOALA": replace(
        SDXL.unet,
        layers_per_block=1,
        transformer_layers_per_block=(1, 2, 5),
        mid_block_type=None,
    ),
    "BK-SDM base": BK_SDM,
    "BK-SDM small": replace(BK_SDM, mid_block_type=None),
    "BK-SDM tiny": replace(
        BK_SDM,
        block_out_channels=(320, 640, 1280),
        cross_attention=(True, True, True),
        attention_heads=(8, 8, 8),
        mid_block_type=None,
    ),
}


@pytest.mark.parametrize("name", UNETS)
def test_unet_names_are_those_that_diffusers_knows(name: str) -> None:
    config = UNETS[name]
    with torch.device("meta"):
        state = UNet2DConditionModel(config).state_dict()
    recipes = in_dialect("unet", list(state), ORIGINAL)
    file = {theirs: recipe.make(state) for theirs, recipe in recipes.items()}
    options = {
        "layers_per_block": config.layers_per_block,
        "class_embed_type": None,
        "addition_embed_type": config.addition_embed_type,
    }
    got = theirs.convert_ldm_unet_checkpoint(dict(file), options)
    assert got.keys() == state.keys()
    assert all(got[name] is state[name] for name in state)
    assert find_parts(file).by_component["unet"].origins.keys() == state.keys()
    for one in file:
        assert name_with_dots("model_ema." + one.removeprefix("model.").replace(".", "")) == one


def open_clip_file(prefix: str) -> dict[str, Tensor]:
    """A second text encoder as OpenCLIP names it, made by hand from its documentation."""
    config = TINY_XL.configs["text_encoder_2"]
    D, generator = config.hidden_size, torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    file = {
        "token_embedding.weight": random(config.vocab_size, D),
        "positional_embedding": random(config.max_position_embeddings, D),
        "ln_final.weight": random(D),
        "ln_final.bias": random(D),
        "text_projection": random(D, D),
        "logit_scale": random(),
    }
    for i in range(config.num_hidden_layers):
        block = f"transformer.resblocks.{i}"
        sizes = {"attn.out_proj": (D, D), "mlp.c_fc": (2 * D, D), "mlp.c_proj": (D, 2 * D)}
        for name, size in {**sizes, "ln_1": (D,), "ln_2": (D,)}.items():
            file[f"{block}.{name}.weight"] = random(*size)
            file[f"{block}.{name}.bias"] = random(size[0])
        file[f"{block}.attn.in_proj_weight"] = random(3 * D, D)
        file[f"{block}.attn.in_proj_bias"] = random(3 * D)
    return {prefix + name: tensor for name, tensor in file.items()}


@pytest.mark.parametrize(
    "prefix", ["conditioner.embedders.1.model.", "conditioner.embedders.0.model.", ""]
)
@torch.no_grad()
def test_the_second_text_encoder_computes_as_diffusers_reads_it(
    tmp_path: Path, prefix: str
) -> None:
    file = open_clip_file(prefix)
    write_checkpoint(tmp_path / "x.safetensors", file)
    config = TINY_XL.configs["text_encoder_2"]
    ours = make_model("text_encoder_2", config)
    load_weights(ours, tmp_path / "x.safetensors", component="text_encoder_2")
    reference = reference_text_encoder_2(config)
    converted = theirs.convert_open_clip_checkpoint(reference, dict(file), prefix=prefix)
    reference.load_state_dict(converted, strict=True)
    ids = torch.randint(0, config.vocab_size, (2, 77), generator=torch.Generator().manual_seed(0))
    ids[:, 50] = config.vocab_size - 1
    states, pooled = ours(ids, skip_layers=1, final_norm=False)
    expected = reference(ids, output_hidden_states=True)
    assert relative_error(states, expected.hidden_states[-2]) <= MODEL_TOLERANCE
    assert relative_error(pooled, expected.text_embeds) <= MODEL_TOLERANCE


def test_a_projection_that_is_not_transposed(tmp_path: Path) -> None:
    """Under transformers' name it is as transformers has it."""
    prefix = "conditioner.embedders.1.model."
    file = open_clip_file(prefix)
    file[f"{prefix}text_projection.weight"] = file.pop(f"{prefix}text_projection").T.contiguous()
    weights = {}
    for name, tensors in (("old", open_clip_file(prefix)), ("new", file)):
        write_checkpoint(tmp_path / f"{name}.safetensors", tensors)
        model = make_model("text_encoder_2", TINY_XL.configs["text_encoder_2"])
        load_weights(model, tmp_path / f"{name}.safetensors", component="text_encoder_2")
        weights[name] = model.text_projection.weight
    assert torch.equal(weights["old"], weights["new"])


def test_of_a_whole_open_clip_model_the_text_encoder_is_taken(tmp_path: Path) -> None:
    file = open_clip_file("") | {"visual.conv1.weight": torch.ones(3, 3)}
    write_checkpoint(tmp_path / "x.safetensors", file)
    load_weights(
        make_model("text_encoder_2", TINY_XL.configs["text_encoder_2"]),
        tmp_path / "x.safetensors",
        component="text_encoder_2",
    )


FAMILIES = {"sdxl": TINY_XL, "sdxl-refiner": TINY_REFINER}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_every_component_of_a_single_file_loads(tmp_path: Path, family: str, suffix: str) -> None:
    variant = FAMILIES[family]
    states = {name: tiny_xl_model(variant, name).state_dict() for name in variant.configs}
    file: dict[str, Tensor] = {}
    for name, state in states.items():
        recipes = in_dialect(name, list(state), ORIGINAL, family=family)
        file |= {theirs: recipe.make(state) for theirs, recipe in recipes.items()}
    extras = {"denoiser.sigmas": torch.ones(3), "v_pred": torch.empty(0)}
    write_checkpoint(tmp_path / f"x{suffix}", {**file, **extras})
    found = find_parts(read_checkpoint(tmp_path / f"x{suffix}").outline)
    assert found.by_component.keys() == states.keys()
    assert found.unexpected == ()
    for name, state in states.items():
        model = make_model(name, variant.configs[name])
        load_weights(model, tmp_path / f"x{suffix}", component=name)
        loaded: dict[str, Any] = model.state_dict()
        assert all(torch.equal(loaded[one], tensor) for one, tensor in state.items())


def test_the_single_files_have_the_names_of_the_published_ones() -> None:
    """By which diffusers tells base and refiner."""
    for variant, family, kind in (
        (SDXL, "sdxl", "xl_base"),
        (SDXL_REFINER, "sdxl-refiner", "xl_refiner"),
    ):
        names: dict[str, Tensor] = {}
        for name in variant.configs:
            state = make_model(name, variant.configs[name]).state_dict()
            recipes = in_dialect(name, list(state), ORIGINAL, family=family)
            names |= {theirs: recipe.make(state) for theirs, recipe in recipes.items()}
        assert theirs.infer_diffusers_model_type(names) == kind
    assert SINGLE_FILES.keys() == {"sd1", "sd2", "sdxl", "sdxl-refiner"}
