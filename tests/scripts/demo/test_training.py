"""The demo model's trainer: its arithmetic, and every stage on a handful of images."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.demo import scenes, ship, train
from scripts.demo.recipes import RECIPES
from scripts.demo.scene_sets import SCENES, WORLD
from scripts.demo.training import autoencoder, data, denoiser, diffusion
from scripts.demo.training.clock import stage_seconds
from scripts.demo.training.finite import NotFiniteError, first_not_finite
from scripts.demo.training.flops import describe_run
from scripts.demo.training.options import TrainingOptions
from scripts.demo.training.pieces import SUMS_FILE, join, split
from scripts.demo.training.renderer import Renderer, RenderError, tokenize
from scripts.demo.training.trainer import Trainer
from scripts.engine import DemoModel
from sdpy.models import AutoencoderKL
from sdpy.schedulers.ddim import DDIMScheduler
from sdpy.schedulers.noise import make_alphas_cumprod
from sdpy.zoo.bundle import BUNDLE, read_bundle
from sdpy.zoo.variants import DEMO, bundled_variants
from support.compare import normal, relative_error
from support.tiny_recipe import TINY_RECIPE

LENGTH = DEMO.text_encoder.max_position_embeddings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose autoencoder has seen eight images, which leaves everything to be desired."""
    folder = tmp_path_factory.mktemp("run")
    options = tiny_options(folder)
    for stage in ("vocabulary", "render", "autoencoder", "latents"):
        train.STAGES[stage](options)
    return folder


ONE_PROMPT = replace(RECIPES["demo"], scenes=replace(SCENES, prompts=("a house",)))

TINY_WORLD = replace(TINY_RECIPE, scenes=replace(WORLD, prompts=("a cat beside a red house",)))


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


def test_the_bundled_model_is_of_its_recipe() -> None:
    variant = RECIPES[read_bundle(BUNDLE).recipe].variant
    assert (DEMO.configs, DEMO.tiny_vae) == (variant.configs, variant.tiny_vae)
    assert (DEMO.summary, DEMO.sample_size) == (variant.summary, variant.sample_size)


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
    rows = tokenize(tokenizer, captions, LENGTH)
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
        expected = tokenize(tokenizer, texts, LENGTH).tolist()
        assert row.tolist() in expected
        seen.add((image, expected.index(row.tolist())))
    assert len(seen) == 9
    silent = captions.draw(index, torch.Generator().manual_seed(0), empty=1.0)
    empty = torch.from_numpy(tokenize(tokenizer, [""], LENGTH))
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
    monkeypatch.setattr(train, "prepare_device", lambda options: None)
    monkeypatch.setattr(train, "free_memory", lambda options: None)
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


