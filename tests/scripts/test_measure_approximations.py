"""What the approximations are measured by: the tables' arithmetic, and a run with tiny models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import evaluate_demo as ev
import measure_approximations as measure
from support.tiny import TINY_V

README = Path(__file__).parents[2] / "README.md"


def test_likeness_is_the_mean_in_decibels() -> None:
    exact = [torch.zeros(1, 3, 4, 4)] * 2
    pictures = [torch.full((1, 3, 4, 4), 0.2), torch.full((1, 3, 4, 4), 0.02)]
    # Errors of a tenth and a hundredth of the range from -1 to 1.
    assert measure.likeness(pictures, exact) == pytest.approx((20 + 40) / 2)
    assert measure.likeness(exact, exact) == math.inf


def test_the_full_size_table_is_of_the_mean_step() -> None:
    seconds = {"whole": 10.0, "unguided": 5.0, "reused": 1.0, "decoder": 12.0}
    seconds |= {f"merging {ratio:g}": 8.0 for ratio in measure.MERGING_RATIOS} | {"tiny decoder": 3}
    lines = measure.full_size_table(seconds).splitlines()
    assert "| exact | 10.00 | 1.00 |" in lines
    assert "| `--deepcache 5` | 2.80 | 3.57 |" in lines
    assert "| `--token-merging 0.5` | 8.00 | 1.25 |" in lines
    assert "| `--guidance-interval 0.2,0.8` | 8.00 | 1.25 |" in lines
    assert "| tiny decoder (`--vae-weights`) | 3.00 | 4.00 |" in lines


def test_tables_are_put_between_their_comments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- measured: demo -->\nold\n<!-- end: demo -->\nb\n")
    for text in ("| \\1 |", "new"):
        measure.write_between(page, "demo", text)
        expected = f"a\n<!-- measured: demo -->\n\n{text}\n\n<!-- end: demo -->\nb\n"
        assert page.read_text() == expected
    with pytest.raises(ValueError, match="full-size"):
        measure.write_between(page, "full-size", "x")


@pytest.mark.parametrize("part", ["demo", "full-size"])
def test_the_readme_has_a_place_for_each_table(tmp_path: Path, part: str) -> None:
    page = tmp_path / "README.md"
    page.write_bytes(README.read_bytes())
    measure.write_between(page, part, "a table")
    assert "a table" in page.read_text(encoding="utf-8")


def test_every_part_of_a_larger_model_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SD15", TINY_V)
    given: list[dict[str, float]] = []
    monkeypatch.setattr(measure, "full_size_table", given.append)
    measure.measure_full_size(2, lambda _: None)
    parts = {"whole", "reused", "unguided", "decoder", "tiny decoder"}
    assert set(given[0]) == parts | {f"merging {ratio:g}" for ratio in measure.MERGING_RATIOS}
    assert all(seconds > 0 for seconds in given[0].values())


def test_every_way_is_painted_and_told(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(measure, "DEMO", TINY_V)
    torch.save(ev.Reader().state_dict(), tmp_path / ev.READER_FILE)
    page = tmp_path / "page.md"
    page.write_text("<!-- measured: demo -->\n<!-- end: demo -->\n")
    measure.main(
        [
            *("demo", "--run", str(tmp_path), "--files", str(tiny_data)),
            *("--prompts", "2", "--write", str(page)),
        ]
    )
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    ways = [way for way in measure.WAYS if not way.files]  # nothing is distilled
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {way.name}" for way in ways]
    assert rows[2].startswith("| exact | 1.00 |  |")
    assert all("inf" not in row and "nan" not in row for row in rows)
    assert page.read_text().split("\n\n")[1] in capsys.readouterr().out
