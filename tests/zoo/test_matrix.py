"""Every format and layout times every component of Stable Diffusion XL and its refiner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import FORMATS, read_checkpoint, write_checkpoint
from sdpy.components import COMPONENTS
from sdpy.models import (
    ControlNetConfig,
    ControlNetModel,
    ControlNetUnionConfig,
    ControlNetUnionModel,
    T2IAdapter,
    T2IAdapterConfig,
)
from sdpy.zoo.convert import plan_conversion
from sdpy.zoo.find import find_source
from sdpy.zoo.inspect import inspect_weights
from sdpy.zoo.variants import SDXL, SDXL_REFINER, VARIANTS, ModelVariant
from support.compare import randomise
from support.tiny import MERGES
from support.tiny_xl import TINY_REFINER, TINY_XL, tiny_xl_model

MODELS = {"sdxl": TINY_XL, "sdxl-refiner": TINY_REFINER}
SUFFIXES = tuple(suffix for form in FORMATS.values() for suffix in form.suffixes)
PARTS = [(model, part) for model, variant in MODELS.items() for part in variant.configs]


@pytest.fixture(autouse=True)
def tiny_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variant in MODELS.items():
        monkeypatch.setitem(VARIANTS, name, variant)


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, dict[str, Tensor]]]:
    return {
        model: {name: tiny_xl_model(variant, name).state_dict() for name in variant.configs}
        for model, variant in MODELS.items()
    }


def convert(source: Path, target: Path, **options: Any) -> Path:
    for _ in plan_conversion(inspect_weights(source), target, **options).run():
        pass
    return target


def assert_same(weights: Any, state: dict[str, Tensor]) -> None:
    """The numbers of a component, to the last bit."""
    assert set(weights.part.origins) == set(state)
    for name, tensor in state.items():
        got = weights.tensor(name, weights.checkpoint.tensors)
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(got, tensor), name


@pytest.mark.parametrize(("model", "part"), PARTS)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_component_through_every_format_and_back(
    tmp_path: Path, states: Any, model: str, part: str, suffix: str, layout: str
) -> None:
    state = states[model][part]
    write_checkpoint(tmp_path / "in.safetensors", state)
    there = convert(tmp_path / "in.safetensors", tmp_path / f"there{suffix}", layout=layout)
    seen = inspect_weights(there)
    assert [one.name for one in seen.components] == [part]
    assert not seen.components[0].problems
    assert seen.components[0].config == MODELS[model].configs[part]
    assert_same(seen.components[0].weights, state)
    back = convert(there, tmp_path / "back.safetensors")
    assert back.read_bytes() == (tmp_path / "in.safetensors").read_bytes()


SIZES = {"unet": TINY_XL.unet, "conditioning_embedding_out_channels": (4, 8)}
COMPANIONS: dict[str, tuple[str, Any]] = {
    "ControlNet": ("controlnet", lambda: ControlNetModel(ControlNetConfig(**SIZES))),
    "ControlNet-Union": (
        "controlnet",
        lambda: ControlNetUnionModel(
            ControlNetUnionConfig(
                **SIZES, num_trans_channel=16, num_trans_head=2, num_proj_channel=16
            )
        ),
    ),
    "T2I-Adapter": (
        "t2i_adapter",
        lambda: T2IAdapter(
            T2IAdapterConfig(
                channels=(8, 12, 16, 16), downscale_factor=16, adapter_type="full_adapter_xl"
            )
        ),
    ),
}


@pytest.mark.parametrize("kind", COMPANIONS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_goes_beside_a_model_through_every_format_and_back(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    part, make = COMPANIONS[kind]
    state = randomise(make()).state_dict()
    write_checkpoint(tmp_path / "in.safetensors", state)
    there = convert(tmp_path / "in.safetensors", tmp_path / f"there{suffix}")
    (seen,) = inspect_weights(there).components
    assert (seen.name, seen.problems) == (part, {})
    assert kind in str(seen.summary)
    assert_same(seen.weights, state)
    back = convert(there, tmp_path / "back.safetensors")
    assert back.read_bytes() == (tmp_path / "in.safetensors").read_bytes()


def test_the_matrix_has_every_component() -> None:
    names = {part for _, part in PARTS} | {part for part, _ in COMPANIONS.values()}
    assert names == set(COMPONENTS)


def vocabulary(folder: Path) -> Path:
    path = folder / "bpe_simple_vocab_16e6.txt"
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def components(folder: Path, states: dict[str, dict[str, Tensor]], variant: ModelVariant) -> Path:
    """A folder of component files."""
    folder.mkdir()
    for name, state in states.items():
        write_checkpoint(folder / variant.files.of(name)[0], state)
    return folder


LAYOUTS = ("folder", "one.safetensors", "one.ckpt", "one.npz", "ot")


def in_layout(source: Path, layout: str, words: Path) -> Path:
    target = source.parent / f"{source.stem}-{layout}"
    options = {"layout": "ot"} if layout == "ot" else {}
    return convert(source, target, vocabulary=words, **options)


@pytest.mark.parametrize(
    ("model", "first", "second"),
    [
        *(("sdxl", first, "folder") for first in LAYOUTS),
        *(("sdxl", first, "one.safetensors") for first in LAYOUTS),
        *(("sdxl-refiner", first, LAYOUTS[i - 1]) for i, first in enumerate(LAYOUTS)),
    ],
)
def test_whole_models_into_every_layout_and_on(
    tmp_path: Path, states: Any, model: str, first: str, second: str
) -> None:
    words, variant = vocabulary(tmp_path), MODELS[model]
    source = components(tmp_path / "in", states[model], variant)
    there = in_layout(source, first, words)
    again = in_layout(there, second, words)
    for path in (there, again):
        found = find_source(str(path), tmp_path)
        sizes = {"sample_size": variant.sample_size, "max_pixels": variant.max_pixels}
        assert replace(found.variant, **sizes) == variant
        assert found.assumptions == ()
        seen = inspect_weights(path)
        assert seen.variant is not None and seen.variant.name == model
        for one in seen.components:
            assert_same(one.weights, states[model][str(one.name)])


def test_what_diffusers_makes_of_our_folders(tmp_path: Path, states: Any) -> None:
    words = vocabulary(tmp_path)
    kinds = {
        "sdxl": diffusers.StableDiffusionXLPipeline,
        "sdxl-refiner": diffusers.StableDiffusionXLImg2ImgPipeline,
    }
    for model, kind in kinds.items():
        source = components(tmp_path / model, states[model], MODELS[model])
        folder = in_layout(source, "folder", words)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
        assert type(pipeline) is kind
        assert type(pipeline.scheduler) is diffusers.EulerDiscreteScheduler
        assert pipeline.scheduler.config.timestep_spacing == "leading"
        assert pipeline.config.force_zeros_for_empty_prompt is (model == "sdxl")
        assert pipeline.tokenizer_2.pad_token == "!"
        assert (pipeline.text_encoder is None) == (model == "sdxl-refiner")
        for name in MODELS[model].configs:
            theirs = getattr(pipeline, name).state_dict()
            for one, tensor in states[model][name].items():
                assert torch.equal(
                    theirs.get(one, theirs.get(one.removeprefix("text_model."))), tensor
                )
    index = json.loads((tmp_path / "sdxl-folder" / "model_index.json").read_text())
    assert index["tokenizer_2"] == ["transformers", "CLIPTokenizer"]


def test_a_folder_of_diffusers_into_a_single_file_that_diffusers_reads(
    tmp_path: Path, states: Any
) -> None:
    words = vocabulary(tmp_path)
    source = components(tmp_path / "in", states["sdxl"], TINY_XL)
    folder, single = in_layout(source, "folder", words), in_layout(source, "one.safetensors", words)
    from diffusers.loaders import single_file_utils as theirs

    file = dict(read_checkpoint(single).tensors)
    options = {"layers_per_block": 1, "addition_embed_type": "text_time"}
    got = theirs.convert_ldm_unet_checkpoint(dict(file), options)
    for name, tensor in states["sdxl"]["unet"].items():
        assert torch.equal(got[name], tensor)
    assert inspect_weights(folder).variant == inspect_weights(single).variant
    assert {SDXL.name, SDXL_REFINER.name} == set(MODELS)
