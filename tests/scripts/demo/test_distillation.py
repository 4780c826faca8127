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
from scripts.demo.training.denoiser import token_ids
from scripts.demo.training.diffusion import add_noise, predicted_clean
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.tiny_autoencoder import TINY_VAE_FILE, distil_autoencoder
from scripts.engine import DemoModel
from sdpy.checkpoints import write_checkpoint
from sdpy.models import UNet2DConditionModel
from sdpy.models.embeddings import guidance_scale_embedding
from sdpy.runtime.devices import seeded_generator
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
    options: TrainingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consistency, "REPORTED_SAMPLES", 1)
    monkeypatch.setattr(consistency, "REPORTED_STEPS", 1)
    consistency.distil_consistency(options)
    assert "consistency: 1 steps: " in (options.run / "log.txt").read_text()
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


MEAN, DEVIATION = 0.7, 0.6
ALPHAS = make_alphas_cumprod(DEMO.noise).float()


def gaussian_velocity(latents: torch.Tensor, timestep: int) -> torch.Tensor:
    """What a perfect teacher predicts whose latents have this mean and this deviation."""
    alpha = ALPHAS[timestep]
    variance = alpha * DEVIATION**2 + 1 - alpha
    noise = (1 - alpha).sqrt() * (latents - alpha.sqrt() * MEAN) / variance
    clean = MEAN + alpha.sqrt() * DEVIATION**2 * (latents - alpha.sqrt() * MEAN) / variance
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def gaussian_end(latents: torch.Tensor, timestep: int) -> torch.Tensor:
    """Where its trajectory ends: it keeps its distance from the mean, in deviations."""
    alpha = ALPHAS[timestep]
    deviations = (latents - alpha.sqrt() * MEAN) / (alpha * DEVIATION**2 + 1 - alpha).sqrt()
    return MEAN + DEVIATION * deviations


def test_a_perfect_student_is_at_its_teacher_s_end_in_any_number_of_steps() -> None:
    def perfect(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        alpha = ALPHAS[timestep]
        return (alpha.sqrt() * latents - gaussian_end(latents, timestep)) / (1 - alpha).sqrt()

    for steps in (1, 2, 4):
        errors = {}
        for name, student in (("perfect", perfect), ("undistilled", gaussian_velocity)):
            generators = [seeded_generator(seed) for seed in range(64)]
            noise = torch.stack([torch.randn(4, 4, 4, generator=g) for g in generators])
            errors[name] = consistency.step_errors(
                DEMO.noise, student, gaussian_velocity, noise, steps, generators
            )
        # The solver's parts are long enough for an error of their own.
        assert len(errors["perfect"]) == steps and max(errors["perfect"]) < 0.05
        assert errors["undistilled"][0] > 0.3


def test_noise_that_is_used_again_gives_images_of_another_kind() -> None:
    """With its own noise, clean latents make a place where no training sample ever is."""
    noise = normal(64, 4, 8, 8)
    start, later = torch.tensor([999]), torch.tensor([499])
    clean = gaussian_end(noise, 999)
    fresh = add_noise(ALPHAS, clean, normal(64, 4, 8, 8, seed=1), later)
    again = add_noise(ALPHAS, clean, noise, later)
    assert gaussian_end(fresh, 499).std() == pytest.approx(DEVIATION, rel=0.02)
    assert gaussian_end(again, 499).std() > 1.15 * DEVIATION
    assert gaussian_end(noise, int(start)).std() == pytest.approx(DEVIATION, rel=0.02)


def test_the_student_samples_as_the_command_does(options: TrainingOptions) -> None:
    """With the same noise and words, the places that are judged are those that sdpy gets to."""
    teacher, prompt, steps = models.load_denoiser(options), "a house", 4
    student = consistency.make_student(teacher["unet"], options.recipe.variant.unet)
    with torch.no_grad():
        student.time_embedding.cond_proj.weight.normal_()
    write_checkpoint(options.run / "student.safetensors", student.state_dict())
    words = {"text_encoder": options.run / "words.safetensors"}
    write_checkpoint(words["text_encoder"], teacher["text"].state_dict())
    variant = DEMO.with_configs(unet=models.student_config(DEMO.unet))
    model = DemoModel.open(
        options.bundle,
        variant=variant,
        files={"unet": options.run / "student.safetensors", **words},
    )
    expected = model.denoise(prompt, 7, "lcm", steps)

    context = teacher["text"](token_ids(options, [prompt]))
    scale = consistency.embed_scales(torch.tensor([DEMO.guidance_scale]))
    reached: list[torch.Tensor] = []

    def predicted(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        reached.append(latents)
        with torch.no_grad():
            return student(latents, torch.tensor([timestep]), context, timestep_cond=scale)

    generator = seeded_generator(7)
    noise = torch.randn(1, *options.recipe.latents_shape, generator=generator)
    consistency.step_errors(
        DEMO.noise, predicted, gaussian_velocity, noise, steps, generators=[generator]
    )
    assert len(reached) == len(expected) == steps
    for ours, theirs in zip(reached[1:], expected, strict=False):
        assert relative_error(ours, theirs) <= 1e-4


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
