"""Files of diffusers' and transformers' models, in libtorch's archives and safetensors, in ours."""

import json
import struct
import sys
import warnings
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from torch import Tensor, nn

from sdpy import models
from sdpy.checkpoints import check_weights, load_weights, read_checkpoint
from sdpy.errors import WeightsError
from support.mapped import resident_kilobytes

OLD_NAMES = {
    ".to_q.": ".query.",
    ".to_k.": ".key.",
    ".to_v.": ".value.",
    ".to_out.0.": ".proj_attn.",
}


def reference_vae(**changes: object) -> nn.Module:
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **{**sizes, **changes},
    )


def old_vae_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    old = {}
    for name, tensor in state.items():
        for ours, theirs in OLD_NAMES.items():
            name = name.replace(ours, theirs)
        old[name] = tensor
    return old


def save_as_libtorch(state: dict[str, Tensor], path: Path) -> None:
    """As people make .ot files in Python: a flat scripted module, bars for dots."""
    module = nn.Module()
    for name, tensor in state.items():
        parameter = nn.Parameter(tensor.clone(), requires_grad=False)
        module.register_parameter(name.replace(".", "|"), parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))


def test_a_vae_of_libtorch_with_old_names_decodes_alike(tmp_path: Path) -> None:
    theirs = reference_vae().eval()
    save_as_libtorch(old_vae_names(theirs.state_dict()), tmp_path / "vae.ot")
    config = models.AutoencoderKLConfig(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4
    )
    with torch.device("meta"):
        ours = models.AutoencoderKL(config)
    load_weights(ours, tmp_path / "vae.ot")
    latents = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = theirs.decode(latents).sample
        assert torch.allclose(ours.decode(latents), expected, rtol=1e-5, atol=1e-5)


def full_size_clip() -> dict[str, Tensor]:
    with torch.device("meta"):
        model = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
            )
        )
    state = {
        f"text_model.{n.removeprefix('text_model.')}": t for n, t in model.state_dict().items()
    }
    return state | {"text_model.embeddings.position_ids": torch.arange(77, device="meta")[None]}


def full_size_vae() -> dict[str, Tensor]:
    with torch.device("meta"):
        model = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    return old_vae_names(model.state_dict())


def full_size_unet(in_channels: int = 4) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(cross_attention_dim=768, in_channels=in_channels)
    return model.state_dict()


def save_header_only(state: dict[str, Tensor], path: Path) -> None:
    """A .safetensors file of real size whose numbers are a hole that takes no disk."""
    header, end = {}, 0
    names = {torch.float32: "F32", torch.int64: "I64"}
    for name, tensor in state.items():
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        shape, offsets = list(tensor.shape), [start, end]
        header[name] = {"dtype": names[tensor.dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)


# Tensors and numbers of Stable Diffusion 1.5's three models.
FULL_SIZE = {
    "clip": (full_size_clip, models.CLIPTextModel, models.CLIPTextConfig, 196, 123_060_480),
    "vae": (full_size_vae, models.AutoencoderKL, models.AutoencoderKLConfig, 248, 83_653_863),
    "unet": (
        full_size_unet,
        models.UNet2DConditionModel,
        models.UNet2DConditionConfig,
        686,
        859_520_964,
    ),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_names_and_shapes_of_stable_diffusion_fit(tmp_path: Path, name: str) -> None:
    reference, model, config, tensors, numbers = FULL_SIZE[name]
    save_header_only(reference(), tmp_path / "full.safetensors")
    with torch.device("meta"):
        ours = model(config())
    # While it is open, it is not opened again: it is this one that is checked.
    opened = read_checkpoint(tmp_path / "full.safetensors")
    check_weights(ours, opened.path)
    if sys.platform == "linux":  # gigabytes are not read
        assert resident_kilobytes(opened.path) < 1024
    state = ours.state_dict()
    assert len(state) == tensors
    assert sum(tensor.numel() for tensor in state.values()) == numbers


def test_inpainting_weights_do_not_fit_an_ordinary_unet(tmp_path: Path) -> None:
    save_header_only(full_size_unet(in_channels=9), tmp_path / "full.safetensors")
    with torch.device("meta"):
        ours = models.UNet2DConditionModel(models.UNet2DConditionConfig())
    with pytest.raises(WeightsError, match="Stable Diffusion 1.x UNet with 9 input channels"):
        check_weights(ours, tmp_path / "full.safetensors")
