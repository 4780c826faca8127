"""Distilling the demo model: its arithmetic, and both stages on a handful of images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from scripts.demo import train
from scripts.demo.recipes import RECIPES
from scripts.demo.scene_sets import SCENES
from scripts.demo.training import consistency, models
from scripts.demo.training.data import CaptionSet, load_latents
from scripts.demo.training.diffusion import add_noise, predicted_clean
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.tiny_autoencoder import TINY_VAE_FILE, distil_autoencoder
from scripts.engine import DemoModel
from sdpy.models import UNet2DConditionModel
from sdpy.models.embeddings import guidance_scale_embedding
from sdpy.schedulers.ddim import DDIMScheduler
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.zoo.variants import DEMO
from support.compare import normal, relative_error


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrainingOptions:
    """A run of everything on eight images, exported."""
    run = tmp_path_factory.mktemp("run")
    options = TrainingOptions(
        run=run,
        recipe=replace(RECIPES["demo"], scenes=replace(SCENES, prompts=("a house",))),
        bundle=run / "files",
        images=8,
        versions=3,
        autoencoder_crops=2,
        autoencoder_images=2,
        denoiser_samples=2,
        batch=2,
        tiny_vae_images=4,
        consistency_samples=4,
        consistency_learning_rate=0.5,  # a step is to be seen in float16
    )
    for stage in train.ALL[: train.ALL.index("export") + 1]:
        train.STAGES[stage](options)
    return options


def generate(options: TrainingOptions, files: dict[str, str], **settings: Any) -> torch.Tensor:
    given = {name: options.run / file for name, file in files.items()}
    return DemoModel.open(options.bundle, files=given).generate("a house", 0, **settings)


def test_the_tiny_autoencoder_decodes(options: TrainingOptions) -> None:
    distil_autoencoder(options)
    assert (options.run / "tiny-vae.png").exists()
    image = generate(options, {"vae": TINY_VAE_FILE}, steps=2)
    assert image.shape == (1, 3, 128, 128)
    assert image.isfinite().all()
    assert relative_error(image, generate(options, {}, steps=2)) > 0.01


def test_the_distilled_unet_heeds_the_scale(
    options: TrainingOptions,
) -> None:
    consistency.distil_consistency(options)
    few = {"steps": 4, "scheduler": "lcm"}
    files = {"unet": models.CONSISTENCY_FILE}
    images = [generate(options, files, guidance_scale=scale, **few) for scale in (2.0, 6.0)]
    assert all(image.isfinite().all() for image in images)
    assert not torch.equal(*images)


def test_one_step_of_the_solver_is_ddim_s() -> None:
    scheduler = DDIMScheduler(DEMO.noise, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    alphas = make_alphas_cumprod(DEMO.noise).float()
    starts = torch.tensor([int(scheduler.timesteps[i]) for i in (0, 1, 20, 48)])
    noisy, velocity = normal(4, 4, 6, 5), normal(4, 4, 6, 5, seed=1)
    ours = consistency.ddim_step(alphas, noisy, velocity, starts, starts - 20)
    for i, start in enumerate(starts):
        expected = scheduler.step(velocity[i : i + 1], start, noisy[i : i + 1])
        assert relative_error(ours[i : i + 1], expected) <= 1e-5


def test_the_last_step_ends_at_clean_latents() -> None:
    alphas = make_alphas_cumprod(DEMO.noise).float()
    noisy, velocity = normal(1, 4, 6, 5), normal(1, 4, 6, 5, seed=1)
    start, goal = torch.tensor([19]), torch.tensor([-1])
    end = predicted_clean(alphas, noisy, velocity, start)
    assert torch.equal(consistency.ddim_step(alphas, noisy, velocity, start, goal), end)
    assert torch.equal(predicted_clean(alphas, end, velocity, goal), end)


def test_a_velocity_that_is_right_leads_along_the_trajectory_without_loss() -> None:
    alphas = make_alphas_cumprod(DEMO.noise).float()
    clean, noise = normal(3, 4, 6, 5), normal(3, 4, 6, 5, seed=1)
    start = torch.tensor([999, 519, 19])
    alpha = alphas[start][:, None, None, None]
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    noisy = add_noise(alphas, clean, noise, start)
    end = predicted_clean(alphas, noisy, velocity, start)
    nearer = consistency.ddim_step(alphas, noisy, velocity, start, start - 20)
    torch.testing.assert_close(end, clean, atol=1e-5, rtol=1e-4)
    expected = add_noise(alphas, clean, noise, start - 20)
    torch.testing.assert_close(nearer, expected, atol=1e-5, rtol=1e-4)


def test_the_student_begins_as_its_teacher_whatever_the_scale() -> None:
    torch.manual_seed(0)
    teacher = UNet2DConditionModel(DEMO.unet)
    student = consistency.make_student(teacher, DEMO.unet)
    inputs = normal(2, 4, 8, 8), torch.tensor([900, 20]), normal(2, 77, 128)
    scale = normal(2, models.GUIDANCE_CHANNELS, seed=4)
    with torch.no_grad():
        assert torch.equal(student(*inputs, timestep_cond=scale), teacher(*inputs))


def test_two_processes_share_a_batch(
    options: TrainingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, captions = load_latents(options), CaptionSet(options)
    whole = vars(consistency.draw_batch(replace(options, batch=4), 3, latents, captions))
    monkeypatch.setattr(consistency, "workers", lambda: 2)
    for number in range(2):
        monkeypatch.setattr(consistency, "worker", lambda number=number: number)
        share = vars(consistency.draw_batch(replace(options, batch=4), 3, latents, captions))
        for name, value in whole.items():
            if name == "tokens":
                value = value.view(2, 4, -1)
                assert torch.equal(share[name].view(2, 2, -1), value[:, number::2])
            else:
                assert torch.equal(share[name], value[number::2])
    assert whole["goal"].min() >= -1 and whole["start"].max() <= 999


def test_embedded_scales_are_those_of_the_pipeline() -> None:
    scales = torch.tensor([2.0, 3.7, 6.0])
    embedded = consistency.embed_scales(scales)
    for row, scale in zip(embedded, scales.tolist(), strict=True):
        expected = guidance_scale_embedding(scale, models.GUIDANCE_CHANNELS)[0]
        # Angles in the thousands are exact to 1e-4 in float32.
        torch.testing.assert_close(row, expected, atol=1e-3, rtol=0)
