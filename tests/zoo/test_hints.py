"""What shapes do not tell: distilled models, predictions, and models that sdpy does not run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import read_checkpoint, read_model_folder, write_checkpoint
from sdpy.checkpoints.dialects import ORIGINAL, in_dialect
from sdpy.errors import WeightsError
from sdpy.models import (
    AutoencoderTiny,
    AutoencoderTinyConfig,
    T2IAdapter,
    T2IAdapterConfig,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from sdpy.runtime.session import Session
from sdpy.zoo.classes import make_model
from sdpy.zoo.configs import is_known, unet_config
from sdpy.zoo.convert import plan_conversion
from sdpy.zoo.families import family_of
from sdpy.zoo.files import ModelFiles
from sdpy.zoo.find import find_source
from sdpy.zoo.inspect import inspect_weights
from sdpy.zoo.source import ModelSource
from sdpy.zoo.variants import (
    ONE_STEP_UNETS,
    SD15,
    SD21,
    SD21_BASE,
    SDXL,
    SDXL_LIGHTNING,
    SDXL_TURBO,
    SEGMIND_VEGA,
    SMALL_UNETS,
    SSD_1B,
    VARIANTS,
    ModelVariant,
)
from support.compare import randomise
from support.tiny import MERGES, TINY, write_tiny
from support.tiny_xl import TINY_XL, tiny_xl_model, write_tiny_xl


@pytest.fixture(autouse=True)
def tiny_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "sdxl", TINY_XL)


def single_file(path: Path, **more: Tensor) -> Path:
    """A whole tiny model of the original's names."""
    file: dict[str, Tensor] = {}
    for name in TINY_XL.configs:
        state = tiny_xl_model(TINY_XL, name).state_dict()
        recipes = in_dialect(name, list(state), ORIGINAL, family="sdxl")
        file |= {theirs: recipe.make(state) for theirs, recipe in recipes.items()}
    write_checkpoint(path, {**file, **more})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (path.parent / "bpe_simple_vocab_16e6.txt").write_text("\n".join(lines) + "\n")
    return path


def found(path: Path) -> tuple[ModelVariant, tuple[str, ...]]:
    source = find_source(str(path), path.parent)
    return source.variant, source.assumptions


@pytest.mark.parametrize(
    ("name", "variant", "steps"),
    [
        ("sd_xl_turbo_1.0", SDXL_TURBO, 4),
        ("sdxl_lightning_8step", SDXL_LIGHTNING, 8),
        ("juggernautXL_v9Lightning", SDXL_LIGHTNING, 4),
        ("sd_xl_base_1.0", SDXL, 30),
    ],
)
def test_distilled_models_by_their_names(
    tmp_path: Path, name: str, variant: ModelVariant, steps: int
) -> None:
    kind, told = found(single_file(tmp_path / f"{name}.safetensors"))
    assert (kind.name, kind.steps) == (variant.name, steps)
    assert kind.guidance_scale == variant.guidance_scale
    assert kind.timestep_spacing == variant.timestep_spacing
    if variant is SDXL:
        assert told == ()
    else:
        (line,) = told
        assert f"is called like {variant.name}, as shapes do not tell" in line
        assert f"assuming {steps} steps" in line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """diffusers' folder of a tiny model, whose scheduler says epsilon and leading spacing."""
    return write_tiny_xl(tmp_path_factory.mktemp("xl") / "folder")


@pytest.mark.parametrize(
    ("name", "variant", "steps"),
    [
        ("sdxl_lightning_2step_unet", SDXL_LIGHTNING, 2),
        ("sd_xl_turbo_unet", SDXL_TURBO, 4),
        ("some_unet", SDXL, 30),
    ],
)
def test_a_given_unet_is_not_what_the_folder_s_scheduler_says(
    tmp_path: Path, folder: Path, name: str, variant: ModelVariant, steps: int
) -> None:
    unet = tmp_path / f"{name}.safetensors"
    write_checkpoint(unet, tiny_xl_model(TINY_XL, "unet").state_dict())
    source = find_source(str(folder), tmp_path, {"unet": unet})
    kind = source.variant
    assert (kind.name, kind.steps, kind.scheduler) == (variant.name, steps, variant.scheduler)
    assert kind.timestep_spacing == variant.timestep_spacing
    assert any("is called like" in line for line in source.assumptions) == (variant is not SDXL)
    assert find_source(str(folder), tmp_path).variant.name == "sdxl"


