"""Constants of the cost model are found again from the times that it would give."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from scripts.bench import fit_cost_model as script
from sdpy.optimizations.exact import cost_model
from sdpy.optimizations.exact.winograd import Keep, WinogradConv2d
from sdpy.optimizations.exact.winograd_transforms import TRANSFORMS


def test_finds_the_constants_that_made_the_times() -> None:
    sizes = [(16, 16, 3, 8), (32, 16, 3, 8), (16, 32, 3, 16), (64, 64, 3, 4), (48, 16, 3, 12)]
    samples = [
        (
            layer,
            partial(cost_model.winograd_cost, transforms=transforms, keep=Keep.TRANSFORMED),
            WinogradConv2d(layer.module, transforms),
        )
        for layer in script.make_layers(sizes)
        for transforms in TRANSFORMS.values()
    ]
    names = ["TRANSFORMED_PRODUCT", "TRANSFORMED_BYTE", "TILE_BYTE"]
    wanted = {"TRANSFORMED_PRODUCT": 0.8, "TRANSFORMED_BYTE": 5.0, "TILE_BYTE": 44.0}
    rate = 2.5e9
    with script.constants(wanted):
        times = iter([cost(convolution) / rate for convolution, cost, _ in samples])

    class Told(script.Fit):
        def seconds(self, work: Callable[[], object]) -> float:
            return next(times)

    found = Told(1, rate)
    found.add(names, samples, "test")
    assert found.constants == pytest.approx(wanted, rel=1e-6)
    assert cost_model.TILE_BYTE != 44.0


def test_no_constant_is_negative() -> None:
    rows = torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]], dtype=torch.float64)
    found = script.non_negative_solution(rows, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([2.0, 0.0])


def test_every_form_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    found = script.fit([(16, 16, 3, 8), (32, 16, 3, 8), (16, 32, 1, 8)], repeats=1)
    missing = set(cost_model.CONSTANTS) - set(found.constants)
    assert missing <= {"PAIRED_BYTE"}
    assert found.rate > 0 and all(value >= 0 for value in found.constants.values())
    assert capsys.readouterr().err.count("off by") >= 5
