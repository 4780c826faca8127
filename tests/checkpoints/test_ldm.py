"""The original programs' names, beside diffusers' own conversion from them."""

from __future__ import annotations

import types
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils as theirs
from torch import Tensor, nn

from sdpy.checkpoints import check_weights, load_weights, write_checkpoint
from sdpy.checkpoints.dialects import DIFFUSERS, ORIGINAL, find_parts, in_dialect
from sdpy.errors import WeightsError
from sdpy.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    CLIPTextConfig,
    CLIPTextModel,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)

SD2_UNET = UNet2DConditionConfig(
    attention_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
)
SD2_TEXT = CLIPTextConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
)
TINY_UNET = UNet2DConditionConfig(
    block_out_channels=(8, 16, 24),
    cross_attention=(False, True, True),
    attention_heads=(2, 2, 2),
    layers_per_block=1,
    cross_attention_dim=12,
    norm_num_groups=4,
)
TINY_VAE = AutoencoderKLConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
TINY_TEXT = CLIPTextConfig(
    vocab_size=600,
    hidden_size=12,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
)


def names_of(model: type[nn.Module], config: object) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(model(config).state_dict())


def original(component: str, state: dict[str, Tensor], family: str = "sd1") -> dict[str, Tensor]:
    """Our tensors by the original's names, as one file holds them."""
    recipes = in_dialect(component, list(state), ORIGINAL, family=family)
    return {name: recipe.make(state) for name, recipe in recipes.items()}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("config", [UNet2DConditionConfig(), SD2_UNET, TINY_UNET])
def test_unet_names_are_those_that_diffusers_knows(config: UNet2DConditionConfig) -> None:
    state = names_of(UNet2DConditionModel, config)
    file = original("unet", state)
    options = {"layers_per_block": config.layers_per_block, "class_embed_type": None}
    options |= {"addition_embed_type": None}
    got = theirs.convert_ldm_unet_checkpoint(dict(file), options)
    assert shapes(got) == shapes(state)
    assert all(got[name] is state[name] for name in state)
    assert find_parts(file).by_component["unet"].origins.keys() == state.keys()


@pytest.mark.parametrize("config", [AutoencoderKLConfig(), TINY_VAE])
def test_vae_names_are_those_that_diffusers_knows(config: AutoencoderKLConfig) -> None:
    state = names_of(AutoencoderKL, config)
    file = original("vae", state)
    blocks = ["x"] * len(config.block_out_channels)
    options = {"down_block_types": blocks, "up_block_types": blocks}
    got = theirs.convert_ldm_vae_checkpoint(dict(file), options)
    assert shapes(got) == shapes(state)
    assert find_parts(file).by_component["vae"].origins.keys() == state.keys()


