"""Shipping a trained demo model: its goals, its card, and what ends up in the package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scripts.demo import card, evaluate, ship
from scripts.demo.recipes import RECIPES
from scripts.demo.training import data, models
from sdpy.zoo.bundle import read_bundle
from sdpy.zoo.variants import bundled_variants
from support.tiny_recipe import TINY_RECIPE

GOOD = {"subject": 99.0, "colour": 98.0, "all": 97.0}
EVALUATION: dict[str, Any] = {
    "classifier": {"fresh renders (2000)": GOOD},
    "adherence": {
        "rows": {"renders": GOOD, "reconstructions": GOOD, "generated": GOOD},
        "by value": {"red": 93.0, "cat": 99.0},
    },
    "settings": {"10 steps, guidance 4": GOOD},
    "turbo": {"1 steps (54)": {**GOOD, "colour": 50.0}, "4 steps (216)": {**GOOD, "colour": 96.0}},
    "edits": {"img2img, strength 0.8: time": {"both": 97.5}},
    "cost": {"megabytes": 25.0, "seconds": {"demo": 5.0, "demo-turbo": 2.0}},
}
LOG = """\
18:10:00 autoencoder: step 100 of 100, mse 0.0010, 2.0 min
18:10:01 autoencoder: fresh images: 31.20 dB
18:12:00 denoiser: step 100 of 300, loss 0.2000, 1.0 min
18:14:00 denoiser: step 250 of 250, loss 0.1000, 2.0 min
18:15:00 decoder: fresh images: 32.50 dB
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that has been trained, exported and evaluated, or so it says."""
    monkeypatch.setitem(RECIPES, "tiny", TINY_RECIPE)
    monkeypatch.setattr(data, "MERGE_CAPTIONS", 500)
    folder = tmp_path / "run"
    models.write_untrained(TINY_RECIPE, folder / "files")
    (folder / "log.txt").write_text(LOG)
    options = {"batch": 512, "autoencoder_batch": 32, "device": "cuda"}
    (folder / "options.json").write_text(json.dumps(options))
    (folder / "clock.json").write_text(json.dumps({"render": 60.0, "denoiser": 240.0}))
    (folder / ship.EVALUATION_FILE).write_text(json.dumps(EVALUATION))
    return folder


def facts(run: Path, **changes: Any) -> card.Facts:
    found = card.Facts.of(run, run / "files", run / ship.EVALUATION_FILE)
    return replace(found, evaluation={**found.evaluation, **changes})


def test_a_run_is_read_from_what_it_left(run: Path) -> None:
    found = facts(run)
    assert found.decibels == 32.5
    assert found.steps == {"autoencoder": 100, "denoiser": 250}
    assert found.minutes == 5
    encoder = models.CLIPTextModel(TINY_RECIPE.variant.text_encoder)
    tiny = sum(p.numel() for p in encoder.parameters())
    assert found.parameters["text_encoder"] == tiny


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, None),
        ({"cost": {"megabytes": 31.0, "seconds": {}}}, "31.0 MB"),
        ({"cost": {"megabytes": 3.0, "seconds": {"demo": 6.5}}}, "demo takes 6.5 s"),
        ({"cost": {"megabytes": 3.0, "seconds": {"demo-turbo": 3.0}}}, "demo-turbo takes 3.0 s"),
        ({"turbo": {"4 steps": {**GOOD, "colour": 94.0}}}, "demo-turbo loses 4.0 points"),
        ({"classifier": {"fresh": {**GOOD, "colour": 97.0}}}, "the reader knows 97.0 %"),
    ],
)
def test_goals_are_missed_one_by_one(run: Path, change: Any, missed: str | None) -> None:
    told = [goal.what for goal in card.goals(facts(run, **change)) if not goal.reached]
    assert len(told) == (missed is not None)
    assert missed is None or missed in told[0]


def test_too_soft_an_autoencoder_is_a_goal_missed(run: Path) -> None:
    found = replace(facts(run), decibels=31.9)
    assert [g.what for g in card.goals(found) if not g.reached] == [
        "the autoencoder has 31.9 dB, at least 32"
    ]


def test_the_card_tells_what_was_measured(run: Path) -> None:
    text = " ".join(card.write_card(facts(run)).split())
    for words in (
        *("`unet_turbo.ot`", "64x64 pixels", "recipe is `tiny`", "snowman", "25.0 MB"),
        *("autoencoder: 100 steps of 32", "denoiser: 250 steps of 512", "32.5 dB", "5 minutes"),
        *("| generated | 99.0 | 98.0 | 97.0 |", "| 4 steps (216) | 99.0 | 96.0 |"),
        "least reliably: red (93 %)",
    ):
        assert words in text, words
    assert "cat (" not in text


def test_what_misses_a_goal_is_not_shipped(run: Path, tmp_path: Path, capsys) -> None:
    slow = {**EVALUATION, "cost": {"megabytes": 25.0, "seconds": {"demo": 7.0}}}
    (run / ship.EVALUATION_FILE).write_text(json.dumps(slow))
    package = tmp_path / "package"
    package.mkdir()
    with pytest.raises(SystemExit, match="not all goals are reached"):
        ship.main([str(run), "--package", str(package)])
    assert "MISSED : an image of demo takes 7.0 s" in capsys.readouterr().out
    assert not any(package.iterdir())


def test_a_folder_without_a_model_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no exported model"):
        ship.main([str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="error: .*SHA256SUMS"):
        ship.main([str(tmp_path / "run"), "--join", str(tmp_path)])


def test_a_shipped_model_is_what_the_command_runs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(ship, "MEDIA", {"cat": ("generate", "a cat at dusk", "--steps", "1")})
    package, media = tmp_path / "package", tmp_path / "media"
    for folder in (package, media):
        folder.mkdir()
    (package / "old.ot").write_bytes(b"former weights")
    ship.main([str(run), "--package", str(package), "--media", str(media)])
    assert {file.name for file in package.iterdir()} == {
        *("model.json", "merges.txt", "README.md"),
        *("text_encoder.ot", "unet.ot", "unet_turbo.ot", "vae.ot"),
    }
    assert [v.name for v in bundled_variants(package)] == ["demo", "demo-turbo"]
    assert read_bundle(package).recipe == "tiny"
    with Image.open(media / "cat.png") as image:
        assert image.size == (64, 64)
    assert "By hand" in capsys.readouterr().out


def test_the_cost_of_untrained_weights_is_that_of_a_whole_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(RECIPES, "tiny", TINY_RECIPE)
    monkeypatch.setattr(data, "MERGE_CAPTIONS", 500)
    monkeypatch.setattr(evaluate, "TIMED_PROCESSES", 1)
    report = tmp_path / "report.json"
    words = ["cost", "--run", str(tmp_path), "--recipe", "tiny", "--untrained"]
    evaluate.main([*words, "--json", str(report)])
    cost = json.loads(report.read_text())["cost"]
    assert set(cost["seconds"]) == {"demo", "demo-turbo"}
    assert all(seconds > 0.5 for seconds in cost["seconds"].values())
    assert f"{cost['megabytes']:.1f} MB" in capsys.readouterr().out


def test_the_parts_after_the_classifier_are_measured_with_the_one_there(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(evaluate, "main", asked.append)
    ship.measure(run, run / "files")
    assert not asked
    (run / ship.EVALUATION_FILE).unlink()
    ship.measure(run, run / "files")
    torch.save({}, run / ship.CLASSIFIER_FILE)
    ship.measure(run, run / "files")
    assert [words[0] for words in asked] == ["classifier", "adherence"]