def test_a_given_unet_says_what_it_predicts(tmp_path: Path, folder: Path) -> None:
    state = tiny_xl_model(TINY_XL, "unet").state_dict()
    write_checkpoint(tmp_path / "unet.safetensors", {**state, "v_pred": torch.empty(0)})
    given = {"unet": tmp_path / "unet.safetensors"}
    assert find_source(str(folder), tmp_path, given).variant.noise.prediction_type == "v_prediction"
    assert find_source(str(folder), tmp_path).variant.noise.prediction_type == "epsilon"


def test_other_turbo_models_are_hinted_at(tmp_path: Path) -> None:
    kind, told = found(single_file(tmp_path / "dreamshaperXL_v21Turbo.safetensors"))
    assert (kind.name, kind.guidance_scale) == ("sdxl", 5.0)
    assert "is called a turbo model" in told[0]


@pytest.mark.parametrize(
    ("name", "doubted"), [("taesd.safetensors", True), ("taesdxl.safetensors", False)]
)
def test_tiny_autoencoders_are_doubted_by_their_names(
    tmp_path: Path, name: str, doubted: bool
) -> None:
    tiny = AutoencoderTiny(AutoencoderTinyConfig()).state_dict()
    write_checkpoint(tmp_path / name, tiny)
    path = single_file(tmp_path / "x.safetensors")
    source = find_source(str(path), tmp_path, {"vae": tmp_path / name})
    assert any("this model needs TAESDXL" in line for line in source.notices) == doubted


def test_what_is_predicted_is_said_by_keys(tmp_path: Path) -> None:
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    path = single_file(tmp_path / "noob.safetensors", **marks)
    kind, told = found(path)
    assert kind.noise.prediction_type == "v_prediction"
    assert kind.noise.rescale_betas_zero_snr
    assert told == ()
    # and goes on to be said, in folders and in files of formats without metadata
    words = tmp_path / "bpe_simple_vocab_16e6.txt"
    for first, second in (("folder", "back.ckpt"), ("other.ckpt", "again.safetensors")):
        for source, target in ((path, first), (tmp_path / first, second)):
            plan = plan_conversion(inspect_weights(source), tmp_path / target, vocabulary=words)
            list(plan.run())
            assert found(tmp_path / target)[0].noise == kind.noise
        before, after = (read_checkpoint(one).outline for one in (path, tmp_path / second))
        assert before.keys() == after.keys()


def test_what_is_predicted_is_said_by_metadata_or_asked_for(tmp_path: Path) -> None:
    path = single_file(tmp_path / "x.safetensors")
    tensors = dict(read_checkpoint(path).tensors)
    for word, kind in (("v", "v_prediction"), ("epsilon", "epsilon")):
        write_checkpoint(path, tensors, {"modelspec.prediction_type": word})
        noise = found(path)[0].noise
        assert noise.prediction_type == kind
        assert noise.rescale_betas_zero_snr == (word == "v")
    doubtful = single_file(tmp_path / "animeXL_vpred.safetensors")
    kind_of, told = found(doubtful)
    assert kind_of.noise.prediction_type == "epsilon"
    assert "give --prediction-type v_prediction" in told[0]


