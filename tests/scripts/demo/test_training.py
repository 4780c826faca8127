"""The demo model's trainer: its arithmetic, and every stage on a handful of images."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.demo import scenes, train
from scripts.demo.recipes import RECIPES, Recipe
from scripts.demo.scene_sets import SCENES, WORLD
from scripts.demo.training import autoencoder, data, denoiser, diffusion, models
from scripts.demo.training.clock import stage_seconds
from scripts.demo.training.finite import NotFiniteError, first_not_finite
from scripts.demo.training.flops import describe_run
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.pieces import SUMS_FILE, join, split
from scripts.demo.training.trainer import Trainer
from scripts.engine import DemoModel
from sdpy.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    CLIPTextConfig,
    UNet2DConditionConfig,
)
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
    for stage in ("render", "vocabulary", "captions", "autoencoder", "latents"):
        train.STAGES[stage](options)
    return folder


ONE_PROMPT = replace(RECIPES["demo"], scenes=replace(SCENES, prompts=("a house",)))

TINY_WORLD = Recipe(
    "tiny",
    replace(
        DEMO,
        configs={
            "text_encoder": CLIPTextConfig(
                vocab_size=600,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
            ),
            "unet": UNet2DConditionConfig(
                in_channels=6,
                out_channels=6,
                block_out_channels=(16, 16),
                cross_attention=(False, True),
                attention_heads=(2, 2),
                layers_per_block=1,
                cross_attention_dim=16,
                norm_num_groups=8,
            ),
            "vae": AutoencoderKLConfig(
                latent_channels=6,
                block_out_channels=(8, 8, 8, 8),
                layers_per_block=1,
                norm_num_groups=4,
                scaling_factor=1.0,
            ),
        },
        sample_size=64,
        max_pixels=64 * 64,
    ),
    replace(WORLD, prompts=("a cat beside a red house",)),
)
"""Networks that learn nothing, with other scenes, latents and sizes than the bundled model's."""


def tiny_options(folder: Path, **changes: Any) -> TrainingOptions:
    sizes: dict[str, Any] = {
        "recipe": ONE_PROMPT,
        "images": 8,
        "versions": 3,
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


def test_the_captions_have_merges_enough_for_the_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MERGE_CAPTIONS", 2000)
    options = tiny_options(tmp_path, recipe=RECIPES["demo-256"])
    data.vocabulary(options)
    assert data.load_tokenizer(options).vocab_size == 850


def test_captions_become_rows_of_tokens(run: Path) -> None:
    tokenizer = data.load_tokenizer(tiny_options(run))
    captions = ["a red house", "", "red " * 100]
    rows = data.tokenize(tokenizer, captions, DEMO.text_encoder)
    assert rows.shape == (3, LENGTH)
    start, end = tokenizer.start_id, tokenizer.end_id
    house = tokenizer.encode("a red house")
    assert rows[0].tolist() == [start, *house] + [end] * (LENGTH - 1 - len(house))
    assert rows[1].tolist() == [start] + [end] * (LENGTH - 1)
    assert rows[2].tolist() == [start, *tokenizer.encode("red " * 100)[: LENGTH - 2], end]


def test_drawn_captions_are_those_of_their_images(run: Path) -> None:
    options = tiny_options(run)
    tokenizer, captions = data.load_tokenizer(options), data.CaptionSet(options)
    index = torch.tensor([5, 0, 5, 2] * 16)
    drawn = captions.draw(index, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64 and drawn.shape == (64, LENGTH)
    seen = set()
    for image, row in zip(index.tolist(), drawn, strict=True):
        texts = [scenes.caption_at(image, options.seed, version=v) for v in range(3)]
        expected = data.tokenize(tokenizer, texts, DEMO.text_encoder).tolist()
        assert row.tolist() in expected
        seen.add((image, expected.index(row.tolist())))
    assert len(seen) == 9
    silent = captions.draw(index, torch.Generator().manual_seed(0), empty=1.0)
    empty = torch.from_numpy(data.tokenize(tokenizer, [""], DEMO.text_encoder))
    assert torch.equal(silent, empty.expand(64, -1))


def test_batches_of_images_are_windows_of_them(run: Path) -> None:
    images = data.ImageSet(tiny_options(run))
    assert images.count == 8
    whole = images.batch(torch.tensor([3, 1]))
    for image, index in zip(whole, (3, 1), strict=True):
        pixels = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        drawn = scenes.draw(scenes.scene_at(index, 0), 128)
        assert torch.equal(pixels, torch.from_numpy(drawn))
    window = images.batch(torch.tensor([3, 1]), crop=32, at=(7, 90))
    assert torch.equal(window, whole[:, :, 7:39, 90:122])


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
    monkeypatch.setattr(torch, "rand", lambda batch, **_: torch.full((batch,), greatest))
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


def test_every_option_is_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, TrainingOptions]] = []
    for stage in train.STAGES:
        monkeypatch.setitem(
            train.STAGES, stage, lambda options, stage=stage: seen.append((stage, options))
        )
    words = [str(tmp_path), "denoiser", "decoder", "--batch", "8", "--device", "cuda"]
    words += ["--bundle", "b", "--minutes", "9", "--compile", "--recipe", "demo-256"]
    train.main(words)
    expected = TrainingOptions(
        tmp_path,
        recipe=RECIPES["demo-256"],
        device="cuda",
        compile=True,
        minutes=9.0,
        batch=8,
        bundle=Path("b"),
    )
    assert seen == [("denoiser", expected), ("decoder", expected)]


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
    assert image.shape == (1, 3, 128, 128)
    assert torch.isfinite(image).all()


