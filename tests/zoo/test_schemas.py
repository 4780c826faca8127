"""Configuration files: every key that diffusers and transformers know has a row in our tables."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.schedulers import KarrasDiffusionSchedulers

from sdpy.errors import WeightsError
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.zoo.configs import noise_config
from sdpy.zoo.find import find_source
from sdpy.zoo.schemas import SCHEDULER, TABLES, check_config, check_scheduler
from sdpy.zoo.variants import SD15
from support.folders import demo_folder

# Whatever else there is for Stable Diffusion beside the enumerated ones.
SCHEDULERS = sorted({*(one.name for one in KarrasDiffusionSchedulers), "LCMScheduler",
    "TCDScheduler", "DDIMInverseScheduler", "SASolverScheduler"})  # fmt: skip
NO_KEYS = {"self", "args", "kwargs"}


def defaults(cls: Any) -> dict[str, Any]:
    parameters = inspect.signature(cls.__init__).parameters
    return {
        name: list(one.default) if isinstance(one.default, tuple) else one.default
        for name, one in parameters.items()
        if name not in NO_KEYS
    }


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("UNet2DConditionModel", "unet"),
        ("AutoencoderKL", "vae"),
        ("AutoencoderTiny", "vae"),
        ("ControlNetModel", "controlnet"),
        ("ControlNetUnionModel", "controlnet"),
        ("T2IAdapter", "t2i_adapter"),
    ],
)
def test_diffusers_defaults_are_all_known_and_taken(name: str, component: str) -> None:
    found = defaults(getattr(diffusers, name))
    assert found.keys() <= TABLES[name].keys()
    checked = check_config(component, {"_class_name": name, **found}, "config.json")
    assert checked.notices == ()


def test_transformers_defaults_are_all_known_and_taken() -> None:
    found = transformers.CLIPTextConfig().to_dict()
    checked = check_config("text_encoder", json.loads(json.dumps(found)), "config.json")
    assert checked.notices == ()
    whole_model = {"text_config": found, "vision_config": {}, "projection_dim": 7}
    nested = check_config("text_encoder", json.loads(json.dumps(whole_model)), "config.json")
    assert nested == checked


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_keys_are_all_known(name: str) -> None:
    found = defaults(getattr(diffusers, name))
    assert {key for key in found if key not in SCHEDULER} == set()
    if name.startswith("EDM"):  # for models that were trained on other noise
        with pytest.raises(WeightsError, match="sigma_data"):
            check_scheduler(found, "x")
        return
    told = check_scheduler(found, "x").notices
    # Defaults that no published Stable Diffusion has.
    assert all("clip_sample" in text or "set_alpha_to_one" in text for text in told)


# Of each key that would make another network: a value with which diffusers computes another.
REFUSED = {
    "unet": {
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "down_block_types": ["AttnDownBlock2D"],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "downsample_padding": 0,
        "mid_block_scale_factor": 2,
        "act_fn": "gelu",
        "norm_eps": 1e-6,
        "encoder_hid_dim": 32,
        "encoder_hid_dim_type": "text_proj",
        "dual_cross_attention": True,
        "class_embed_type": "timestep",
        "num_class_embeds": 10,
        "resnet_time_scale_shift": "scale_shift",
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 1.5,
        "time_embedding_type": "fourier",
        "time_embedding_dim": 64,
        "time_embedding_act_fn": "silu",
        "timestep_post_act": "silu",
        "conv_in_kernel": 1,
        "attention_type": "gated",
        "class_embeddings_concat": True,
        "cross_attention_norm": "layer_norm",
        "addition_embed_type": "image",
        "norm_num_groups": 0,
    },
    "vae": {
        "act_fn": "relu",
        "shift_factor": 0.1,
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "scaling_factor": 0,
    },
    "text_encoder": {"hidden_act": "relu", "layer_norm_eps": 1e-6, "use_attention_mask": True},
    "controlnet": {
        "class_embed_type": "timestep",
        "controlnet_conditioning_channel_order": "hsv",
    },
    "t2i_adapter": {"adapter_type": "huge_adapter", "downscale_factor": 0},
}


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [(part, key, value) for part, keys in REFUSED.items() for key, value in keys.items()],
)
def test_other_arithmetic_is_refused_by_name(component: str, key: str, value: Any) -> None:
    with pytest.raises(WeightsError, match=f"folder/config.json: '{key}' is "):
        check_config(component, {key: value}, "folder/config.json")


@pytest.mark.parametrize(
    "found",
    [
        {"num_train_timesteps": 1_500_000_000},
        {"beta_start": "0.1"},
        {"beta_schedule": "sigmoid"},
        {"prediction_type": "flow_prediction"},
        {"use_flow_sigmas": True},
        {"trained_betas": [0.1, 0.2], "num_train_timesteps": 3},
        {"trained_betas": [0.1, 2.0], "num_train_timesteps": 2},
    ],
)
def test_schedules_that_cannot_be(found: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"scheduler_config\.json: '"):
        check_scheduler(found, "scheduler/scheduler_config.json")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {}),
        ("DDIMScheduler", {"beta_schedule": "scaled_linear", "beta_start": 0.00085}),
        ("DDIMScheduler", {"beta_schedule": "linear", "beta_end": 0.03}),
        ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100}),
        ("DDIMScheduler", {"trained_betas": [0.01, 0.02, 0.5], "num_train_timesteps": 3}),
        ("DDIMScheduler", {"beta_schedule": None, "num_train_timesteps": None}),
        ("LCMScheduler", {}),
        ("TCDScheduler", {"beta_end": 0.02}),
        ("HeunDiscreteScheduler", {}),
        ("KDPM2AncestralDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"beta_start": 0.0002}),
        ("PNDMScheduler", {}),
    ],
)
def test_the_noise_is_diffusers(name: str, config: dict[str, Any]) -> None:
    told = {key: value for key, value in config.items() if value is not None}
    theirs = getattr(diffusers, name)(**told).alphas_cumprod
    checked = check_scheduler({"_class_name": name, **config}, "x").values
    ours = make_alphas_cumprod(noise_config(checked, SD15.noise))
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=2e-5, atol=1e-9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return demo_folder(tmp_path / "demo")


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_a_folders_files_are_followed(folder: Path) -> None:
    betas = [0.001 * (i + 1) for i in range(900)]
    change(folder / "scheduler/scheduler_config.json", trained_betas=betas,
        num_train_timesteps=900)  # fmt: skip
    change(folder / "unet/config.json", sample_size=24, dropout=0.1, new_key=3)
    found = find_source(str(folder), Path("data"))
    assert found.variant.noise.trained_betas == tuple(betas)
    assert found.variant.sample_size == 24 * 4
    assert found.notices == (f"{folder}/unet/config.json: 'new_key' is unknown and has no effect",)


def test_a_folder_with_another_network_is_refused(folder: Path) -> None:
    change(folder / "unet/config.json", freq_shift=1)
    with pytest.raises(WeightsError, match=r"unet/config\.json: 'freq_shift' is 1"):
        find_source(str(folder), Path("data"))


def test_the_file_beside_weights_counts_if_it_is_theirs(folder: Path, tmp_path: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    change(folder / "vae/config.json", scaling_factor=0.5)
    found = find_source(str(folder), Path("data"), {"vae": weights})
    assert found.variant.vae.scaling_factor == 0.5
    change(folder / "vae/config.json", _class_name="UNet2DConditionModel", freq_shift=3)
    assert find_source(str(folder), Path("data"), {"vae": weights}).variant.vae.scaling_factor == 1
