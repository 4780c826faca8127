"""Winograd's convolutions against torch's own in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdpy.models.resnet import Upsample2D
from sdpy.optimizations.exact import onednn_products, winograd
from sdpy.optimizations.exact.adaptive import AdaptiveConv2d, AdaptiveUpsample2D
from sdpy.optimizations.exact.winograd import Frame, Keep, WinogradConv2d
from sdpy.optimizations.exact.winograd_transforms import DOUBLING, TRANSFORMS, Transforms
from support.compare import normal, relative_error

# Of one layer in float32; the larger tile has the larger constants in its matrices.
TOLERANCES = {2: 1e-6, 4: 5e-6}
ALL = {"2": TRANSFORMS[2], "4": TRANSFORMS[4], "doubling": DOUBLING}
each_kind = pytest.mark.parametrize("transforms", ALL.values(), ids=ALL.keys())


def expected(conv: nn.Conv2d, x: torch.Tensor, scale: int = 1) -> torch.Tensor:
    """Torch's own, in float64, of ``x`` enlarged by repeating its pixels."""
    bias = None if conv.bias is None else conv.bias.double()
    x = x.double().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return F.conv2d(x, conv.weight.double(), bias, padding=1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 1), (1, 3, 5, 7), (2, 8, 16, 16), (3, 16, 9, 33), (1, 40, 130, 70)]
)
@each_kind
@torch.inference_mode()
def test_equals_the_direct_convolution(
    transforms: Transforms, shape: tuple[int, ...], bias: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], 24, 3, padding=1, bias=bias)
    x = normal(*shape)
    wanted = expected(conv, x, transforms.scale)
    layer = WinogradConv2d(conv, transforms)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        result = layer(x.contiguous(memory_format=memory_format))
        assert result.shape == wanted.shape
        assert relative_error(result, wanted) <= TOLERANCES[transforms.m]


@pytest.mark.parametrize("workspace", [1, 50_000, 400_000, 10**9])
@each_kind
@torch.inference_mode()
def test_parts_of_any_size(
    monkeypatch: pytest.MonkeyPatch, transforms: Transforms, workspace: int
) -> None:
    """One row of tiles at a time, some rows, a whole image, all images."""
    torch.manual_seed(0)
    for name in ("WORKSPACE", "ONEDNN_WORKSPACE"):
        monkeypatch.setattr(winograd, name, workspace)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    x = normal(3, 4, 21, 18)
    wanted = expected(conv, x, transforms.scale)
    result = WinogradConv2d(conv, transforms)(x)
    assert relative_error(result, wanted) <= TOLERANCES[transforms.m]


