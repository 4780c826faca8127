"""What the metadata of an image says: all that changed it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdpy
from sdpy.checkpoints import write_checkpoint
from sdpy.metadata.parameters import parse_parameters
from sdpy.metadata.record import ImageRecord
from sdpy.options import given, options_of, taken
from sdpy.pipelines.inputs import ImageRequest
from sdpy.pipelines.recording import hash_of_pixels
from sdpy.pipelines.request import GenerationOptions
from sdpy.pipelines.values import shown_path
from sdpy.runtime.options import ModelOptions
from sdpy.schedulers.registry import SCHEDULERS, SIGMA_LABELS, SIGMAS, find_scheduler
from sdpy.zoo.variants import VARIANTS
from support.tiny import TINY, TINY_INPAINT

FAST: dict[str, Any] = {"steps": 2}


@pytest.fixture
def tiny(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(VARIANTS, "sd15", TINY)
    monkeypatch.setitem(VARIANTS, "sd15-inpaint", TINY_INPAINT)
    return tiny_data


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def noise() -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(values)


def write_extras(folder: Path) -> tuple[Path, Path]:
    """A LoRA and an embedding."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = folder / "ink, Seed: 5.safetensors"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 16)}
    write_checkpoint(lora, {**tensors, f"{name}.lora_up.weight": torch.eye(16)[:, :2]})
    write_checkpoint(folder / "fog.safetensors", {"emb_params": torch.ones(1, 32)})
    return lora, folder / "fog.safetensors"


def test_a_record_has_all_files_and_options(tiny: Path, tmp_path: Path) -> None:
    lora, fog = write_extras(tmp_path)
    noise().save(tmp_path / "photo.png")
    with sdpy.load("sd15", data=tiny, threads=1) as model:
        image = model.img2img(
            tmp_path / "photo.png", "cat", lora=f"{lora}:0.123456789", embedding=fog, **FAST
        )
    record = ImageRecord.from_json(image.record)
    assert (record.task, record.prompt, record.size) == ("img2img", "cat", (32, 32))
    assert {(file.role, file.sha256) for file in record.files} == {
        ("text_encoder", sha256(tiny / "pytorch_model.ot")),
        ("unet", sha256(tiny / "unet.ot")),
        ("vae", sha256(tiny / "vae.ot")),
        ("vocabulary", sha256(tiny / "bpe_simple_vocab_16e6.txt")),
        ("lora", sha256(lora)),
        ("embedding", sha256(fog)),
        ("image", sha256(tmp_path / "photo.png")),
    }
    assert all("/" not in file.name for file in record.files)
    names = {
        one.name
        for group in (GenerationOptions, ModelOptions)
        for _, one in options_of(group)
        if one.flags
    }
    assert set(record.options) == (names | {"strength", "image"}) - {"num-samples", "batch-size"}
    assert record.options["strength"] == 0.8
    assert record.options["lora"] == [f"{lora}:0.123456789"]
    assert record.options["threads"] == 1
    assert (record.options["eta"], record.options["timestep-spacing"]) == (0, "original")
    assert record.environment["torch"] == torch.__version__
    facts = parse_parameters(image.parameters).facts
    assert facts["Seed"] == "32"
    assert facts["LoRA 0"] == "ink, Seed: 5.safetensors:0.123456789"
    assert facts["TI hashes"] == f"fog: {sha256(fog)[:10]}"


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"strength": 0.5}, {"strength": 0.9}),
        ({"eta": 0.0}, {"eta": 1.0}),
        ({"timestep_spacing": "leading"}, {"timestep_spacing": "linspace"}),
        ({"scheduler": "euler"}, {"scheduler": "euler", "sigmas": "karras"}),
        ({}, {"guidance_rescale": 0.7}),
        ({}, {"deepcache": 2}),
        ({}, {"negative_prompt": "dog"}),
        ({"guidance_scale": 7.5}, {"guidance_scale": 7.5000001}),
    ],
)
def test_images_that_differ_have_texts_that_differ(
    tiny: Path, options: dict[str, Any], other: dict[str, Any]
) -> None:
    with sdpy.load("sd15", data=tiny) as model:
        first = model.img2img(noise(), "cat", **{**FAST, **options})
        second = model.img2img(noise(), "cat", **{**FAST, **other})
    assert first.parameters != second.parameters
    assert first.record != second.record


