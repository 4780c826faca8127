from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import sdpy
from sdpy.errors import UsageError
from sdpy.schedulers import make_scheduler
from sdpy.zoo.find import find_source
from sdpy.zoo.variants import DEMO, SD15, SD15_INPAINT, VARIANTS, ModelVariant

ALL = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def test_variants_have_the_names_of_the_table() -> None:
    for name, variant in VARIANTS.items():
        assert variant.name == name


@pytest.mark.parametrize("name", ["", "SD15", "sd15 ", "sd3"])
def test_an_unknown_name_lists_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find_source(name, tmp_path)
    for known in VARIANTS:
        assert known in str(caught.value)


@ALL
def test_the_parts_fit_together(variant: ModelVariant) -> None:
    widths = [encoder.hidden_size for encoder in variant.text_encoders.values()]
    assert variant.unet.cross_attention_dim == sum(widths)
    latents = variant.vae.latent_channels
    assert variant.unet.out_channels == latents
    assert variant.unet.in_channels in (latents, 2 * latents + 1)
    assert variant.sample_size % variant.vae.downsample_factor == 0
    assert variant.sample_size**2 <= variant.max_pixels
    scheduler = make_scheduler("ddim", variant.noise, timestep_spacing=variant.timestep_spacing)
    scheduler.set_timesteps(30)
    assert len(scheduler.timesteps) == 30


@ALL
def test_variants_are_constants(variant: ModelVariant) -> None:
    hash(variant)
    with pytest.raises(dataclasses.FrozenInstanceError):
        variant.name = "other"  # type: ignore[misc]


@ALL
def test_models_distilled_for_few_steps_do_few(variant: ModelVariant) -> None:
    distilled = variant.guidance_scale == 1.0 or variant.scheduler == "lcm"
    assert variant.steps == (4 if distilled else 30)
    assert distilled == any(word in variant.name for word in ("turbo", "lightning", "lcm"))


def test_stable_diffusion_1_5_is_as_the_original_program_has_it() -> None:
    assert SD15.files.of("text_encoder")[0] == "pytorch_model.ot"
    assert SD15.files.of("unet")[0] == "unet.ot"
    assert SD15.files.of("vae")[0] == "vae.ot"
    assert SD15.files.vocabulary == ("bpe_simple_vocab_16e6.txt", "bpe_simple_vocab_16e6.txt.gz")
    assert SD15_INPAINT.files.of("unet")[0] == "unet-inpaint.ot"
    assert SD15_INPAINT.unet.in_channels == 9
    assert dataclasses.replace(SD15_INPAINT.unet, in_channels=4) == SD15.unet
    for variant in (SD15, SD15_INPAINT):
        assert variant.timestep_spacing == "original"
        assert variant.guidance_scale == 7.5
        assert variant.sample_size == 512
        assert not variant.pad_ids
        assert variant.vae.scaling_factor == 0.18215
        assert variant.vae.downsample_factor == 8
        assert variant.bundled is None


def test_the_demo_is_inside_the_package() -> None:
    assert DEMO.bundled is not None
    assert DEMO.bundled.parent == Path(sdpy.__file__).parent
