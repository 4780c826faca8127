"""Strict loading into models on the meta device; the models here are diffusers'."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sdpy.checkpoints import check_weights, guess_kind, load_weights, write_checkpoint
from sdpy.errors import WeightsError

Load = Callable[[nn.Module, Path], None]
LOADERS = pytest.mark.parametrize("load", [load_weights, check_weights])


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("ids", torch.arange(4))


def small_tensors() -> dict[str, Tensor]:
    return {
        "linear.weight": torch.randn(2, 3),
        "linear.bias": torch.randn(2),
        "ids": torch.arange(4) + 1,
    }


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )


def unet(**changes: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **{"cross_attention_dim": 768, **changes},
    )


def text_encoder(width: int = 8) -> dict[str, Tensor]:
    """A text encoder's tensors, as files have them: with their prefix."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=10,
        bos_token_id=8,
        eos_token_id=9,
    )
    state = CLIPTextModel(config).state_dict()
    return {f"text_model.{name.removeprefix('text_model.')}": t for name, t in state.items()}


def written(folder: Path, tensors: dict[str, Tensor], suffix: str = ".ot") -> Path:
    path = folder / f"weights{suffix}"
    write_checkpoint(path, tensors)
    return path


# ---------------------------------------------------------------------------------- what is loaded


@pytest.mark.parametrize("suffix", [".ot", ".safetensors"])
def test_a_model_on_meta_becomes_the_file(tmp_path: Path, suffix: str) -> None:
    tensors = small_tensors()
    model = on_meta(Small)
    load_weights(model, written(tmp_path, tensors, suffix))
    assert set(model.state_dict()) == set(tensors)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name])
        assert tensor.dtype == tensors[name].dtype
    assert not any(parameter.requires_grad for parameter in model.parameters())
    x = torch.randn(5, 3)
    expected = x @ tensors["linear.weight"].T + tensors["linear.bias"]
    assert torch.allclose(model.linear(x), expected, atol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
@pytest.mark.parametrize("suffix", [".ot", ".safetensors"])
def test_parameters_are_the_mapped_file(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, small_tensors(), suffix)
    model = on_meta(Small)
    load_weights(model, path)
    mapped = [
        range(*(int(bound, 16) for bound in line.split()[0].split("-")))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path.resolve()))
    ]
    for tensor in model.state_dict().values():
        assert any(tensor.data_ptr() in pages for pages in mapped)


def test_changing_the_model_leaves_the_file_alone(tmp_path: Path) -> None:
    path = written(tmp_path, small_tensors())
    before = path.read_bytes()
    model = on_meta(Small)
    load_weights(model, path)
    model.linear.weight.fill_(7.0)
    assert path.read_bytes() == before


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_are_converted_and_integers_are_not(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype
) -> None:
    tensors = {n: t.to(stored) if t.is_floating_point() else t for n, t in small_tensors().items()}
    model = on_meta(Small)
    load_weights(model, written(tmp_path, tensors), dtype=dtype)
    assert torch.equal(model.linear.weight, tensors["linear.weight"].to(dtype))
    assert model.linear.weight.dtype == dtype
    assert model.ids.dtype == torch.int64


def test_float32_is_the_default_for_any_model_dtype(tmp_path: Path) -> None:
    model = on_meta(lambda: Small().half())
    load_weights(model, written(tmp_path, small_tensors()))
    assert model.linear.weight.dtype == torch.float32


def test_a_filled_model_is_filled_anew(tmp_path: Path) -> None:
    tensors = small_tensors()
    model = Small()
    load_weights(model, written(tmp_path, tensors))
    assert torch.equal(model.linear.bias, tensors["linear.bias"])


def test_a_buffer_that_no_file_can_fill_is_a_mistake_in_the_model(tmp_path: Path) -> None:
    class Forgetful(Small):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.ones(2), persistent=False)

    with pytest.raises(AssertionError, match="non-persistent"):
        load_weights(on_meta(Forgetful), written(tmp_path, small_tensors()))


# ------------------------------------------------------------------------------------- what is not


