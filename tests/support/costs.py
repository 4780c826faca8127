"""Costs under which a single form of convolution is the fastest, whatever the size."""

from __future__ import annotations

import pytest

from sdpy.optimizations.exact import cost_model

_HIGH, _LOW = 1e9, 1e-9
_WINOGRAD = {
    "DIRECT_WEIGHT_BYTE": _HIGH,
    **dict.fromkeys(("CALL", "CACHE_BYTE", "HALF_RATE_ROWS", "TILE_BYTE"), _LOW),
}
_KEPT = ("TRANSFORMED_PRODUCT", "TRANSFORMED_BYTE")
_PIECEWISE = ("PIECEWISE", "PIECEWISE_PRODUCT", "TRANSFORMING_BYTE", "ORDERING_BYTE")
_MATMUL = {"DIRECT_WEIGHT_BYTE": _HIGH, "TILE_BYTE": _HIGH, "CALL": _LOW, "CACHE_BYTE": _LOW}
CONSTANTS: dict[str, dict[str, float]] = {
    "direct": {"DIRECT_WEIGHT_BYTE": _LOW, "CALL": _HIGH, "CACHE_BYTE": _HIGH},
    "matmul": _MATMUL,
    "pairs": {**_MATMUL, "PAIRED_BYTE": _LOW},
    "transformed": _WINOGRAD | dict.fromkeys(_KEPT, _LOW) | dict.fromkeys(_PIECEWISE, _HIGH),
    "ordered": _WINOGRAD | dict.fromkeys(_KEPT, _HIGH) | dict.fromkeys(_PIECEWISE, _LOW),
}


def favour(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Let that form cost nearly nothing for the duration of the test."""
    for name, value in CONSTANTS[form].items():
        monkeypatch.setattr(cost_model, name, value)