@pytest.mark.parametrize("options", [{"prediction_type": "sample"}, {"dtype": "bf16"}])
def test_so_do_those_of_models_that_differ(tiny: Path, options: dict[str, Any]) -> None:
    with sdpy.load("sd15", data=tiny) as model, sdpy.load("sd15", data=tiny, **options) as other:
        assert model.generate("cat", **FAST).parameters != other.generate("cat", **FAST).parameters


def test_files_of_components_are_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "my vae.ot").write_bytes((tiny / "vae.ot").read_bytes())
    weights = {"vae": tmp_path / "my vae.ot"}
    with sdpy.load("sd15", data=tiny, weights=weights) as model:
        image = model.generate("cat", **FAST)
    facts = parse_parameters(image.parameters).facts
    assert facts["VAE"] == "my vae"
    assert facts["VAE hash"] == sha256(tiny / "vae.ot")[:10]
    record = ImageRecord.from_json(image.record)
    assert record.options["vae-weights"] == str(tmp_path / "my vae.ot")


def test_an_image_among_others_has_the_texts_that_it_has_alone(tiny: Path) -> None:
    with sdpy.load("sd15", data=tiny) as model:
        several = model.generate("cat", num_samples=3, seed=5, scheduler="Euler a", **FAST)
        alone = model.generate("cat", seed=7, scheduler="euler-a", **FAST)
    assert (several[2].parameters, several[2].record) == (alone.parameters, alone.record)


def test_an_image_that_is_no_file_is_known_by_its_pixels(tiny: Path) -> None:
    with sdpy.load("sd15", data=tiny) as model:
        record = ImageRecord.from_json(model.img2img(noise(), "cat", **FAST).record)
    (file,) = record.files_of("image")
    assert (file.name, file.sha256) == ("", hash_of_pixels(noise()))
    assert hash_of_pixels(noise()) != hash_of_pixels(noise().rotate(90))


def test_without_metadata_nothing_is_hashed_or_said(tiny: Path) -> None:
    with sdpy.load("sd15", data=tiny) as model:
        model.metadata = False
        image = model.generate("cat", **FAST)
        assert model.session.hashes._found == {}
    assert (image.parameters, image.record, image.info) == ("", "", {})


def test_the_home_folder_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert shown_path("/home/me/models/x.ot") == "~/models/x.ot"
    assert shown_path("/home/mean/x.ot") == "/home/mean/x.ot"
    assert shown_path("models/x.ot") == "models/x.ot"


def test_each_option_is_read_back_from_what_is_written(tmp_path: Path) -> None:
    lora, fog = write_extras(tmp_path)
    request = ImageRequest(
        "cat",
        **taken(
            GenerationOptions,
            {
                "lora": [f"{lora}:-0.1", str(lora)],
                "embedding": [f"<fog>={fog}", str(fog)],
                "guidance-interval": "0.1,0.30000000000000004",
                "batch_size": "4",
                "n-steps": 7,
                "guidance-scale": 1e-3,
                "deepcache": 2,
            },
        ),
    )
    assert request.steps == 7
    written = json.loads(json.dumps(given(request)))
    again = taken(ImageRequest, written)
    assert given(ImageRequest("cat", **again)) == written
    plain = {"embedding": ()}
    assert replace(ImageRequest("cat", **again), **plain) == replace(request, **plain)


def test_labels_are_names_of_samplers() -> None:
    for name, row in SCHEDULERS.items():
        assert find_scheduler(row.label) == (name, None)
    assert set(SIGMA_LABELS) == set(SIGMAS)


def test_options_of_models_are_read_back_likewise() -> None:
    options = ModelOptions(fast_kernels=False, cpu=("vae",), model="demo", threads=2, offload=True)
    written = json.loads(json.dumps(given(replace(options, data=None))))  # type: ignore[arg-type]
    assert written["fast-kernels"] is False
    assert ModelOptions(**{**taken(ModelOptions, written), "data": Path("data")}) == options
