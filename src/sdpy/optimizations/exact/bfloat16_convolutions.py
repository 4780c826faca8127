"""Convolutions in bfloat16 with fewer multiplications.

With so few digits only the simplest of `winograd`'s transforms is of use: F(2x2, 3x3), whose
coefficients for the input and for the results are 0, 1 and -1. So they are made by additions, which
take no matrix product. Its rounding is four times that of torch's own convolution (a relative error
of 6.8e-3 of a layer's result instead of 1.7e-3).

Source: "Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, 2016), section 4.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORKSPACE = 8 * 2**20
"""The bytes of transformed tiles and of products that are worked on together."""

POINTS = 16
"""Matrix products a tile of 2x2 results takes part in."""

_WEIGHT_TRANSFORM = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


class AddedWinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1 by F(2x2, 3x3), with transforms by additions.

    The weights are kept transformed, in 16/9 of the memory.

    Args:
        original: the convolution to compute.
    """

    needs_original = False

    def __init__(self, original: nn.Conv2d) -> None:
        super().__init__()
        self.original = original
        self.kept: Tensor | None
        self.register_buffer("kept", None, persistent=False)

    def prepare(self) -> None:
        """Transform the weights, in float32, and round them: (16, C, O)."""
        if self.kept is None:
            weight, transform = self.original.weight.detach().float(), _WEIGHT_TRANSFORM
            made = torch.einsum("io,dcok,jk->ijcd", transform, weight, transform)
            self.kept = made.flatten(0, 1).to(self.original.weight.dtype).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W), the result in channels-last memory."""
        self.prepare()
        assert self.kept is not None
        B, C, H, W = x.shape
        outputs = self.kept.shape[-1]
        rows, columns = -(-H // 2), -(-W // 2)  # of tiles
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + W % 2, 1, 1 + H % 2))
        result = x.new_empty(B, 2 * rows, 2 * columns, outputs)
        step = self._rows_together(B * columns, x.element_size())
        for first in range(0, rows, step):
            last = min(first + step, rows)
            tiles = _transform_input(padded[:, 2 * first : 2 * last + 2])
            products = torch.bmm(tiles.flatten(1, 3), self.kept)
            shape = (4, 4, *tiles.shape[1:4], outputs)
            place = result[:, 2 * first : 2 * last]
            _transform_output(products.view(shape), self.original.bias, place)
        return result[:, :H, :W].permute(0, 3, 1, 2)

    def _rows_together(self, tiles: int, itemsize: int) -> int:
        """Rows of tiles that are worked on together, where a row has so many tiles."""
        assert self.kept is not None
        _, inputs, outputs = self.kept.shape
        row_bytes = POINTS * tiles * (inputs + outputs) * itemsize
        # Every part reads all weights again.
        worthwhile = self.kept.nbytes // row_bytes
        return max(WORKSPACE // row_bytes, worthwhile, 1)


def _transform_input(pixels: Tensor) -> Tensor:
    """``B^T d B`` of all tiles: (B, 2 r + 2, 2 c + 2, C) -> (16, B, r, c, C)."""
    B, height, width, C = pixels.shape
    r, c = height // 2 - 1, width // 2 - 1
    even, odd = pixels[:, 0::2], pixels[:, 1::2]
    by_rows = pixels.new_empty(4, B, r, width, C)
    _combine_inputs(even[:, :-1], odd[:, :-1], even[:, 1:], odd[:, 1:], by_rows)
    even, odd = by_rows[..., 0::2, :], by_rows[..., 1::2, :]
    tiles = pixels.new_empty(4, 4, B, r, c, C)
    columns = (even[..., :-1, :], odd[..., :-1, :], even[..., 1:, :], odd[..., 1:, :])
    _combine_inputs(*columns, tiles.transpose(0, 1))
    return tiles.flatten(0, 1)


def _combine_inputs(d0: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, result: Tensor) -> None:
    """``B^T d`` along one axis, whose four results are the first axis of ``result``."""
    torch.sub(d0, d2, out=result[0])
    torch.add(d1, d2, out=result[1])
    torch.sub(d2, d1, out=result[2])
    torch.sub(d1, d3, out=result[3])


def _transform_output(products: Tensor, bias: Tensor | None, result: Tensor) -> None:
    """``A^T m A`` of products (4, 4, B, r, c, O), and the bias, into ``result`` (B, 2r, 2c, O)."""
    r, c = products.shape[3:5]
    places = result.view(len(result), r, 2, c, 2, -1)
    rows = (
        torch.add(products[0], products[1]).add_(products[2]),
        torch.sub(products[1], products[2]).sub_(products[3]),
    )
    for row, (m0, m1, m2, m3) in enumerate(rows):
        middle = m1 if bias is None else m1 + bias
        torch.add(middle + m0, m2, out=places[:, :, row, :, 0])
        torch.sub(middle - m2, m3, out=places[:, :, row, :, 1])


class DoublingConv2d(nn.Module):
    """A 3x3 convolution of padding 1 of an input doubled by repeating its pixels.

    Each result falls on two rows and two columns of the input, so this is four 2x2 convolutions,
    one for the results of even or odd row and column each, and takes 16 multiplications instead of
    36. Their weights are sums of the original ones.

    Args:
        original: the convolution to compute of the doubled input.
    """

    needs_original = False
    doubles = True

    def __init__(self, original: nn.Conv2d) -> None:
        super().__init__()
        self.original = original
        self.kept: Tensor | None
        self.register_buffer("kept", None, persistent=False)

    def prepare(self) -> None:
        """Sum the weights up, in float32, and round them: (4 O, C, 2, 2)."""
        if self.kept is not None:
            return
        # The rows of a kernel that fall on the first and on the second row of two.
        falls = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).float()
        weight = self.original.weight.detach().float()
        made = torch.einsum("pri,ocij,qsj->pqocrs", falls, weight, falls).flatten(0, 2)
        dtype = self.original.weight.dtype
        self.kept = made.to(dtype).contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, 2 H, 2 W), the result in channels-last memory."""
        self.prepare()
        assert self.kept is not None
        B, C, H, W = x.shape
        outputs = len(self.kept) // 4
        bias = None if self.original.bias is None else self.original.bias.repeat(4)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).permute(0, 3, 1, 2)
        result = x.new_empty(B, H, 2, W, 2, outputs)
        step = max(WORKSPACE // (4 * B * W * outputs * x.element_size()), 4)
        for first in range(0, H, step):
            last = min(first + step, H)
            made = F.conv2d(padded[:, :, first : last + 2], self.kept, bias)
            made = made.permute(0, 2, 3, 1)  # (B, last - first + 1, W + 1, 4 O)
            for place, part in enumerate(torch.split(made, outputs, dim=-1)):
                row, column = divmod(place, 2)
                part = part[:, row : row + last - first, column : column + W]
                result[:, first:last, row, :, column] = part
        return result.view(B, 2 * H, 2 * W, outputs).permute(0, 3, 1, 2)
