"""The networks of Stable Diffusion XL beside transformers' and diffusers', and its folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdpy.checkpoints import load_weights
from sdpy.errors import WeightsError
from sdpy.models import CLIPTextModel, CLIPTextModelWithProjection
from sdpy.zoo.classes import make_model
from sdpy.zoo.find import find_source
from sdpy.zoo.variants import SDXL, SDXL_INPAINT, SDXL_REFINER, SDXL_TURBO, ModelVariant
from support.compare import MODEL_TOLERANCE, randomise, relative_error
from support.references import load_text_encoder, reference_text_encoder, reference_text_encoder_2
from support.tiny_xl import TINY_REFINER, TINY_XL, tiny_xl_model, write_tiny_xl

START, END = TINY_XL.text_encoder.vocab_size - 2, TINY_XL.text_encoder.vocab_size - 1
IDS = torch.full((2, 77), END)
IDS[:, 0] = START
IDS[0, 1:40] = torch.arange(39)
IDS[1, 3:] = 0  # as the second tokenizer fills up


@pytest.mark.parametrize("skip", [1, 2, 3])
@torch.no_grad()
def test_states_before_the_last_and_pooled_embedding(skip: int) -> None:
    """``hidden_states[-1 - skip]`` of transformers, and ``text_embeds`` whatever is skipped."""
    config = TINY_XL.configs["text_encoder_2"]
    ours = randomise(CLIPTextModelWithProjection(config))
    theirs = reference_text_encoder_2(config)
    theirs.load_state_dict(ours.state_dict())
    states, pooled = ours(IDS, skip_layers=skip, final_norm=False)
    expected = theirs(IDS, output_hidden_states=True)
    assert relative_error(states, expected.hidden_states[-1 - skip]) <= MODEL_TOLERANCE
    assert relative_error(pooled, expected.text_embeds) <= MODEL_TOLERANCE
    last, again = ours(IDS)
    assert relative_error(last, expected.last_hidden_state) <= MODEL_TOLERANCE
    assert relative_error(again, expected.text_embeds) <= MODEL_TOLERANCE


@torch.no_grad()
def test_states_of_the_first_text_encoder_without_the_final_norm() -> None:
    config = TINY_XL.text_encoder
    ours, theirs = randomise(CLIPTextModel(config)), reference_text_encoder(config)
    load_text_encoder(theirs, ours.state_dict())
    expected = theirs(IDS, output_hidden_states=True).hidden_states[-2]
    assert relative_error(ours(IDS, skip_layers=1, final_norm=False), expected) <= MODEL_TOLERANCE


def test_a_projection_needs_its_width() -> None:
    with pytest.raises(ValueError, match="needs projection_dim"):
        CLIPTextModelWithProjection(TINY_XL.text_encoder)
    with pytest.raises(ValueError, match="cannot skip 4 of 4 layers"):
        CLIPTextModelWithProjection(TINY_XL.configs["text_encoder_2"])(IDS, skip_layers=4)


@pytest.mark.parametrize(
    ("component", "config", "tensors", "numbers"),
    [
        ("text_encoder_2", SDXL.configs["text_encoder_2"], 517, 694_659_840),
        ("unet", SDXL.unet, 1680, 2_567_463_684),
        ("unet", SDXL_REFINER.unet, 1220, 2_259_526_660),
    ],
)
def test_the_real_sizes(component: str, config: object, tensors: int, numbers: int) -> None:
    made = make_model(component, config).state_dict()
    assert (len(made), sum(tensor.numel() for tensor in made.values())) == (tensors, numbers)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that diffusers wrote."""
    root = tmp_path_factory.mktemp("xl")
    inpaint = TINY_XL.with_configs(unet=replace(TINY_XL.unet, in_channels=9))
    variants = {"sdxl": TINY_XL, "sdxl-inpaint": inpaint, "sdxl-refiner": TINY_REFINER}
    return {name: write_tiny_xl(root / name, variant) for name, variant in variants.items()}


@pytest.mark.parametrize("family", [SDXL, SDXL_INPAINT, SDXL_REFINER], ids=lambda one: one.name)
def test_a_folder_of_diffusers(
    folders: dict[str, Path], tmp_path: Path, family: ModelVariant
) -> None:
    found = find_source(str(folders[family.name]), tmp_path)
    assert found.variant.name == family.name
    assert not found.assumptions
    tiny = TINY_REFINER if family is SDXL_REFINER else TINY_XL
    for name, config in found.variant.configs.items():
        if name != "unet":
            assert config == tiny.configs[name]
        model = found.make(name)
        load_weights(model, found.checkpoint(name), component=name)
    assert found.variant.configs.keys() == family.configs.keys()
    assert found.variant.unet == replace(tiny.unet, in_channels=family.unet.in_channels)
    assert dict(found.variant.pad_ids).get("text_encoder_2") == 0
    assert dict(found.variant.pad_ids).get("text_encoder") is None
    zeros = found.variant.force_zeros_for_empty_prompt
    assert zeros == family.force_zeros_for_empty_prompt
    assert (found.variant.scheduler, found.variant.timestep_spacing) == ("euler", "leading")
    if family is SDXL:
        state, expected = model.state_dict(), tiny_xl_model(TINY_XL, "vae").state_dict()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_the_folder_says_how_it_samples(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in folders["sdxl"].iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "scheduler").unlink()
    (folder / "scheduler").mkdir()
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(
        '{"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}'
    )
    turbo = find_source(str(folder), tmp_path).variant
    assert (turbo.name, turbo.steps, turbo.guidance_scale) == (SDXL_TURBO.name, 4, 1.0)
    assert (turbo.scheduler, turbo.timestep_spacing) == ("euler-a", "trailing")
    config.write_text(
        '{"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": true,'
        ' "timestep_spacing": "leading"}'
    )
    assert find_source(str(folder), tmp_path).variant.scheduler == "dpm++-2m-karras"
    config.write_text('{"_class_name": "Another"}')
    assert find_source(str(folder), tmp_path).variant.scheduler == "euler"


def test_what_is_missing_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in folders["sdxl"].iterdir():
        if file.name != "text_encoder_2":
            (folder / file.name).symlink_to(file)
    with pytest.raises(WeightsError, match="no second text encoder; .* with --clip-2-weights"):
        find_source(str(folder), tmp_path)
