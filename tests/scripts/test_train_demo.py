"""The demo model's trainer: its arithmetic, and every stage on a handful of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import demo_scenes as scenes
import train_demo
from sdpy.models import AutoencoderKL
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.variants import DEMO
from train_demo import Options, Vocabulary

LENGTH = DEMO.text_encoder.max_position_embeddings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose autoencoder has seen eight pictures, which leaves everything to be desired."""
    folder = tmp_path_factory.mktemp("run")
    options = tiny_options(folder)
    for stage in ("render", "vocabulary", "autoencoder", "latents"):
        train_demo.STAGES[stage](options)
    return folder


@pytest.fixture(autouse=True)
def one_picture_a_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_demo, "SHEET_PROMPTS", ("a house",))


def tiny_options(folder: Path, **changes: int) -> Options:
    sizes = {
        "pictures": 8,
        "autoencoder_crops": 4,
        "autoencoder_pictures": 2,
        "denoiser_samples": 8,
        "decoder_pictures": 2,
        "batch": 2,
    }
    return Options(run=folder, **(sizes | changes))


def test_the_vocabulary_encodes_captions_as_the_tokenizer_does(run: Path) -> None:
    ours = Vocabulary(run / train_demo.MERGES_FILE)
    tokenizer = CLIPTokenizer.from_file(
        run / train_demo.MERGES_FILE, vocab_size=DEMO.text_encoder.vocab_size
    )
    captions = [scenes.caption_at(i, seed=5) for i in range(500)]
    captions += ["", "red " * 100, "a cat-like robot, 2 trees..."]
    for caption in captions:
        tokens = [tokenizer.start_id, *tokenizer.encode(caption)[: LENGTH - 2], tokenizer.end_id]
        padding = [tokenizer.end_id] * (LENGTH - len(tokens))
        assert ours.encode(caption) == tokens + padding


def test_folding_normalises_latents_and_keeps_pictures() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(DEMO.vae).double().requires_grad_(False)
    picture = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    before, painted = vae.encode(picture), vae.decode(vae.encode(picture).mean)
    mean, std = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5

    train_demo.fold_normalisation(vae, mean, std)

    after = vae.encode(picture)
    scale = std[:, None, None]
    torch.testing.assert_close(after.mean, (before.mean - mean[:, None, None]) / scale)
    torch.testing.assert_close(after.std, before.std / scale)
    torch.testing.assert_close(vae.decode(after.mean), painted)


def test_latents_of_the_run_are_normalised(run: Path) -> None:
    latents = torch.load(run / "latents.pt", weights_only=True)["latents"].float()
    assert latents.shape == (8, 4, 32, 32)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-2, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


def test_a_resumed_stage_ends_where_an_uninterrupted_one_does(run: Path) -> None:
    options = tiny_options(run)
    train_demo.denoiser(options)
    state = run / "denoiser.pt"
    whole = torch.load(state, weights_only=True)
    state.unlink()

    class Interrupted(Exception):
        pass

    original = train_demo.Training.update

    def update(self: train_demo.Training, loss: torch.Tensor) -> None:
        original(self, loss)
        if self.step == 2:
            self.save()
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_demo.Training, "update", update)
        with pytest.raises(Interrupted):
            train_demo.denoiser(options)
    train_demo.denoiser(options)

    resumed = torch.load(state, weights_only=True)
    assert resumed["step"] == whole["step"] == 4
    for name, value in whole["averages"].items():
        torch.testing.assert_close(resumed["averages"][name], value, rtol=0, atol=1e-6)


def test_export_writes_files_that_the_pipeline_loads(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from sdpy.pipelines import Components, Painted, Settings, generate
    from sdpy.zoo.files import find_files

    bundled = replace(DEMO, bundled=tmp_path)
    monkeypatch.setattr(train_demo, "DEMO", bundled)
    options = tiny_options(run)
    for stage in ("denoiser", "decoder", "export"):
        train_demo.STAGES[stage](options)
    components = Components(bundled, find_files(bundled, tmp_path))
    events = generate(components, Settings("a house", steps=1), width=64, height=64)
    (painted,) = [event for event in events if isinstance(event, Painted)]
    assert painted.picture.shape == (1, 3, 64, 64)
    assert torch.isfinite(painted.picture).all()
