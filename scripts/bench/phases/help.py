"""``sdpy --help``, beside a program with nothing but Typer and Rich."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scripts.bench.contest import Contest, Run
from scripts.bench.outcomes import PLAIN, SDPY, Outcome
from scripts.bench.phases.base import BenchPhase

TYPER_ALONE = """
import typer
app = typer.Typer(rich_markup_mode="rich")
@app.command()
def generate(prompt: str) -> None:
    "Generate an image."
app(prog_name="alone")
"""


def contestants(contest: Contest) -> dict[str, Run]:
    """Both programs print their help."""
    return {
        SDPY: _helping(contest, "-m", "sdpy"),
        PLAIN: _helping(contest, "-c", TYPER_ALONE),
    }


def _helping(contest: Contest, *arguments: str) -> Run:
    def run(output: Path | None) -> Outcome:
        # Smaller than the process that starts it, so that its peak cannot be told.
        return replace(contest.command(*arguments, "--help"), peak=None)

    return run


PHASE = BenchPhase("--help", contestants, base=PLAIN)
