"""Each faster layer against the plain one in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdpy.models.attention import FeedForward
from sdpy.optimizations.exact import feed_forward
from sdpy.optimizations.exact.cached_linear import CachedLinear
from sdpy.optimizations.exact.feed_forward import ChunkedFeedForward
from sdpy.optimizations.exact.matmul_conv import MatmulConv2d
from support.compare import normal, relative_error

TOLERANCE = 1e-6


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (3, 2, 0), (1, 1, 0), (5, 1, 2)]
)
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_matmul_convolution(kernel: int, stride: int, padding: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 20, kernel, stride=stride, padding=padding, bias=bias)
    x = normal(2, 12, 9, 8)
    result = MatmulConv2d(conv)(x)
    assert relative_error(result, conv.double()(x.double())) <= TOLERANCE


@pytest.mark.parametrize("workspace", [1, 100_000, 10**9])
@torch.inference_mode()
def test_feed_forward(monkeypatch: pytest.MonkeyPatch, workspace: int) -> None:
    """All tokens at once, and in parts that do not divide their number."""
    torch.manual_seed(0)
    monkeypatch.setattr(feed_forward, "WORKSPACE", workspace)
    plain = FeedForward(32)
    x = normal(2, 75, 32)
    result = ChunkedFeedForward(plain)(x)
    assert relative_error(result, plain.double()(x.double())) <= TOLERANCE


@pytest.mark.parametrize("inference", [True, False])
def test_caches_what_it_was_given(inference: bool) -> None:
    with torch.inference_mode(inference):
        plain = nn.Linear(4, 6)
        layer = CachedLinear(plain)
        x, other = normal(2, 3, 4), normal(2, 3, 4, seed=1)
        first = layer(x)
        assert torch.equal(first, plain(x))
        assert layer(x) is first
        assert torch.equal(layer(other), plain(other))
        assert torch.equal(layer(x), first)


def test_computes_anew_when_the_input_was_changed() -> None:
    layer = CachedLinear(nn.Linear(4, 6))
    x = normal(2, 4)
    before = layer(x)
    x += 1
    assert torch.equal(layer(x), layer.original(x))
    assert not torch.equal(layer(x), before)


def test_gives_no_old_result_after_a_failure() -> None:
    layer = CachedLinear(nn.Linear(4, 6))
    layer(normal(2, 4))

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    x = normal(2, 4, seed=1)
    failing = layer.original.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        layer(x)
    failing.remove()
    assert torch.equal(layer(x), layer.original(x))