def test_everything_is_trained_in_a_given_time_and_carried_away(tmp_path: Path) -> None:
    """All stages of a recipe with other scenes and six channels a latent, to the last piece."""
    files = tmp_path / "files"
    options = tiny_options(tmp_path / "run", recipe=TINY_WORLD, minutes=0.2, bundle=files)
    options.run.mkdir()
    for stage in train.ALL:
        train.STAGES[stage](options)
    log = (options.run / "log.txt").read_text()
    assert all(f"{stage}: " in log for stage in train.ALL)
    assert "steps a second" in log
    model = DemoModel.open(files, variant=TINY_WORLD.variant)
    image = model.generate("a cat beside a red house", seed=0, steps=2)
    assert image.shape == (1, 3, 64, 64) and torch.isfinite(image).all()
    pieces = split(models.results(options), tmp_path / "pieces")
    names = {file.name for file in join(tmp_path / "pieces", tmp_path / "back")}
    assert {"unet.ot", "vae.ot", "text_encoder.ot", "merges.txt", "sheet.png"} <= names
    assert all(piece.stat().st_size <= 16e6 for piece in pieces)


# -- time ----------------------------------------------------------------------------------------


def test_stages_share_the_time_that_is_left() -> None:
    options = TrainingOptions(Path(), minutes=10.0)
    shares = options.recipe.shares
    assert sum(shares.values()) == pytest.approx(1)
    for stage, share in shares.items():
        assert stage_seconds(options, stage) == pytest.approx(
            600 * share / sum(list(shares.values())[list(shares).index(stage) :])
        )
    on_time = {"render": 600 * shares["render"]}
    assert stage_seconds(options, "vocabulary", on_time) == pytest.approx(
        600 * shares["vocabulary"]
    )
    assert stage_seconds(options, "export", {"render": 700.0}) == 0
    assert stage_seconds(options, "tiny-vae") is None
    assert stage_seconds(TrainingOptions(Path()), "render") is None


