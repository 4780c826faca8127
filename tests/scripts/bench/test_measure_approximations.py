"""What the approximations are measured by: the tables' arithmetic, and a run with tiny models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from scripts import engine
from scripts.bench import measure_approximations as measure
from scripts.demo import scenes
from scripts.demo.classifier import CLASSIFIER_FILE, AttributeClassifier
from support.tiny import TINY_V


def test_the_psnr_is_the_mean_of_images_in_decibels() -> None:
    exact = [torch.zeros(1, 3, 4, 4)] * 2
    images = [torch.full((1, 3, 4, 4), 0.2), torch.full((1, 3, 4, 4), 0.02)]
    # Errors of a tenth and a hundredth of the range from -1 to 1.
    assert measure.mean_psnr(images, exact) == pytest.approx((20 + 40) / 2)
    assert measure.mean_psnr(exact, exact) == math.inf


def test_the_full_size_table_is_of_the_mean_step() -> None:
    seconds = {"whole": 10.0, "unguided": 5.0, "reused": 1.0, "decoder": 12.0}
    seconds |= {f"merging {ratio:g}": 8.0 for ratio in measure.MERGING_RATIOS} | {"tiny decoder": 3}
    lines = measure.full_size_table(seconds).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert ["exact", "10.00", "1.00"] in cells
    assert ["`--deepcache 5`", "2.80", "3.57"] in cells
    assert ["`--token-merging 0.5`", "8.00", "1.25"] in cells
    assert ["`--guidance-interval 0.2,0.8`", "8.00", "1.25"] in cells
    assert ["tiny decoder (`--vae-weights`)", "3.00", "4.00"] in cells


def test_every_part_of_a_larger_model_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SD15", TINY_V)
    given: list[dict[str, float]] = []
    monkeypatch.setattr(measure, "full_size_table", given.append)
    measure.measure_full_size(2)
    parts = {"whole", "reused", "unguided", "decoder", "tiny decoder"}
    assert set(given[0]) == parts | {f"merging {ratio:g}" for ratio in measure.MERGING_RATIOS}
    assert all(seconds > 0 for seconds in given[0].values())


def test_every_configuration_is_measured(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(engine, "DEMO", TINY_V)
    torch.save(AttributeClassifier(scenes.ATTRIBUTES).state_dict(), tmp_path / CLASSIFIER_FILE)
    page = tmp_path / "page.md"
    page.write_text("<!-- begin: approximations-demo -->\n<!-- end: approximations-demo -->\n")
    measure.main(
        [
            *("demo", "--run", str(tmp_path), "--files", str(tiny_data)),
            *("--prompts", "2", "--write", str(page)),
        ]
    )
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    names = [one.name for one in measure.CONFIGURATIONS if not one.files]  # nothing is distilled
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells[1:]] == names
    assert cells[1][:3] == ["exact", "1.00", ""]
    assert all("inf" not in row and "nan" not in row for row in rows)
    assert page.read_text().split("\n\n")[1] in capsys.readouterr().out
