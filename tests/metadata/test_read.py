"""Reading how images of several programs were made."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from sdpy.errors import ImageError
from sdpy.metadata.read import can_read_others, read_metadata

# The shape of what ComfyUI writes for its first example, shortened.
COMFYUI = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5,
            "steps": 20,
            "cfg": 8,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 512, "height": 512, "batch_size": 1},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a bottle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text", "clip": ["4", 1]}},
}
WORKFLOW = {
    "links": [
        [1, 4, 0, 3, 0, "MODEL"],
        [2, 5, 0, 3, 3, "LATENT"],
        [3, 4, 1, 6, 0, "CLIP"],
        [4, 6, 0, 3, 1, "CONDITIONING"],
        [5, 4, 1, 7, 0, "CLIP"],
        [6, 7, 0, 3, 2, "CONDITIONING"],
    ]
}
INVOKEAI = {
    "app_version": "3.4.0",
    "generation_mode": "txt2img",
    "positive_prompt": "a fox",
    "negative_prompt": "fog",
    "width": 512,
    "height": 512,
    "seed": 9,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "steps": 30,
    "scheduler": "euler",
    "model": {"model_name": "sd15", "base_model": "sd-1", "model_type": "main"},
}


def write(folder: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(folder / "a.png", pnginfo=info)
    return folder / "a.png"


def test_comfyuis(tmp_path: Path) -> None:
    found = read_metadata(
        write(tmp_path, prompt=json.dumps(COMFYUI), workflow=json.dumps(WORKFLOW))
    )
    assert found is not None and found.parameters is not None
    assert found.program == "ComfyUI"
    assert (found.parameters.prompt, found.parameters.negative_prompt) == ("a bottle", "text")
    assert found.parameters.facts["Sampler"] == "euler"
    assert (found.parameters.facts["seed"], found.parameters.facts["steps"]) == ("5", "20")
    assert found.parameters.facts["Model"] == "v1-5.safetensors"
    json.dumps(found.as_json())


def test_invokeais(tmp_path: Path) -> None:
    found = read_metadata(write(tmp_path, invokeai_metadata=json.dumps(INVOKEAI)))
    assert found is not None and found.parameters is not None
    assert found.program == "InvokeAI"
    assert (found.parameters.prompt, found.parameters.negative_prompt) == ("a fox", "fog")
    assert found.parameters.facts["seed"] == "9"


@pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '{"1": 3}', "[" * 50_000])
@pytest.mark.parametrize("key", ["prompt", "invokeai_metadata", "sd-metadata"])
def test_texts_that_make_no_sense_are_told_by_their_keys(
    tmp_path: Path, key: str, text: str
) -> None:
    found = read_metadata(write(tmp_path, **{key: text}))
    assert found is not None
    assert found.program in ("ComfyUI", "InvokeAI")
    assert found.texts[key] == text


def test_without_the_package_the_program_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sd_parsers", None)
    assert not can_read_others()
    found = read_metadata(write(tmp_path, prompt=json.dumps(COMFYUI), workflow="{}"))
    assert found is not None
    assert (found.program, found.parameters) == ("ComfyUI", None)


def test_a_record_that_is_none_leaves_the_other_text(tmp_path: Path) -> None:
    text = "a cat\nSteps: 3, Sampler: Euler a, Seed: 1, Version: v1.10.1"
    found = read_metadata(write(tmp_path, parameters=text, sdpy="{}"))
    assert found is not None and found.parameters is not None
    assert (found.record, found.parameters.facts["Seed"]) == (None, "1")
    assert found.program.startswith("A1111")


def test_files_that_say_nothing(tmp_path: Path) -> None:
    assert read_metadata(write(tmp_path)) is None
    assert read_metadata(write(tmp_path, Comment="hello")) is None
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    assert read_metadata(tmp_path / "a.jpg") is None
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="b.png"):
        read_metadata(tmp_path / "b.png")
