"""The demo model's trainer: its arithmetic, and every stage on a handful of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.demo import train
from scripts.demo.training import autoencoder, data, denoiser, diffusion
from scripts.demo.training.options import TrainingOptions, parse_arguments
from scripts.demo.training.trainer import Trainer
from scripts.engine import DemoModel
from sdpy.models import AutoencoderKL
from sdpy.schedulers.ddim import DDIMScheduler
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.zoo.variants import DEMO
from support.compare import normal, relative_error

LENGTH = DEMO.text_encoder.max_position_embeddings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose autoencoder has seen eight images, which leaves everything to be desired."""
    folder = tmp_path_factory.mktemp("run")
    options = tiny_options(folder)
    for stage in ("render", "vocabulary", "autoencoder", "latents"):
        train.STAGES[stage](options)
    return folder


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "SHEET_PROMPTS", ("a house",))


def tiny_options(folder: Path, **changes: Any) -> TrainingOptions:
    sizes: dict[str, Any] = {
        "images": 8,
        "autoencoder_crops": 4,
        "autoencoder_images": 2,
        "denoiser_samples": 8,
        "decoder_images": 2,
        "batch": 2,
    }
    return TrainingOptions(run=folder, **(sizes | changes))


def test_merges_join_the_most_frequent_pairs_first() -> None:
    # "a" and "b</w>" stand beside each other three times; then "c" and "ab</w>" twice.
    merges = data.learn_merges(["ab cab", "Cab, 7"], 9)
    assert merges == [("a", "b</w>"), ("c", "ab</w>")]


def test_merges_are_those_of_the_bundled_model(tmp_path: Path) -> None:
    assert DEMO.bundled is not None
    data.vocabulary(tiny_options(tmp_path))
    assert (tmp_path / data.MERGES_FILE).read_bytes() == (
        DEMO.bundled / data.MERGES_FILE
    ).read_bytes()


def test_captions_become_rows_of_tokens(run: Path) -> None:
    tokenizer = data.load_tokenizer(run)
    captions = ["a red house", "", "red " * 100]
    rows = data.tokenize(tokenizer, captions)
    assert rows.shape == (3, LENGTH)
    start, end = tokenizer.start_id, tokenizer.end_id
    house = tokenizer.encode("a red house")
    assert rows[0].tolist() == [start, *house] + [end] * (LENGTH - 1 - len(house))
    assert rows[1].tolist() == [start] + [end] * (LENGTH - 1)
    assert rows[2].tolist() == [start, *tokenizer.encode("red " * 100)[: LENGTH - 2], end]


def test_timesteps_are_spread_over_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    timesteps = diffusion.stratified_timesteps(10, 1000, generator)
    assert timesteps.dtype == torch.int64
    assert (timesteps // 100).tolist() == list(range(10))


def test_no_timestep_is_rounded_up_to_one_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """31 and the greatest float32 below 1 add up to 32."""
    greatest = 1 - 2**-24
    monkeypatch.setattr(torch, "rand", lambda batch, generator: torch.full((batch,), greatest))
    timesteps = diffusion.stratified_timesteps(32, 1000, torch.Generator())
    assert timesteps[-1] == 999


def test_training_adds_noise_as_the_scheduler_does() -> None:
    scheduler = DDIMScheduler(DEMO.noise, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    alphas = make_alphas_cumprod(DEMO.noise).float()
    clean, noise = normal(4, 4, 6, 5), normal(4, 4, 6, 5, seed=1)
    timesteps = torch.tensor([int(scheduler.timesteps[i]) for i in (0, 5, 12, 19)])
    noisy = diffusion.add_noise(alphas, clean, noise, timesteps)
    for i, timestep in enumerate(timesteps):
        expected = scheduler.add_noise(clean[i : i + 1], noise[i : i + 1], timestep)
        assert relative_error(noisy[i : i + 1], expected) <= 1e-6


def test_a_velocity_tells_latents_and_noise_apart() -> None:
    alphas = make_alphas_cumprod(DEMO.noise).float()
    clean, noise = normal(3, 4, 6, 5), normal(3, 4, 6, 5, seed=1)
    timesteps = torch.tensor([999, 400, 3])
    noisy = diffusion.add_noise(alphas, clean, noise, timesteps)
    velocity = diffusion.velocity_of(alphas, clean, noise, timesteps)
    torch.testing.assert_close(
        diffusion.predicted_clean(alphas, noisy, velocity, timesteps), clean, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        diffusion.predicted_noise(alphas, noisy, velocity, timesteps), noise, atol=1e-5, rtol=1e-4
    )


def test_every_option_is_a_flag() -> None:
    words = ["runs/x", "denoiser", "decoder", "--batch", "8", "--device", "cuda", "--bundle", "b"]
    options, stages = parse_arguments(
        "", TrainingOptions, ["batch", "device", "bundle", "seed"], list(train.STAGES), words
    )
    assert stages == ["denoiser", "decoder"]
    expected = TrainingOptions(Path("runs/x"), device="cuda", batch=8, bundle=Path("b"))
    assert options == expected


def test_folding_normalises_latents_and_keeps_images() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(DEMO.vae).double().requires_grad_(False)
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    before, decoded = vae.encode(image), vae.decode(vae.encode(image).mean)
    mean, std = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5

    autoencoder.fold_normalisation(vae, mean, std)

    after = vae.encode(image)
    scale = std[:, None, None]
    torch.testing.assert_close(after.mean, (before.mean - mean[:, None, None]) / scale)
    torch.testing.assert_close(after.std, before.std / scale)
    torch.testing.assert_close(vae.decode(after.mean), decoded)


def test_latents_of_the_run_are_normalised(run: Path) -> None:
    latents = torch.load(run / "latents.pt", weights_only=True)["latents"].float()
    assert latents.shape == (8, 4, 32, 32)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-2, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


def test_a_resumed_stage_ends_where_an_uninterrupted_one_does(run: Path) -> None:
    options = tiny_options(run)
    denoiser.train_denoiser(options)
    state = run / "denoiser.pt"
    whole = torch.load(state, weights_only=True)
    state.unlink()

    class Interrupted(Exception):
        pass

    original = Trainer.update

    def update(self: Trainer, loss: torch.Tensor) -> None:
        original(self, loss)
        if self.step == 2:
            self.save()
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        with pytest.raises(Interrupted):
            denoiser.train_denoiser(options)
    denoiser.train_denoiser(options)

    resumed = torch.load(state, weights_only=True)
    assert resumed["step"] == whole["step"] == 4
    for name, value in whole["averages"].items():
        torch.testing.assert_close(resumed["averages"][name], value, rtol=0, atol=1e-6)


def test_export_writes_files_that_sdpy_loads(run: Path, tmp_path: Path) -> None:
    options = tiny_options(run, bundle=tmp_path)
    for stage in ("denoiser", "decoder", "export"):
        train.STAGES[stage](options)
    image = DemoModel.open(tmp_path).generate("a house", seed=0, steps=1)
    assert image.shape == (1, 3, data.SIZE, data.SIZE)
    assert torch.isfinite(image).all()
