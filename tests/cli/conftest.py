"""The command line in this process, with the tiny models in the places of the real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sdpy.runtime.loading as loading_module
from sdpy.checkpoints import Checkpoint
from sdpy.cli.app import run
from sdpy.zoo.variants import VARIANTS
from support.tiny import TINY, TINY_INPAINT


@dataclass
class Result:
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


Sdpy = Callable[..., Result]


@pytest.fixture
def sdpy(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Sdpy:
    """Runs a command in an empty folder, whose ``../data`` holds the weights of ``sd15``.

    The folder is a new one beside others, so that a test sees what a command leaves in it.
    """
    monkeypatch.setitem(VARIANTS, "sd15", TINY)
    monkeypatch.setitem(VARIANTS, "sd15-inpaint", TINY_INPAINT)
    monkeypatch.delenv("SDPY_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def sdpy(*arguments: object) -> Result:
        capfd.readouterr()
        words = [str(argument) for argument in arguments]
        if (
            words
            and words[0] in ("generate", "img2img", "inpaint", "batch")
            and "--data" not in words
        ):
            words += ["--data", str(tiny_data)]
        code = run(words)
        return Result(code, *capfd.readouterr())

    return sdpy


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose weights were loaded."""
    names: list[str] = []
    load_weights = loading_module.load_weights

    def noting(model: Any, source: Checkpoint, **options: Any) -> Any:
        names.append(source.path.name)
        return load_weights(model, source, **options)

    monkeypatch.setattr(loading_module, "load_weights", noting)
    return names
