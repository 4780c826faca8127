"""Layers with packed weights against torch's own in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.attention import FeedForward
from sdpy.optimizations.exact import packed_layers
from sdpy.optimizations.exact.packed_layers import PackedConv2d, PackedFeedForward, PackedLinear
from sdpy.optimizations.weights import ModelWeights
from support.compare import normal, relative_error

TOLERANCE = 2.0**-8
"""The largest relative error of rounding a number to bfloat16; measured 0.0017, as torch's own."""

pytestmark = pytest.mark.skipif(
    not packed_layers.is_fast(), reason="this torch or processor has no packed layers in bfloat16"
)


class Noting(ModelWeights):
    """Notes what is released."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: list[Tensor] = []

    def release(self, parameter: Tensor) -> None:
        self.gone.append(parameter)


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_linear(bias: bool) -> None:
    """Of other numbers of rows than it was packed for, and of rows beside others, too."""
    torch.manual_seed(0)
    linear = nn.Linear(48, 20, bias=bias).bfloat16()
    weight, wide = linear.weight, normal(2, 30, 96).bfloat16()
    packed = PackedLinear(weight, linear.bias, weights := Noting())
    reference = nn.Linear(48, 20, bias=bias).double()
    reference.load_state_dict(linear.state_dict())
    for x in (wide[..., :48], wide[:, ::3, 48:], wide[0, :1, :48]):
        expected = reference(x.double())
        assert packed(x).shape == expected.shape
        assert relative_error(packed(x), expected) <= TOLERANCE
        assert relative_error(packed(x, gelu=True), F.gelu(expected)) <= TOLERANCE
        factor = normal(*expected.shape, seed=1).bfloat16()
        assert relative_error(packed.times(x, factor), expected * factor.double()) <= TOLERANCE
    assert packed.weight is None and [id(one) for one in weights.gone] == [id(weight)]


@torch.inference_mode()
def test_feed_forward() -> None:
    """Closer to float64 than the plain layers, as less is rounded on the way."""
    torch.manual_seed(0)
    plain = FeedForward(32).bfloat16()
    exact = FeedForward(32).double()
    exact.load_state_dict(plain.state_dict())
    x, released = normal(2, 40, 32).bfloat16(), Noting()
    expected, before = exact(x.double()), plain(x)
    packed = PackedFeedForward(plain, released)
    for _ in range(2):
        error = relative_error(packed(x), expected)
        assert error <= min(TOLERANCE, relative_error(before, expected))
    assert {one.shape for one in released.gone} == {(256, 32), (32, 128)}
    assert len(released.gone) == 2 and not any(p.ndim > 1 for p in packed.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding"),
    [((4, 24), 3, 1, 1), ((24, 20), 3, 2, 1), ((24, 20), 3, 2, 0), ((24, 20), 1, 1, 0)],
)
@torch.inference_mode()
def test_convolution(
    channels: tuple[int, int], kernel: int, stride: int, padding: int, bias: bool
) -> None:
    """Of another size than it was packed for, too, and in any order in memory."""
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, kernel, stride, padding, bias=bias).bfloat16()
    packed = PackedConv2d(conv, torch.Size((2, channels[0], 12, 9)))
    for shape in ((2, channels[0], 12, 9), (1, channels[0], 5, 16)):
        x = normal(*shape).bfloat16()
        exact = None if conv.bias is None else conv.bias.double()
        expected = F.conv2d(x.double(), conv.weight.double(), exact, stride, padding)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            result = packed(x.contiguous(memory_format=memory_format))
            assert result.is_contiguous(memory_format=torch.channels_last)
            assert relative_error(result, expected) <= TOLERANCE


@torch.inference_mode()
def test_packed_weights_are_released_with_the_model() -> None:
    linear = nn.Linear(24, 20).bfloat16()
    layers = (
        PackedLinear(linear.weight, linear.bias),
        PackedConv2d(nn.Conv2d(24, 20, 1).bfloat16(), torch.Size((1, 24, 4, 4))),
    )
    for layer, x in zip(layers, (normal(3, 24), normal(1, 24, 4, 4)), strict=True):
        layer(x.bfloat16())
        assert layer.packed is not None
        nn.Sequential(layer).to("meta")
        assert layer.packed is None
