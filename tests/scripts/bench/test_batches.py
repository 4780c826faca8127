"""First and further images, batches, memory: the tables' arithmetic, and a run at tiny size."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from scripts.bench import batches
from scripts.bench.batches import ImageSeconds, Target
from scripts.bench.contest import ROOT, BenchError
from sdpy.pipelines.events import Event, Progress


def cells_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_first_images_has_medians() -> None:
    before = [ImageSeconds(*pair) for pair in ((8.0, 7.0), (9.0, 6.0), (30.0, 20.0))]
    found = {"demo": {batches.BEFORE: before, batches.COMMAND: [ImageSeconds(4.0, 1.0)]}}
    assert cells_of(batches.first_and_further_table(found))[2:] == [
        ["demo", batches.BEFORE, "9.00 s", "7.00 s"],
        ["", batches.COMMAND, "4.00 s", "1.00 s"],
    ]


def test_ratios_of_batches_are_taken_round_by_round() -> None:
    """The machine slowed down by half in between, which changes no ratio."""
    found = {"demo": {1: [1.0, 2.0, 4.0], 4: [0.5, 1.0, 2.0]}}
    assert cells_of(batches.batches_table(found))[2:] == [
        ["demo", "1", "2.00 s", ""],
        ["", "4", "1.00 s", "0.50 (0.50-0.50)"],
    ]


def test_the_table_of_memory_has_the_last_image_and_the_most() -> None:
    sizes = [100_000_000] * 60
    sizes[20] = 130_000_000
    assert cells_of(batches.memory_table({"demo": sizes}))[2:] == [
        *([f"after {n}", "100 MB"] for n in (1, 10, 50, 60)),
        ["most", "130 MB"],
    ]


def test_a_further_image_is_what_more_images_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run_process(command: list[str], environment: dict[str, str]) -> tuple[float, None]:
        commands.append(command)
        assert environment["PYTHONPATH"] == str(ROOT / "src")
        assert environment["OMP_NUM_THREADS"] == "3"
        count = int(command[command.index("--num-samples") + 1])
        return 5.0 + 2.0 * count, None

    monkeypatch.setattr(batches, "run_process", run_process)
    target = Target("", "demo", 128, steps=30, images=5, threads=3)
    found = batches.command_seconds(target, ROOT, ["--batch-size", "1"])
    assert found == ImageSeconds(7.0, 2.0)
    assert all(command[-2:] == ["--batch-size", "1"] for command in commands)


def test_a_batch_that_memory_does_not_suffice_for_is_no_measurement() -> None:
    events: list[Event] = [Progress(1, 4, 8, 0, 2), Progress(5, 8, 8, 0, 2)]
    batches.finish_batches(events, 4)
    with pytest.raises(BenchError, match="8 images at a time, only for 4"):
        batches.finish_batches(events, 8)


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--images", "1"], "further image"), (["--before", "/nowhere"], "no src/sdpy")],
)
def test_what_cannot_work_is_refused_at_once(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        batches.main(["batches", *words])
    assert told in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="others do not tell their memory")
def test_everything_at_tiny_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real processes, with this version in the place of an older one."""
    page = tmp_path / "page.md"
    places = [f"<!-- begin: {part} -->\n<!-- end: {part} -->\n" for part in batches.PARTS]
    page.write_text("\n".join(places))
    code = batches.main(
        [
            *(*batches.PARTS, "--model", "tiny-random", "--weights", str(tmp_path / "weights")),
            *("--images", "2", "--rounds", "1", "--batch-sizes", "1", "2", "--memory-images", "3"),
            *("--threads", "1", "--device", "cpu", "--before", str(ROOT), "--write", str(page)),
        ]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    parts = re.split(r"<!-- end: .* -->", page.read_text())
    first, several, memory = (cells_of(part) for part in parts[:3])
    label = "tiny model, 64x64, 2 steps"
    assert [row[:2] for row in first[2:]] == [
        [label, batches.BEFORE],
        ["", batches.COMMAND],
        ["", batches.SESSION],
    ]
    assert [row[:2] for row in several[2:]] == [[label, "1"], ["", "2"]]
    assert re.fullmatch(r"\d\.\d\d", several[3][3])
    assert [row[0] for row in memory] == ["images", memory[1][0], "after 1", "after 3", "most"]
    assert all(re.fullmatch(r"[\d,]{3,} MB", row[1]) for row in memory[2:])
    assert "1 thread, fp32." in page.read_text()
    assert printed.out.count("| ") > 20