def test_a_limited_stage_plans_its_steps_by_its_speed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At half a second a step, 60 s hold 120 steps; the rate falls to nothing at their end."""
    options = tiny_options(run, minutes=60.0, denoiser_samples=4)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    trainer = Trainer(options, "timed", {"layer": torch.nn.Linear(2, 1)}, 2, log_every=10)
    trainer.clock.limit = 60.0
    rates = []

    def loss_at(step: int) -> torch.Tensor:
        now[0] += 0.5
        return trainer.models["layer"](torch.ones(1, 2)).square().mean()

    for _ in trainer.train(loss_at):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert trainer.step == pytest.approx(120, abs=2)
    # It rises over 200 steps and falls over the last third of 120: the lines cross at step 100.
    assert max(rates) == pytest.approx(options.learning_rate * 100 / 200, rel=0.1)
    assert rates[-1] < 0.1 * max(rates)


def test_a_dry_run_tells_what_each_stage_would_do(run: Path) -> None:
    options = tiny_options(run, minutes=10.0)
    told = describe_run(options, teraflops=1.0)
    rows = {
        cells[1]: cells[2:5]
        for line in told.splitlines()[2:]
        for cells in [[cell.strip() for cell in line.split("|")]]
    }
    assert list(rows) == list(options.recipe.shares)
    used = {stage: float(cells[0].split()[0]) for stage, cells in rows.items() if cells[0]}
    seconds = stage_seconds(options, "denoiser", used)
    assert seconds == pytest.approx(used["denoiser"], rel=0.02)
    count = int(rows["denoiser"][2].split()[0].replace(",", ""))
    assert count == pytest.approx(used["denoiser"] * 1e3 / float(rows["denoiser"][1]), rel=0.02)
    assert rows["latents"][2] == "8 images"


# -- numbers that go wrong -----------------------------------------------------------------------


class Poisoned(torch.nn.Module):
    """Passes its input on, and makes an output or a gradient infinite when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.output = self.gradient = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.output:
            return x / 0
        # The square root's slope at 0 is infinite.
        return x + (x * 0).abs().sqrt() if self.gradient else x


def poisoned_model() -> torch.nn.ModuleDict:
    layers = [torch.nn.Linear(2, 2), Poisoned(), torch.nn.Linear(2, 1)]
    return torch.nn.ModuleDict({"net": torch.nn.Sequential(*layers)})


@pytest.mark.parametrize(
    ("poison", "place"),
    [
        ("output", "output of net.1"),
        ("gradient", "gradient of the output of net.0"),
        (None, "nothing"),
    ],
)
def test_the_first_module_that_goes_wrong_is_named(poison: str | None, place: str) -> None:
    model = poisoned_model()
    if poison is not None:
        setattr(model["net"][1], poison, True)
    assert first_not_finite(model, lambda: model["net"](torch.ones(1, 2)).mean()) == place


def test_training_stops_at_the_first_step_that_is_not_finite(run: Path) -> None:
    trainer = Trainer(tiny_options(run), "broken", poisoned_model(), 20, log_every=5)
    weights = {}

    def loss_at(step: int) -> torch.Tensor:
        trainer.models["net"][1].output = step == 6
        if step == 6:
            weights.update({k: v.clone() for k, v in trainer.models.state_dict().items()})
        return trainer.models["net"](torch.ones(1, 2)).square().mean()

    with pytest.raises(NotFiniteError, match=r"not finite in step 6: output of net\.1\..*fp32"):
        for _ in trainer.train(loss_at):
            pass
    # Nothing was learned from that step or those after it.
    for name, value in trainer.models.state_dict().items():
        assert torch.equal(value, weights[name])


# -- pieces --------------------------------------------------------------------------------------


def test_pieces_join_to_what_was_split(tmp_path: Path) -> None:
    files = []
    for name, size in (("a.ot", 2500), ("b.txt", 7)):
        files.append(tmp_path / name)
        files[-1].write_bytes(bytes(range(256)) * 10 if size > 2500 else bytes(size))
    pieces = split(files, tmp_path / "pieces", size=1000)
    assert all(piece.stat().st_size <= 1000 for piece in pieces)
    joined = join(tmp_path / "pieces", tmp_path / "back")
    assert [file.read_bytes() for file in joined] == [file.read_bytes() for file in files]
    pieces[1].write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="results.zip.001.*damaged"):
        join(tmp_path / "pieces", tmp_path / "back")
    assert (tmp_path / "pieces" / SUMS_FILE).exists()
