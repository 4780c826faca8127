"""The progress display, on a terminal and elsewhere."""

from __future__ import annotations

import pytest

from sdpy.cli import display
from sdpy.cli.display import LineDisplay, QuietDisplay, TerminalDisplay, open_display


class Clock:
    """A clock that goes on by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def test_lines_of_steps(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = LineDisplay().bar(20, "image 1 of 2")
    for step in range(21):
        bar.update(step)
        clock.now += 4.0

    assert capsys.readouterr().err.splitlines() == [
        *(
            f"image 1 of 2: step {step} of 20, {4 * step} s, {80 - 4 * step} s left"
            for step in range(3, 20, 3)
        ),
        "image 1 of 2: step 20 of 20, 80 s",
    ]


def test_lines_of_bytes_count_what_was_there_as_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = LineDisplay().bar(5_000_000, "downloading a", "bytes")
    bar.update(1_000_000)  # of an earlier run
    clock.now += 10.0
    bar.update(2_000_000)
    clock.now += 1.0
    bar.update(3_000_000)
    bar.update(5_000_000)

    assert capsys.readouterr().err.splitlines() == [
        "downloading a: 2.0 MB of 5.0 MB, 30 s left",
        "downloading a: 5.0 MB of 5.0 MB",
    ]


def test_no_time_left_is_promised_while_nothing_moves(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = LineDisplay().bar(4, "image 1 of 1")
    bar.update(0)
    clock.now += 60.0
    bar.update(0)

    assert capsys.readouterr().err == "image 1 of 1: step 0 of 4, 60 s\n"


def test_bars_of_both_units_on_one_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with TerminalDisplay() as shown:
        shown.bar(20, "image [1] of 2").update(20)
        shown.bar(5_000_000, "downloading a", "bytes").update(2_500_000)
        shown.line("a [bold]note[/bold]")

    error = capsys.readouterr().err
    assert "image [1] of 2" in error and "20/20" in error
    assert "downloading a" in error and "2.5/5.0 MB" in error
    assert "a [bold]note[/bold]" in error


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with open_display(quiet=True) as shown:
        shown.line("a note")
        shown.bar(2, "image 1 of 1").update(2)

    assert isinstance(shown, QuietDisplay)
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with open_display(quiet=False) as shown:
        shown.line("a note")

    assert isinstance(shown, LineDisplay)
    assert capsys.readouterr() == ("", "a note\n")
