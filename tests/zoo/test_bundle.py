"""What the bundled model says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdpy.zoo.bundle import BUNDLE, TURBO, read_bundle, write_bundle
from sdpy.zoo.variants import DEMO, VARIANTS, bundled_variants


def test_a_bundle_is_read_as_it_was_written(tmp_path: Path) -> None:
    bundle = replace(read_bundle(BUNDLE), recipe="other", sample_size=256)
    write_bundle(tmp_path, bundle)
    assert read_bundle(tmp_path) == bundle
    assert isinstance(read_bundle(tmp_path).configs["unet"].block_out_channels, tuple)


def test_the_demo_model_is_that_of_the_package() -> None:
    assert VARIANTS["demo"] is DEMO
    assert DEMO.bundled == BUNDLE
    assert ("demo-turbo" in VARIANTS) == (BUNDLE / f"{TURBO}.ot").exists()
    assert ("demo-turbo" in VARIANTS) == (TURBO in read_bundle(BUNDLE).configs)


def test_a_unet_for_few_steps_is_a_variant_of_its_own(tmp_path: Path) -> None:
    bundle = read_bundle(BUNDLE)
    student = replace(bundle.configs["unet"], time_cond_proj_dim=64)
    write_bundle(
        tmp_path, replace(bundle, sample_size=256, configs={**bundle.configs, TURBO: student})
    )
    demo, turbo = bundled_variants(tmp_path)
    assert (demo.name, turbo.name) == ("demo", "demo-turbo")
    assert demo.unet == bundle.configs["unet"]
    assert turbo.unet == student
    assert (turbo.scheduler, turbo.steps) == ("lcm", 4)
    assert turbo.files.of("unet") == ("unet_turbo.ot",)
    assert turbo.files.of("vae") == demo.files.of("vae")
    assert demo.sample_size == turbo.sample_size == 256
    assert demo.max_pixels == 256 * 256
    assert demo.bundled == turbo.bundled == tmp_path
