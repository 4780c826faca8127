"""Products of bfloat16 pairs against torch's own in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.optimizations.exact import bfloat16_pairs
from sdpy.optimizations.exact.bfloat16_pairs import Pair, PairedConv2d, PairedLinear, add_product
from sdpy.optimizations.exact.matmul_conv import unfold_patches
from sdpy.optimizations.weights import ModelWeights
from support.compare import normal, relative_error

# Of one layer. The bound is four times what a pair leaves of a number: both factors' rests and the
# product of their low parts.
TOLERANCE = 1e-5
BOUND = 2**-15

needs_product = pytest.mark.skipif(
    not bfloat16_pairs.is_available(), reason="this torch has no MKL with products of bfloat16"
)


def test_a_pair_holds_nearly_all_of_a_number() -> None:
    x = normal(40, 30) * torch.logspace(-20, 20, 30)
    pair = Pair.of(x)
    left = (x.double() - pair.high.double() - pair.low.double()).abs() / x.double().abs()
    assert pair.high.dtype == pair.low.dtype == torch.bfloat16
    assert 0 < left.max() <= 2**-17


@needs_product
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 7, 3), (5, 1, 9), (64, 320, 48), (130, 77, 33)])
@pytest.mark.parametrize("transposed", [False, True])
def test_adds_a_product(sizes: tuple[int, int, int], transposed: bool) -> None:
    rows, inner, outputs = sizes
    left, right = normal(rows, inner), normal(outputs, inner, seed=1)
    before = normal(rows, 2 * outputs, seed=2)
    expected = before[:, :outputs].double() + left.double() @ right.double().t()
    allowed = BOUND * (left.abs() @ right.abs().t()) + 1e-6 * before[:, :outputs].abs()
    untouched = before[:, outputs:].clone()
    pair = Pair.of(left)
    if transposed:
        pair = Pair(pair.high.t().contiguous().t(), pair.low.t().contiguous().t())
    add_product(pair, Pair.of(right), before[:, :outputs])
    assert ((before[:, :outputs] - expected).abs() <= allowed).all()
    assert torch.equal(before[:, outputs:], untouched)


@needs_product
@pytest.mark.parametrize("workspace", [1, bfloat16_pairs.WORKSPACE])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_linear(monkeypatch: pytest.MonkeyPatch, bias: bool, workspace: int) -> None:
    """In one part and in several; of rows that lie beside others as well."""
    monkeypatch.setattr(bfloat16_pairs, "WORKSPACE", workspace)
    torch.manual_seed(0)
    linear = nn.Linear(48, 20, bias=bias)
    paired, wide = PairedLinear(linear.weight, linear.bias), normal(2, 300, 96)
    for x in (wide[..., :48], wide[:, ::3, 48:], wide[0, 0, :48]):
        result = paired(x)
        assert result.shape == (*x.shape[:-1], 20)
        assert relative_error(result, linear.double()(x.double())) <= TOLERANCE
        linear.float()


@needs_product
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(1, 1, 0), (1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 2, 0)]
)
@pytest.mark.parametrize("workspace", [1, 3000, bfloat16_pairs.PATCH_WORKSPACE])
@torch.inference_mode()
def test_convolution(
    monkeypatch: pytest.MonkeyPatch,
    kernel: int,
    stride: int,
    padding: int,
    bias: bool,
    workspace: int,
) -> None:
    """A row of results at a time, some, and all; and of patches as many as there is space for."""
    monkeypatch.setattr(bfloat16_pairs, "PATCH_WORKSPACE", workspace)
    taken: list[int] = []

    def unfold(x: Tensor, *kernel: int) -> Tensor:
        patches = unfold_patches(x, *kernel)
        taken.append(patches.nbytes)
        return patches

    monkeypatch.setattr(bfloat16_pairs, "unfold_patches", unfold)
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 20, kernel, stride, padding, bias=bias)
    x = normal(2, 24, 13, 8)
    bias_64 = None if conv.bias is None else conv.bias.double()
    expected = F.conv2d(x.double(), conv.weight.double(), bias_64, stride, padding)
    paired = PairedConv2d(conv)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        result = paired(x.contiguous(memory_format=memory_format))
        assert result.shape == expected.shape
        assert relative_error(result, expected) <= TOLERANCE
    row = 24 * kernel**2 * expected.shape[-1] * 4  # high and low parts
    assert all(2 * one <= max(workspace, row) for one in taken)


@needs_product
@torch.inference_mode()
def test_weights_are_split_once_and_released() -> None:
    class Noting(ModelWeights):
        def release(self, parameter: Tensor) -> None:
            gone.append(parameter)

    linear = nn.Linear(16, 8)
    gone: list[Tensor] = []
    paired = PairedLinear(linear.weight, linear.bias, Noting())
    for _ in range(2):
        paired(normal(3, 16))
    assert len(gone) == 1 and gone[0] is linear.weight
    assert paired.weight is None
    assert sum(buffer.nbytes for buffer in paired.buffers()) == linear.weight.nbytes
    assert not {name for name in paired.state_dict() if name != "bias"}


@pytest.mark.parametrize("held_back", [True, False])
def test_heeds_what_holds_the_processor_back(
    monkeypatch: pytest.MonkeyPatch, held_back: bool
) -> None:
    monkeypatch.setattr(bfloat16_pairs, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.delenv("MKL_ENABLE_INSTRUCTIONS", raising=False)
    if held_back:
        monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2")
    assert bfloat16_pairs.is_fast.__wrapped__() is not held_back
