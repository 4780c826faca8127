"""The bundled model: its files fit, and what it generates is what was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdpy.checkpoints import read_checkpoint
from sdpy.runtime.session import Session
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.find import find_source
from sdpy.zoo.variants import DEMO

assert DEMO.bundled is not None
FOLDER = DEMO.bundled
FILES = ("unet.ot", "text_encoder.ot", "vae.ot", "merges.txt")
MODELS = ("text_encoder", "unet", "vae")

# A folder that holds some of the files is a mistake, not a checkout without the model.
pytestmark = pytest.mark.skipif(
    not any((FOLDER / name).exists() for name in FILES), reason="this checkout holds no demo model"
)

SEEDS = 4


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(find_source("demo", Path("nowhere")))


def test_all_files_are_there_and_small(session: Session) -> None:
    files = session.source.files
    assert {path.name for path in (*files.weights.values(), files.vocabulary)} == set(FILES)
    assert sum((FOLDER / name).stat().st_size for name in FILES) <= 30e6


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_fit_and_are_trained_numbers(session: Session, name: str) -> None:
    session.headers.check()
    checkpoint = read_checkpoint(session.source.files.weights[name])
    assert checkpoint.format == "ot"
    for key, tensor in checkpoint.tensors.items():
        assert tensor.dtype == torch.float16, key
        assert tensor.isfinite().all(), key
        assert tensor.numel() == 1 or tensor.std() > 0, key  # no layer is left as it began
    with getattr(session.models(), name)() as model:
        assert sum(p.numel() for p in model.parameters()) == sum(
            tensor.numel() for tensor in checkpoint.tensors.values()
        )


def test_the_vocabulary_is_exactly_the_text_encoder_s() -> None:
    lines = (FOLDER / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) - 1 == DEMO.text_encoder.vocab_size - 514
    tokenizer = CLIPTokenizer.from_file(FOLDER / "merges.txt", DEMO.text_encoder.vocab_size)
    assert len(tokenizer.encode("lighthouse at dark")) <= 6


@dataclass
class Look:
    """Luminance, 0 to 1, of what tells a night from a day and a lamp from none."""

    sky: float
    """Median of the upper third."""
    lamp: float
    """Brightest 0.3 % of the upper two thirds."""
    lit: float
    """Share of the upper two thirds that is bright."""


def look_at(path: Path) -> Look:
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB")) / 255
    luminance = rgb @ np.array([0.2126, 0.7152, 0.0722])
    upper = luminance[: 2 * len(luminance) // 3]
    return Look(
        sky=float(np.median(luminance[: len(luminance) // 3])),
        lamp=float(np.percentile(upper, 99.7)),
        lit=float((upper > 0.7).mean()),
    )


def generate(folder: Path, prompt: str) -> list[Look]:
    """Generate with all defaults, as the README does, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "SDPY_DEBUG"}
    command = [sys.executable, "-m", "sdpy", "generate", prompt, "--model", "demo"]
    result = subprocess.run(
        [*command, "--num-samples", str(SEEDS)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    paths = [folder / name for name in result.stdout.splitlines()]
    assert len(paths) == SEEDS
    return [look_at(path) for path in paths]


def test_a_lighthouse_at_dark_is_a_bright_lamp_under_a_dark_sky(tmp_path: Path) -> None:
    """At noon the sky is bright instead: it is the prompt that makes the night."""
    for name in ("night", "day"):
        (tmp_path / name).mkdir()
    nights = generate(tmp_path / "night", "lighthouse at dark")
    days = generate(tmp_path / "day", "lighthouse at noon")
    for night in nights:
        assert night.sky < 0.4, nights
        assert night.lamp > 0.7, nights
        assert 0.003 < night.lit < 0.2, nights
    for day in days:
        assert day.sky > max(night.sky for night in nights) + 0.1, (days, nights)