def test_known_names_of_published_files() -> None:
    """A few names as they stand in v1-5-pruned-emaonly and in 512-base-ema."""
    unet = set(original("unet", names_of(UNet2DConditionModel, UNet2DConditionConfig())))
    assert len(unet) == 686
    start = "model.diffusion_model."
    for name in (
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "input_blocks.3.0.op.bias",
        "input_blocks.4.0.skip_connection.weight",
        "middle_block.1.proj_in.weight",
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.weight",
        "output_blocks.11.1.norm.bias",
        "out.2.bias",
    ):
        assert start + name in unet
    vae = original("vae", names_of(AutoencoderKL, AutoencoderKLConfig()))
    assert len(vae) == 248
    assert vae["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)
    assert vae["first_stage_model.decoder.up.3.block.0.conv1.weight"].shape == (512, 512, 3, 3)
    assert "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight" in vae
    text = original("text_encoder", names_of(CLIPTextModel, SD2_TEXT), "sd2")
    start = "cond_stage_model.model."
    fused = text[f"{start}transformer.resblocks.22.attn.in_proj_weight"]
    assert fused.shape == (3072, 1024)
    assert f"{start}positional_embedding" in text


def test_text_encoder_of_1x_as_diffusers_reads_it() -> None:
    state = names_of(CLIPTextModel, CLIPTextConfig())
    file = original("text_encoder", state)
    got = theirs.convert_ldm_clip_checkpoint(dict(file))
    assert shapes({f"text_model.{n.removeprefix('text_model.')}": t for n, t in got.items()}) == (
        shapes(state)
    )


def open_clip_file(layers: int, config: CLIPTextConfig) -> dict[str, Tensor]:
    """A text encoder as open_clip names it, made by hand from its documentation."""
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
    for i in range(layers):
        sizes = {"attn.out_proj": (D, D), "mlp.c_fc": (2 * D, D), "mlp.c_proj": (D, 2 * D)}
        sizes |= {"ln_1": (D,), "ln_2": (D,)}
        block = f"transformer.resblocks.{i}"
        for name, size in sizes.items():
            file |= {
                f"{block}.{name}.weight": random(*size),
                f"{block}.{name}.bias": random(size[0]),
            }
        file |= {f"{block}.attn.in_proj_weight": random(3 * D, D)}
        file |= {f"{block}.attn.in_proj_bias": random(3 * D)}
    return file


@pytest.mark.parametrize("prefix", ["cond_stage_model.model.", ""])
def test_open_clip_computes_as_diffusers_reads_it(tmp_path: Path, prefix: str) -> None:
    """With 24 layers in the file, of which the last is not used."""
    config = CLIPTextConfig(
        vocab_size=600,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=23,
        num_attention_heads=2,
        hidden_act="gelu",
    )
    file = {f"{prefix}{name}": t for name, t in open_clip_file(24, config).items()}
    write_checkpoint(tmp_path / "x.ckpt", file)
    with torch.device("meta"):
        ours = CLIPTextModel(config)
    load_weights(ours, tmp_path / "x.ckpt")

    reference = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=600,
            hidden_size=12,
            intermediate_size=24,
            num_hidden_layers=23,
            num_attention_heads=2,
            hidden_act="gelu",
            bos_token_id=598,
            eos_token_id=599,
        )
    ).eval()
    converted = theirs.convert_open_clip_checkpoint(reference, dict(file), prefix=prefix)
    named = {n.removeprefix("text_model."): t for n, t in converted.items()}
    wanted = {n.removeprefix("text_model."): n for n in reference.state_dict()}
    state = {wanted[n]: t for n, t in named.items() if n in wanted}
    reference.load_state_dict(state, strict=True)
    ids = torch.randint(0, 600, (2, 77), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(ids).last_hidden_state
        assert torch.allclose(ours(ids), expected, rtol=1e-5, atol=1e-5)


def whole_file(tmp_path: Path, suffix: str = ".safetensors", **more: Tensor) -> tuple[Path, dict]:
    """All three components, tiny, in one file of the original's names."""
    torch.manual_seed(0)
    models = {
        "unet": UNet2DConditionModel(TINY_UNET),
        "vae": AutoencoderKL(TINY_VAE),
        "text_encoder": CLIPTextModel(TINY_TEXT),
    }
    tensors: dict[str, Tensor] = {}
    for component, model in models.items():
        tensors |= original(component, dict(model.state_dict()))
    path = tmp_path / f"whole{suffix}"
    write_checkpoint(path, {**tensors, **more})
    return path, models


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".npz", ".ot"])
def test_every_component_of_a_whole_file_loads(tmp_path: Path, suffix: str) -> None:
    extras = {"betas": torch.ones(3), "model_ema.decay": torch.ones(1)}
    path, models = whole_file(tmp_path, suffix, **extras)
    for model in models.values():
        with torch.device("meta"):
            empty = type(model)(model.config)
        load_weights(empty, path)
        expected = model.state_dict()
        for name, tensor in empty.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_strictness_within_a_component_of_a_whole_file(tmp_path: Path) -> None:
    strange = "model.diffusion_model.input_blocks.1.0.extra"
    path, models = whole_file(tmp_path, **{strange: torch.ones(1)})
    with pytest.raises(WeightsError, match="1 unexpected .model.diffusion_model.input_blocks.1.0"):
        check_weights(models["unet"], path)
    check_weights(models["vae"], path)


def test_a_missing_component_is_named(tmp_path: Path) -> None:
    state = {
        **original("unet", dict(UNet2DConditionModel(TINY_UNET).state_dict())),
        **original("text_encoder", dict(CLIPTextModel(TINY_TEXT).state_dict())),
    }
    write_checkpoint(tmp_path / "x.safetensors", state)
    with pytest.raises(WeightsError, match="holds no VAE, only text encoder and UNet"):
        check_weights(AutoencoderKL(TINY_VAE), tmp_path / "x.safetensors")


def test_a_vae_alone_has_no_prefix(tmp_path: Path) -> None:
    """As in vae-ft-mse-840000-ema-pruned.ckpt, which keeps weights of its training loss."""
    model = AutoencoderKL(TINY_VAE)
    named = original("vae", dict(model.state_dict()))
    file = {name.removeprefix("first_stage_model."): tensor for name, tensor in named.items()}
    file["loss.logvar"] = torch.ones(())
    write_checkpoint(tmp_path / "vae.ckpt", file)
    with torch.device("meta"):
        empty = AutoencoderKL(TINY_VAE)
    load_weights(empty, tmp_path / "vae.ckpt")
    latents = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        assert torch.equal(empty.decode(latents), model.decode(latents))


def test_controlnet_names_are_those_that_diffusers_knows() -> None:
    reference = diffusers.ControlNetModel(
        block_out_channels=(8, 16, 24),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=12,
        conditioning_embedding_out_channels=(4, 6, 8, 10),
    )
    state = dict(reference.state_dict())
    file = original("controlnet", state)
    config = types.SimpleNamespace(**reference.config)
    got = theirs.convert_controlnet_checkpoint(dict(file), vars(config))
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], state[name]) for name in state)
    part = find_parts(file).by_component["controlnet"]
    assert part.origins.keys() == state.keys()


def test_our_own_names_stay() -> None:
    state = names_of(UNet2DConditionModel, TINY_UNET)
    recipes = in_dialect("unet", list(state), DIFFUSERS)
    assert [(name, recipe.ours) for name, recipe in recipes.items()] == [(n, (n,)) for n in state]


def test_a_name_that_the_tables_lack_cannot_be_converted() -> None:
    with pytest.raises(ValueError, match="strange"):
        in_dialect("unet", ["conv_in.weight", "strange.weight"], ORIGINAL)
