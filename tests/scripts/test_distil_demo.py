"""Distilling the demo model: its arithmetic, and both stages on a handful of pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import distil_demo
import train_demo
from sdpy.models import UNet2DConditionModel
from sdpy.pipelines import Components, Painted, Settings, generate
from sdpy.schedulers import DDIMScheduler, make_alphas_cumprod
from sdpy.zoo.files import find_files
from sdpy.zoo.variants import DEMO
from support.compare import normal, relative_error
from train_demo import Vocabulary


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> distil_demo.Options:
    """A run of everything on eight pictures, exported."""
    options = distil_demo.Options(
        run=tmp_path_factory.mktemp("run"),
        pictures=8,
        autoencoder_crops=2,
        autoencoder_pictures=2,
        denoiser_samples=2,
        batch=2,
        tiny_vae_pictures=4,
        consistency_samples=4,
        consistency_learning_rate=0.5,  # a step is to be seen in float16
    )
    folder = options.run / "files"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_demo, "SHEET_PROMPTS", ("a house",))
        patch.setattr(train_demo, "DEMO", replace(DEMO, bundled=folder))
        for stage in ("render", "vocabulary", "autoencoder", "latents", "denoiser", "export"):
            train_demo.STAGES[stage](options)
    return options


def paint(options: distil_demo.Options, files: dict[str, str], **settings: Any) -> torch.Tensor:
    variant = replace(DEMO, bundled=options.run / "files")
    given = {name: options.run / file for name, file in files.items()}
    components = Components(variant, find_files(variant, options.run, given))
    events = generate(components, Settings("a house", **settings), width=32, height=32)
    (picture,) = [event.picture for event in events if isinstance(event, Painted)]
    return picture


def test_the_tiny_autoencoder_paints(options: distil_demo.Options) -> None:
    distil_demo.distil_autoencoder(options)
    assert (options.run / "tiny-vae.png").exists()
    picture = paint(options, {"vae": distil_demo.TINY_VAE_FILE}, steps=2)
    assert picture.shape == (1, 3, 32, 32)
    assert picture.isfinite().all()
    assert relative_error(picture, paint(options, {}, steps=2)) > 0.01


def test_the_distilled_unet_paints_and_heeds_the_scale(options: distil_demo.Options) -> None:
    distil_demo.distil_consistency(options)
    few = {"steps": 4, "scheduler": "lcm"}
    files = {"unet": distil_demo.CONSISTENCY_FILE}
    pictures = [paint(options, files, guidance_scale=scale, **few) for scale in (2.0, 6.0)]
    assert all(picture.isfinite().all() for picture in pictures)
    assert not torch.equal(*pictures)


def test_one_step_of_the_solver_is_ddim_s() -> None:
    scheduler = DDIMScheduler(DEMO.noise, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    alphas = make_alphas_cumprod(DEMO.noise).float()
    starts = scheduler.timesteps[[0, 1, 20, 48]]
    noisy, velocity = normal(4, 4, 6, 5), normal(4, 4, 6, 5, seed=1)
    ours = distil_demo.ddim_step(alphas, noisy, velocity, starts, starts - 20)
    for i, start in enumerate(starts):
        expected = scheduler.step(velocity[i : i + 1], start, noisy[i : i + 1])
        assert relative_error(ours[i : i + 1], expected) <= 1e-5


def test_the_last_step_ends_at_clean_latents() -> None:
    alphas = make_alphas_cumprod(DEMO.noise).float()
    noisy, velocity = normal(1, 4, 6, 5), normal(1, 4, 6, 5, seed=1)
    start, goal = torch.tensor([19]), torch.tensor([-1])
    end = distil_demo.predicted_end(alphas, noisy, velocity, start)
    assert torch.equal(distil_demo.ddim_step(alphas, noisy, velocity, start, goal), end)
    assert torch.equal(distil_demo.predicted_end(alphas, end, velocity, goal), end)


def test_a_velocity_that_is_right_leads_along_the_walk_without_loss() -> None:
    alphas = make_alphas_cumprod(DEMO.noise).float()
    clean, noise = normal(3, 4, 6, 5), normal(3, 4, 6, 5, seed=1)
    start = torch.tensor([999, 519, 19])
    alpha = alphas[start][:, None, None, None]
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    noisy = distil_demo.mix(alphas, clean, noise, start)
    end = distil_demo.predicted_end(alphas, noisy, velocity, start)
    nearer = distil_demo.ddim_step(alphas, noisy, velocity, start, start - 20)
    torch.testing.assert_close(end, clean, atol=1e-5, rtol=1e-4)
    expected = distil_demo.mix(alphas, clean, noise, start - 20)
    torch.testing.assert_close(nearer, expected, atol=1e-5, rtol=1e-4)


def test_the_student_begins_as_its_teacher_whatever_the_scale() -> None:
    torch.manual_seed(0)
    teacher = UNet2DConditionModel(DEMO.unet)
    student = distil_demo.make_student(teacher)
    inputs = normal(2, 4, 8, 8), torch.tensor([900, 20]), normal(2, 77, 128)
    scale = normal(2, distil_demo.GUIDANCE_CHANNELS, seed=4)
    with torch.no_grad():
        assert torch.equal(student(*inputs, timestep_cond=scale), teacher(*inputs))


def test_two_processes_share_a_batch(
    options: distil_demo.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = torch.load(options.run / "latents.pt", weights_only=True)["latents"]
    words = Vocabulary(options.run / train_demo.MERGES_FILE)
    whole = vars(distil_demo.draw_walks(replace(options, batch=4), 3, data, words))
    monkeypatch.setattr(distil_demo, "workers", lambda: 2)
    for number in range(2):
        monkeypatch.setattr(distil_demo, "worker", lambda number=number: number)
        share = vars(distil_demo.draw_walks(replace(options, batch=4), 3, data, words))
        for name, value in whole.items():
            if name == "tokens":
                value = value.view(2, 4, -1)
                assert torch.equal(share[name].view(2, 2, -1), value[:, number::2])
            else:
                assert torch.equal(share[name], value[number::2])
    assert whole["goal"].min() >= -1 and whole["start"].max() <= 999