def test_everything_is_trained_in_a_given_time_and_carried_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stages of a recipe with other scenes and six channels a latent, to the last piece."""
    monkeypatch.setitem(RECIPES, "tiny", TINY_WORLD)
    monkeypatch.setattr(data, "MERGE_CAPTIONS", 500)
    run, sizes = tmp_path / "run", tiny_options(tmp_path)
    words = [str(run), "all", "--recipe", "tiny", "--minutes", "0.2"]
    for name in ("images", "versions", "batch"):
        words += [f"--{name}", str(getattr(sizes, name))]
    train.main([*words, "--pieces", str(tmp_path / "pieces")])
    log = (run / "log.txt").read_text()
    assert all(f"{stage}: " in log for stage in train.ALL)
    assert log.count("export: ") == 3
    assert "steps a second" in log
    used = json.loads((run / "clock.json").read_text())
    assert set(used) == set(TINY_WORLD.shares)
    ship.join(tmp_path / "pieces", tmp_path / "back")
    assert (tmp_path / "back" / "sheet.png").exists()
    files = tmp_path / "back" / "files"
    assert read_bundle(files).recipe == "tiny"
    demo, turbo = bundled_variants(files)
    for variant, steps in ((demo, 2), (turbo, 1)):
        model = DemoModel.open(files, variant=variant)
        image = model.generate("a cat beside a red house", 0, steps=steps)
        assert image.shape == (1, 3, 64, 64) and torch.isfinite(image).all()
    assert all(piece.stat().st_size <= 16e6 for piece in (tmp_path / "pieces").iterdir())


# -- drawing beside the training -----------------------------------------------------------------


def test_images_are_drawn_beside_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingOptions, "draws_beside_training", True)
    monkeypatch.setattr(data, "FIRST_IMAGES", 3)
    monkeypatch.setattr(data, "MERGE_CAPTIONS", 500)
    options = tiny_options(tmp_path, recipe=TINY_WORLD, images=10**6, minutes=60.0)
    data.vocabulary(options)
    data.render(options)
    images = data.ImageSet(options)
    first = images.count
    assert first >= 3
    renderer = data._DRAWING[options.run]
    renderer.wait(first + 1)
    images.extend()
    assert images.count > first
    data.finish_drawing(options)
    assert renderer.process.poll() is not None  # nobody is left to draw another
    drawn = len(data.load_images(options))
    assert drawn >= images.count
    for index in (0, drawn - 1):
        scene = options.recipe.scenes.scene_at(index, 0)
        assert (data.load_images(options)[index] == options.recipe.scenes.draw(scene, 64)).all()
    assert data.CaptionSet(options).ids.shape == (drawn, 3, LENGTH)
    data.finish_drawing(options)  # there is nothing to stop any more


def test_drawing_goes_on_after_the_last_whole_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MERGE_CAPTIONS", 500)
    options = tiny_options(tmp_path, recipe=TINY_WORLD, images=5)
    data.vocabulary(options)
    job = data.render_job(options)
    parts = [job.draw(index) for index in range(3)]
    job.images.write_bytes(b"".join(pixels for pixels, _ in parts[:2]) + b"half an image")
    job.captions.write_bytes(b"".join(ids for _, ids in parts))
    assert job.drawn == 2
    data.render(options)
    assert job.images.read_bytes() == b"".join(job.draw(i)[0] for i in range(5))
    assert job.captions.read_bytes() == b"".join(job.draw(i)[1] for i in range(5))


def test_drawing_that_fails_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = tiny_options(tmp_path, recipe=TINY_WORLD)
    with pytest.raises(RenderError, match="run the stage vocabulary first"):
        data.render(options)
    with pytest.raises(RenderError, match="ended with code 1"):
        Renderer(data.render_job(options)).wait(8)
    assert "merges.txt" in capfd.readouterr().err


def test_a_missing_gpu_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="error: --device cuda: torch finds no GPU here"):
        train.main([str(tmp_path / "run"), "vocabulary", "--device", "cuda"])


# -- time ----------------------------------------------------------------------------------------


def test_stages_share_the_time_that_is_left() -> None:
    options = TrainingOptions(Path(), minutes=10.0)
    shares = options.recipe.shares
    assert sum(shares.values()) == pytest.approx(1)
    for stage, share in shares.items():
        assert stage_seconds(options, stage) == pytest.approx(
            600 * share / sum(list(shares.values())[list(shares).index(stage) :])
        )
    on_time = {"vocabulary": 600 * shares["vocabulary"]}
    assert stage_seconds(options, "render", on_time) == pytest.approx(600 * shares["render"])
    # An early export takes from all that follow; what a stage has used itself is its own.
    early = {**on_time, "render": 600 * shares["render"], "export": 60.0}
    rest = 1 - shares["vocabulary"] - shares["render"]
    assert stage_seconds(options, "autoencoder", {**early, "autoencoder": 5.0}) == pytest.approx(
        (600 * rest - 60) * shares["autoencoder"] / rest
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
    names = list(options.recipe.shares)
    before = {name: used[name] for name in names[: names.index("denoiser")]}
    seconds = stage_seconds(options, "denoiser", before)
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
