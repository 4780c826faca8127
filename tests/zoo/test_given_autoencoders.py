"""An autoencoder that the user gives: what is known of it beside its shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdpy.checkpoints import write_checkpoint
from sdpy.runtime.execution import Execution
from sdpy.runtime.session import Session
from sdpy.zoo.find import find_source
from sdpy.zoo.source import ModelSource
from sdpy.zoo.variants import VARIANTS
from support.tiny import placed, write_tiny
from support.tiny_xl import TINY_XL, tiny_xl_model, write_tiny_xl

CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a tiny Stable Diffusion XL in a folder, and another file by file."""
    data = write_tiny(tmp_path_factory.mktemp("xl") / "data")
    write_tiny_xl(data / "sdxl-turbo")
    for name in TINY_XL.configs:
        state = tiny_xl_model(TINY_XL, name).state_dict()
        write_checkpoint(data / TINY_XL.files.of(name)[1], state)
    return data


@pytest.fixture(autouse=True)
def tiny_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "sdxl", TINY_XL)


def vae_file(folder: Path, name: str = "vae.safetensors", **told: object) -> Path:
    folder.mkdir()
    write_checkpoint(folder / name, tiny_xl_model(TINY_XL, "vae").state_dict())
    if told:
        config = {"_class_name": "AutoencoderKL", "norm_num_groups": 4, **told}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / name


def dtype_on_gpu(source: ModelSource) -> torch.dtype:
    """In what the autoencoder computes from the start, with ``--dtype fp16``."""
    placement = placed(CUDA, CUDA, CUDA)
    session = Session(source, placement, Execution(dtype=torch.float16))
    return session.models().vae_dtype


@pytest.mark.parametrize("model", ["sdxl", "sdxl-turbo"])
@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize(
    ("told", "dtype"),
    [
        ({"force_upcast": False}, torch.float16),
        ({"force_upcast": True}, torch.float32),
        ({"scaling_factor": 0.13025}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_what_is_repaired_is_known_by_its_config(
    tmp_path: Path, data: Path, model: str, as_folder: bool, told: dict[str, object], dtype: object
) -> None:
    file = vae_file(tmp_path / "it", "diffusion_pytorch_model.safetensors", **told)
    source = find_source(model, data, {"vae": file.parent if as_folder else file})
    assert dtype_on_gpu(source) == dtype
    assert source.notices == ()


@pytest.mark.parametrize("model", ["sdxl", "sdxl-turbo"])
@pytest.mark.parametrize(
    ("name", "repaired"),
    [
        ("sdxl_vae-fp16-fix.safetensors", True),
        ("fixFP16ErrorsSDXLLowerMemoryUse_v10.safetensors", True),
        ("sdxl_vae.safetensors", False),
        ("vae.fp16.safetensors", False),
    ],
)
def test_without_a_config_by_its_name_which_is_told(
    tmp_path: Path, data: Path, model: str, name: str, repaired: bool
) -> None:
    source = find_source(model, data, {"vae": vae_file(tmp_path / "it", name)})
    assert dtype_on_gpu(source) == (torch.float16 if repaired else torch.float32)
    told = [line for line in source.notices if "repaired" in line]
    assert len(told) == repaired


def test_a_config_goes_before_a_name(tmp_path: Path, data: Path) -> None:
    file = vae_file(tmp_path / "it", "sdxl-vae-fp16-fix.safetensors", force_upcast=True)
    source = find_source("sdxl", data, {"vae": file})
    assert dtype_on_gpu(source) == torch.float32
    assert source.notices == ()


def test_the_scale_of_the_latents_is_the_config_s(tmp_path: Path, data: Path) -> None:
    file = vae_file(tmp_path / "it", scaling_factor=0.5)
    for model in ("sdxl", "sdxl-turbo"):
        assert find_source(model, data, {"vae": file}).variant.vae.scaling_factor == 0.5


def test_autoencoders_of_other_models_compute_in_fp16(data: Path) -> None:
    """Though diffusers' folders of them say the contrary."""
    given = {"text_encoder": data / "pytorch_model.ot", "vae": data / "vae.ot"}
    assert dtype_on_gpu(find_source(str(data / "unet.ot"), data, given)) == torch.float16
