"""Models whose weights are on another device for a while."""

from __future__ import annotations

import pytest
import torch

from sdpy.runtime.offloading import moved
from support.tiny import tiny_model


def test_moved_for_a_while() -> None:
    model = tiny_model("vae")
    before = dict(model.named_parameters())
    with moved(model, torch.device("meta")):
        assert all(parameter.is_meta for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="stop"), moved(model, torch.device("meta")):
        raise RuntimeError("stop")
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