def test_the_scale_of_latents_is_that_of_the_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autoencoders of Stable Diffusion 1.x and XL have the same shapes."""
    monkeypatch.setitem(VARIANTS, "sd15", TINY)
    assert list(VARIANTS).index("sd15") < list(VARIANTS).index("sdxl")
    path = single_file(tmp_path / "x.safetensors")
    assert found(path)[0].vae == TINY_XL.vae
    seen = inspect_weights(path).component("vae")
    assert seen is not None and seen.config == TINY_XL.vae
    plan = plan_conversion(
        inspect_weights(path), tmp_path / "xl", vocabulary=tmp_path / "bpe_simple_vocab_16e6.txt"
    )
    assert '"scaling_factor": 0.13025' in plan.texts[tmp_path / "xl" / "vae" / "config.json"]


@pytest.mark.parametrize("variant", [SSD_1B, SEGMIND_VEGA], ids=["SSD-1B", "Segmind-Vega"])
def test_distilled_unets_by_their_depths(tmp_path: Path, variant: ModelVariant) -> None:
    with torch.device("meta"):
        outline = make_model("unet", variant.unet).state_dict()
    config = unet_config(outline, {})
    assert config == variant.unet
    tiny = single_file(tmp_path / "x.safetensors")
    kind, told = family_of(config, read_checkpoint(tiny), {})
    assert (kind, told) == (variant, ())


@pytest.mark.parametrize("index", range(len(SMALL_UNETS)))
def test_the_heads_of_small_unets_are_known(index: int) -> None:
    known = SMALL_UNETS[index]
    with torch.device("meta"):
        outline = UNet2DConditionModel(replace(known, in_channels=9)).state_dict()
    config = unet_config(outline, {})
    assert config == replace(known, in_channels=9)
    assert is_known(config)


@pytest.mark.parametrize(
    ("unet", "variant"), [*zip(ONE_STEP_UNETS, (SD15, SD21_BASE), strict=True)]
)
def test_unets_for_a_single_step_are_used_so(
    tmp_path: Path, unet: UNet2DConditionConfig, variant: ModelVariant
) -> None:
    file = single_file(tmp_path / "x.safetensors")
    kind, told = family_of(unet, read_checkpoint(file), {})
    assert (kind.name, kind.noise, told) == (variant.name, variant.noise, ())
    assert (kind.steps, kind.guidance_scale, kind.timestep_spacing) == (1, 1.0, "trailing")
    marks = {"v_pred": torch.empty(0)}
    file = single_file(tmp_path / "v.safetensors", **marks)
    kind, _ = family_of(unet, read_checkpoint(file), {})
    assert kind.noise.prediction_type == "v_prediction"


ADAPTER = T2IAdapterConfig(channels=(8, 12, 16, 16))
OF_1X = ModelSource(
    SD15.with_configs(unet=replace(SD15.unet, block_out_channels=(8, 12, 16, 16))),
    ModelFiles({}, Path("none")),
)
OF_2X = ModelSource(
    SD21.with_configs(unet=replace(SD21.unet, block_out_channels=(8, 12, 16, 16))),
    ModelFiles({}, Path("none")),
)


@pytest.mark.parametrize(
    ("path", "metadata", "version"),
    [
        ("t2iadapter_canny_sd14v1.pth", {}, "1"),
        ("coadapter-canny-sd15v1.pth", {}, "1"),
        ("adapters/sd1.5/canny.safetensors", {}, "1"),
        ("t2i-adapter-canny/diffusion_pytorch_model.bin", {}, "1"),  # as downloaded
        ("models--TencentARC--t2iadapter_seg_sd14v1/snapshots/0a1b/model.bin", {}, "1"),
        ("x.safetensors", {"modelspec.architecture": "stable-diffusion-v1/t2i-adapter"}, "1"),
        ("x.safetensors", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "2"),
        ("my-sd21-canny.safetensors", {}, "2"),
        ("canny.safetensors", {}, None),
        ("sd1024.safetensors", {}, None),
        ("ssd-1b.safetensors", {}, None),
        ("sd15-or-sd21.safetensors", {}, None),
    ],
)
def test_adapters_for_1x_and_for_2x_have_the_same_shapes(
    tmp_path: Path, path: str, metadata: dict[str, str], version: str | None
) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(file, randomise(T2IAdapter(ADAPTER)).state_dict(), metadata)
    for own, source in (("1", OF_1X), ("2", OF_2X)):
        with Session(source) as session:
            if version not in (own, None):
                with pytest.raises(
                    WeightsError,
                    match=rf"is a T2I-Adapter for Stable Diffusion {version}.x, and "
                    rf"{source.variant.name} is a {own}.x",
                ):
                    session.headers.check_companion(file)
                continue
            session.headers.check_companion(file)
            told = [notice.text for notice in session.take_notices()]
            doubted = own == "2" and version is None
            assert len(told) == doubted
            assert not doubted or "it steers sd21 wrongly" in told[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cond_stage_model.model.visual.conv1.weight", "a model of image variations"),
        ("embedder.model.visual.conv1.weight", "an unCLIP model"),
        ("edm_mean", "Playground 2.5"),
        ("edm_vpred.sigma_max", "CosXL"),
    ],
)
def test_checkpoints_that_only_look_alike_are_refused(
    tmp_path: Path, name: str, words: str
) -> None:
    path = single_file(tmp_path / "x.safetensors", **{name: torch.ones(1)})
    with pytest.raises(WeightsError, match=f"x.safetensors is {words}.*does not run"):
        find_source(str(path), tmp_path)
    seen = inspect_weights(path)
    assert seen.variant is None
    assert words in seen.assumptions[0]


def test_a_folder_of_image_variations_is_refused(tmp_path: Path) -> None:
    index = {
        "_class_name": "StableDiffusionImageVariationPipeline",
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="a model of image variations .*told an image instead"):
        read_model_folder(tmp_path)


@pytest.mark.parametrize(
    ("config", "name", "refused", "doubted"),
    [
        ({"scaling_factor": 0.18215}, "x.safetensors", True, False),
        ({"norm_num_groups": 4}, "x.safetensors", False, True),  # as those of 1.x had it
        ({"force_upcast": False}, "x.safetensors", False, False),
        ({"scaling_factor": 0.13025}, "sd15.safetensors", False, False),
        ({"scaling_factor": 0.5}, "x.safetensors", False, False),
        ({}, "vae-ft-mse-840000.safetensors", False, True),
        ({}, "sd15_vae.safetensors", False, True),
        ({}, "sdxl_vae.safetensors", False, False),
        ({}, "x.safetensors", False, False),
    ],
)
def test_an_autoencoder_for_latents_of_another_scale(
    tmp_path: Path, config: dict[str, Any], name: str, refused: bool, doubted: bool
) -> None:
    (tmp_path / "vae").mkdir()
    vae = tmp_path / "vae" / name
    write_checkpoint(vae, tiny_xl_model(TINY_XL, "vae").state_dict())
    if config:
        (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    path = single_file(tmp_path / "model.safetensors")
    if refused:
        with pytest.raises(
            WeightsError,
            match="an autoencoder for Stable Diffusion 1.x and 2.x, and sdxl needs one for .*XL",
        ):
            find_source(str(path), tmp_path, {"vae": vae})
        return
    source = find_source(str(path), tmp_path, {"vae": vae})
    assert source.variant.vae.scaling_factor == config.get("scaling_factor", 0.13025)
    assert any("colours will be wrong" in line for line in source.notices) == doubted


def test_an_autoencoder_of_xl_beside_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "sd15", TINY)
    data = write_tiny(tmp_path / "data")
    for name, doubted in (("sdxl_vae", True), ("sdxl-fine-tuned", True), ("axle", False)):
        vae = tmp_path / "vae" / f"{name}.safetensors"
        vae.parent.mkdir(exist_ok=True)
        write_checkpoint(vae, tiny_xl_model(TINY_XL, "vae").state_dict())
        source = find_source("sd15", data, {"vae": vae})
        assert any("for Stable Diffusion XL, by" in line for line in source.notices) == doubted
