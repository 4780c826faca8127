"""What is measured of the machine: once, remembered, and heeded by the choice of forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact import bfloat16_pairs, cost_model, machine
from sdpy.optimizations.exact.bfloat16_pairs import uses_pairs
from sdpy.optimizations.exact.convolutions import Convolution
from sdpy.optimizations.exact.fast_convolutions import find_bfloat16_options, find_options
from support.tiny import tiny_model


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "SIZE", 32)
    monkeypatch.setattr(machine, "SUMS", 64)


def test_the_balance_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And anew for another number of threads."""
    balance = machine.bfloat16_balance.__wrapped__
    first = balance()
    assert first > 0 and math.log2(first) == round(math.log2(first))
    file = tmp_path / "cache" / "machine.json"
    known = json.loads(file.read_text())
    assert list(known.values()) == [first] and machine.processor() in next(iter(known))
    file.write_text(json.dumps(dict.fromkeys(known, 16.0)))
    assert balance() == 16.0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    balance()
    assert len(json.loads(file.read_text())) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', "null", '{"a": null}'])
def test_what_cannot_be_read_is_measured(tmp_path: Path, content: str) -> None:
    file = tmp_path / "cache" / "machine.json"
    file.parent.mkdir()
    file.write_text(content)
    assert machine.bfloat16_balance.__wrapped__() > 0
    assert len(json.loads(file.read_text())) == 1


def test_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDPY_CACHE", str(tmp_path / "file"))
    assert machine.bfloat16_balance.__wrapped__() > 0


@pytest.mark.skipif(
    not bfloat16_pairs.is_available(), reason="this torch has no MKL with products of bfloat16"
)
def test_products_of_pairs_are_timed() -> None:
    assert 0 < machine.pairs_gain.__wrapped__() < 1000


def convolution(doubled: bool = False) -> Convolution:
    conv = torch.nn.Conv2d(320, 320, 3, padding=1, device="meta")
    return Convolution("conv", conv, torch.Size((2, 320, 64, 64)), doubled, itemsize=2)


@pytest.mark.parametrize("doubled", [True, False])
def test_fast_products_make_additions_dear(doubled: bool) -> None:
    """Where products are sixteen times as fast, the form with fewest additions is the cheapest."""
    cheapest = {
        balance: min(
            find_bfloat16_options(convolution(doubled), balance=balance),
            key=lambda option: option.cost,
        ).key
        for balance in (1.0, 16.0)
    }
    assert cheapest[1.0] == ("doubling" if doubled else "added-winograd")
    assert cheapest[16.0] in ("packed", "direct")


@pytest.mark.parametrize(("gain", "used"), [(0.0, False), (1.1, False), (1.8, True)])
def test_pairs_are_for_machines_on_which_they_are_faster(
    monkeypatch: pytest.MonkeyPatch, gain: float, used: bool
) -> None:
    monkeypatch.setattr(bfloat16_pairs, "is_fast", lambda: gain > 0)
    monkeypatch.setattr(machine, "pairs_gain", lambda: gain)
    assert uses_pairs(tiny_model("unet"), PassContext(fast_kernels=True)) == used
    costs = [
        next(o.cost for o in find_options(convolution(), pairs=pairs) if o.key == "pairs")
        for pairs in (1.8, 3.6)
    ]
    assert costs[1] < costs[0] < cost_model.direct_cost(convolution())