def refused(load: Load, model: nn.Module, path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load(model, path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    return message


@LOADERS
def test_all_faults_are_reported_together(tmp_path: Path, load: Load) -> None:
    tensors = small_tensors()
    del tensors["linear.bias"]
    tensors["linear.weight"] = torch.randn(3, 2)
    tensors["ids"] = torch.ones(4)
    tensors |= {f"extra.{n}": torch.ones(1) for n in range(5)}
    message = refused(load, on_meta(Small), written(tmp_path, tensors))
    assert "does not fit Small" in message
    assert "1 missing (linear.bias)" in message
    assert "5 unexpected (extra.0, extra.1, extra.2, ...)" in message
    assert "1 of another shape (linear.weight is [3, 2] instead of [2, 3])" in message
    assert "1 of another kind (ids is float32)" in message


@LOADERS
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_for_floats_are_refused(tmp_path: Path, load: Load, dtype: torch.dtype) -> None:
    tensors = small_tensors()
    tensors["linear.bias"] = torch.ones(2, dtype=dtype)
    message = refused(load, on_meta(Small), written(tmp_path, tensors))
    assert f"linear.bias is {str(dtype).removeprefix('torch.')}" in message


@LOADERS
def test_names_from_the_file_cannot_break_the_line(tmp_path: Path, load: Load) -> None:
    path = written(tmp_path, {"a\n\x1b[31mb": torch.ones(1)}, ".safetensors")
    message = refused(load, on_meta(Small), path)
    assert "\x1b" not in message


@LOADERS
def test_an_empty_archive_is_named(tmp_path: Path, load: Load) -> None:
    message = refused(load, on_meta(Small), written(tmp_path, {}))
    assert "3 missing" in message
    assert "an empty file" in message


@LOADERS
@pytest.mark.parametrize(
    ("build", "guess"),
    [
        (lambda: vae().state_dict(), "this looks like a VAE;"),
        (text_encoder, "this looks like a text encoder (8 wide)"),
        (lambda: text_encoder(768), "a text encoder (768 wide, as in Stable Diffusion 1.x)"),
        (lambda: unet().state_dict(), "a Stable Diffusion 1.x UNet with 4 input channels"),
        (
            lambda: unet(in_channels=9, cross_attention_dim=1024).state_dict(),
            "a Stable Diffusion 2.x UNet with 9 input channels",
        ),
        (
            lambda: unet(cross_attention_dim=12).state_dict(),
            "a UNet of context width 12 with 4 input channels",
        ),
    ],
    ids=["vae", "tiny clip", "clip", "unet", "unet 2.x inpainting", "tiny unet"],
)
def test_the_wrong_component_is_named(
    tmp_path: Path, load: Load, build: Callable[[], dict[str, Tensor]], guess: str
) -> None:
    assert guess in refused(load, on_meta(Small), written(tmp_path, build()))


def test_nothing_is_guessed_about_unknown_keys() -> None:
    assert guess_kind({"fc.weight": (3, 4)}) is None


def test_a_unet_of_nine_channels_does_not_fit_one_of_four(tmp_path: Path) -> None:
    path = written(tmp_path, unet(in_channels=9).state_dict())
    message = refused(check_weights, on_meta(unet), path)
    assert "1 of another shape (conv_in.weight is [8, 9, 3, 3] instead of [8, 4, 3, 3])" in message
    assert "missing" not in message
    assert "9 input channels" in message


# ---------------------------------------------------------------------------------------- dialects

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_vae_tensors(state: dict[str, Tensor], convolutions: bool) -> dict[str, Tensor]:
    """The names, and optionally the shapes, that files from before diffusers 0.18 have."""
    old = {}
    for name, tensor in state.items():
        match = re.search(r"attentions\.0\.(to_[qkv]|to_out\.0)\.(weight|bias)$", name)
        if match:
            name = name.replace(f".{match[1]}.", f".{OLD_NAMES[match[1]]}.")
            if convolutions and match[2] == "weight":
                tensor = tensor[:, :, None, None]
        old[name] = tensor
    assert sum(".query." in name for name in old) == 4
    return old


@LOADERS
@pytest.mark.parametrize("convolutions", [False, True], ids=["linear", "convolution"])
def test_old_names_of_the_vae_attention(tmp_path: Path, load: Load, convolutions: bool) -> None:
    original = vae().eval()
    path = written(tmp_path, old_vae_tensors(original.state_dict(), convolutions))
    model = on_meta(vae).eval()
    load(model, path)
    if load is load_weights:
        image = torch.randn(1, 3, 8, 8)
        with torch.no_grad():
            assert torch.equal(model(image).sample, original(image).sample)


def test_diffusers_itself_agrees_about_the_old_names(tmp_path: Path) -> None:
    """Its own loader fills the same model from the same old names."""
    original = vae().eval()
    original.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(old_vae_tensors(load_file(file), convolutions=False), file)
    theirs = AutoencoderKL.from_pretrained(tmp_path).state_dict()
    model = on_meta(vae)
    load_weights(model, file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name])


class Prefixed(nn.Module):
    """A text encoder whose names carry the prefix ``text_model.``, as ours do."""

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in text_encoder().items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            owner.register_parameter(last, nn.Parameter(torch.empty_like(tensor, device="meta")))


@LOADERS
@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_text_encoders_with_and_without_prefix_and_extras(
    tmp_path: Path, load: Load, prefix: str
) -> None:
    tensors = text_encoder()
    stored = {prefix + name.removeprefix("text_model."): t for name, t in tensors.items()}
    stored |= {
        f"{prefix}embeddings.position_ids": torch.arange(77)[None],
        "logit_scale": torch.tensor(4.6),
        "text_projection.weight": torch.randn(8, 8),
        "visual_projection.weight": torch.randn(8, 8),
        "vision_model.post_layernorm.weight": torch.randn(8),
    }
    model = Prefixed()
    load(model, written(tmp_path, stored))
    if load is load_weights:
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, tensors[name])


@LOADERS
def test_one_tensor_under_two_names_is_refused(tmp_path: Path, load: Load) -> None:
    state = vae().state_dict()
    state |= {name: t for name, t in old_vae_tensors(state, False).items() if ".query." in name}
    message = refused(load, on_meta(vae), written(tmp_path, state))
    assert "4 given twice" in message


@LOADERS
def test_a_name_that_no_table_knows_is_reported_as_it_is(tmp_path: Path, load: Load) -> None:
    state = old_vae_tensors(vae().state_dict(), False)
    state["encoder.mid_block.attentions.0.qkv.weight"] = torch.ones(1)
    message = refused(load, on_meta(vae), written(tmp_path, state))
    assert "1 unexpected (encoder.mid_block.attentions.0.qkv.weight)" in message


@LOADERS
def test_a_name_is_not_changed_to_one_that_the_model_lacks(tmp_path: Path, load: Load) -> None:
    name = "encoder.mid_block.attentions.0.query.weight"
    tensors = {**small_tensors(), name: torch.ones(2, 2)}
    message = refused(load, on_meta(Small), written(tmp_path, tensors))
    assert f"1 unexpected ({name})" in message