@pytest.mark.parametrize(("above", "below"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize(("height", "width"), [(12, 24), (13, 5), (3, 7)])
@pytest.mark.parametrize("workspace", [1, 50_000, 10**9])
@each_kind
@torch.inference_mode()
def test_frames(
    monkeypatch: pytest.MonkeyPatch,
    transforms: Transforms,
    workspace: int,
    height: int,
    width: int,
    above: int,
    below: int,
) -> None:
    """Rows out of a map, bordered by their neighbours or by zeros, into a place in another map."""
    torch.manual_seed(0)
    for name in ("WORKSPACE", "ONEDNN_WORKSPACE"):
        monkeypatch.setattr(winograd, name, workspace)
    conv = nn.Conv2d(4, 5, 3, padding=1)
    x = normal(2, 4, height + above + below, width)
    frame = Frame.of(x.shape, above, below, transforms.m)
    frame.inside.copy_(x)
    scale = transforms.scale
    whole = torch.zeros(2, 5, scale * height + 2, scale * width).to(
        memory_format=torch.channels_last
    )
    place = whole[:, :, 1:-1]
    assert WinogradConv2d(conv, transforms)(frame, place) is place
    wanted = expected(conv, x, scale)[:, :, scale * above : scale * (above + height)]
    assert relative_error(place, wanted) <= TOLERANCES[transforms.m]
    assert not whole[:, :, [0, -1]].any()


@pytest.mark.parametrize("workspace", [1, 20_000, 10**9])
@pytest.mark.parametrize("keep", Keep)
@each_kind
@torch.inference_mode()
def test_weights_a_piece_at_a_time(
    monkeypatch: pytest.MonkeyPatch, transforms: Transforms, keep: Keep, workspace: int
) -> None:
    """Pieces that do not divide the output channels, and all at once."""
    torch.manual_seed(0)
    monkeypatch.setattr(winograd, "WEIGHT_WORKSPACE", workspace)
    monkeypatch.setattr(winograd, "WEIGHT_STEP", 6)
    conv = nn.Conv2d(12, 20, 3, padding=1)
    weights = conv.weight.detach().clone()
    layer = WinogradConv2d(conv, transforms, keep)
    x = normal(2, 12, 9, 13)
    wanted = expected(conv, x, transforms.scale)
    for _ in range(2):
        assert relative_error(layer(x), wanted) <= TOLERANCES[transforms.m]
    assert torch.equal(conv.weight, weights)
    assert (keep is not Keep.ORIGINAL) == (layer.kept is not None) != layer.needs_original


@pytest.mark.skipif(
    not onednn_products.is_available(), reason="this torch has no products by oneDNN"
)
@pytest.mark.parametrize("workspace", [1, 10**9])
@each_kind
@torch.inference_mode()
def test_products_by_onednn(
    monkeypatch: pytest.MonkeyPatch, transforms: Transforms, workspace: int
) -> None:
    """Of large layers, where it is faster, with their weights packed and nothing else kept."""
    torch.manual_seed(0)
    monkeypatch.setattr(onednn_products, "is_fast", lambda: True)
    monkeypatch.setattr(winograd, "LARGE", 12 * 20)
    monkeypatch.setattr(winograd, "ONEDNN_WORKSPACE", workspace)
    conv, small = nn.Conv2d(12, 20, 3, padding=1), nn.Conv2d(12, 19, 3, padding=1)
    layer, x = WinogradConv2d(conv, transforms), normal(2, 12, 9, 13)
    wanted = expected(conv, x, transforms.scale)
    assert layer.packs and not WinogradConv2d(small, transforms).packs
    assert not WinogradConv2d(conv, transforms, Keep.ORDERED).packs
    layer.prepare()
    nn.init.zeros_(conv.weight)  # as if they were released
    multiplied: list[int] = []
    product = onednn_products.product
    monkeypatch.setattr(
        onednn_products, "product", lambda *args: multiplied.append(1) or product(*args)
    )
    for memory_format in (torch.contiguous_format, torch.channels_last):
        result = layer(x.contiguous(memory_format=memory_format))
        assert relative_error(result, wanted) <= TOLERANCES[transforms.m]
    assert layer.kept is None and len(multiplied) % transforms.points == 0 < len(multiplied)
    assert layer.packed is not None
    nn.Sequential(layer).to("meta")  # as a model whose memory is released
    assert layer.packed is None


@torch.inference_mode()
def test_points_and_weights() -> None:
    """Four by four tiles multiply a quarter as often, with four times the weights if kept.

    Those of a doubled input multiply 25/16 times a result, not 36/16 times.
    """
    conv = nn.Conv2d(8, 8, 3, padding=1)
    for keep, times in ((Keep.TRANSFORMED, 4), (Keep.ORDERED, 1)):
        layer = WinogradConv2d(conv, TRANSFORMS[4], keep)
        layer(normal(1, 8, 8, 8))
        assert layer.kept is not None
        assert layer.kept.numel() == times * conv.weight.numel()
        assert not layer.needs_original
    assert (TRANSFORMS[4].points / 4**2) * 4 == 9
    assert (DOUBLING.points / 8**2) * 16 == 25


@pytest.mark.parametrize("size", [None, (18, 26), (17, 26), (18, 25)])
@torch.inference_mode()
def test_upsampling(size: tuple[int, int] | None) -> None:
    """To the double, and to where an odd side was halved before."""
    torch.manual_seed(0)
    plain = Upsample2D(12)
    weights = plain.conv.weight.detach().clone()
    conv = AdaptiveConv2d(plain.conv)
    conv.add("doubling", WinogradConv2d(plain.conv, DOUBLING))
    conv.select("doubling")
    wrapped = Upsample2D(12)
    wrapped.conv = conv
    fast = AdaptiveUpsample2D(wrapped)
    x = normal(2, 12, 9, 13)
    for _ in range(2):
        result = fast(x, size)
        assert result.shape[2:] == (size or (18, 26))
        assert relative_error(result, plain(x, size)) <= TOLERANCES[4]
    assert torch.equal(plain.conv.weight, weights)
