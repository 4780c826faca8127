"""Convolutions in bfloat16 with fewer multiplications.

With so few digits only the simplest of `winograd`'s transforms is of use: F(2x2, 3x3), whose
coefficients for the input and for the results are 0, 1 and -1. So they are made by additions, which
take no matrix product. Its rounding is four times that of torch's own convolution (a relative error
of 6.8e-3 of a layer's result instead of 1.7e-3).

Source: "Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, 2016), section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdpy.optimizations.exact.packed_layers import linear_layer
from sdpy.optimizations.exact.winograd import Frame

WORKSPACE = 32 * 2**20
"""The bytes of transformed tiles and of products that are worked on together. With fewer, threads
wait for one another more often, and weights are read more often."""

DOUBLING_WORKSPACE = 16 * 2**20
"""The bytes of the products of a `DoublingConv2d` that are worked on together."""

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
    frame_multiple = 2

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

    def forward(self, x: Tensor | Frame, place: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W), the result in channels-last memory.

        Args:
            x: the input, or a `Frame` that was filled with it.
            place: for the result; None for new memory.
        """
        self.prepare()
        assert self.kept is not None
        if isinstance(x, Tensor):
            tensor, x = x, Frame.of(x.shape, 0, 0, self.frame_multiple, x.dtype)
            x.inside.copy_(tensor)
        B, H, W = x.shape
        outputs = self.kept.shape[-1]
        rows, columns = -(-H // 2), -(-W // 2)  # of tiles
        if place is None or H % 2 or W % 2:
            result = x.pixels.new_empty(B, 2 * rows, 2 * columns, outputs)
        else:
            result = place.permute(0, 2, 3, 1)
        step = self._rows_together(B * columns, x.pixels.element_size())
        for first in range(0, rows, step):
            last = min(first + step, rows)
            tiles = _transform_input(x.pixels[:, 2 * first : 2 * last + 2])
            products = torch.bmm(tiles.flatten(1, 3), self.kept)
            shape = (4, 4, *tiles.shape[1:4], outputs)
            part = result[:, 2 * first : 2 * last]
            _transform_output(products.view(shape), self.original.bias, part)
        made = result[:, :H, :W].permute(0, 3, 1, 2)
        return made if place is None or made.data_ptr() == place.data_ptr() else place.copy_(made)

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

    Two of a kernel's three rows fall on the same row of the input, the middle one and the first for
    results of even row, the middle one and the last for those of odd row; likewise columns. So each
    of the kernel's nine weights is multiplied with each pixel of the input once, and every result
    is the sum of nine of these products, with those of the row and the column before or after. That
    takes 9 multiplications instead of 36.

    Args:
        original: the convolution to compute of the doubled input.
    """

    needs_original = False
    doubles = True

    def __init__(self, original: nn.Conv2d) -> None:
        super().__init__()
        self.original = original
        self.products: nn.ModuleList | None = None

    def prepare(self) -> None:
        """Lay out the weights, in as much memory as before: nine linear layers, row by row."""
        if self.products is not None:
            return
        weights = self.original.weight.detach().flatten(2).unbind(-1)
        biases = (*[None] * 4, self.original.bias, *[None] * 4)  # of the middle, once a result
        self.products = nn.ModuleList(
            linear_layer(weight.contiguous(), bias)
            for weight, bias in zip(weights, biases, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, 2 H, 2 W), the result in channels-last memory."""
        self.prepare()
        B, _, H, W = x.shape
        outputs = self.original.out_channels
        pixels = x.permute(0, 2, 3, 1)
        result = x.new_empty(B, H, 2, W, 2, outputs)
        row_bytes = 9 * B * W * outputs * x.element_size()
        step = max(DOUBLING_WORKSPACE // row_bytes, 4)
        for first in range(0, H, step):
            rows = slice(first, min(first + step, H))
            of_columns = [self._sum_rows(pixels, rows, column) for column in range(3)]
            for parity in range(2):
                left, middle, right = (sums[parity] for sums in of_columns)
                even, odd = result[:, rows, parity].unbind(3)
                before, after = middle + right, middle + left
                even[:, :, 0] = before[:, :, 0]
                torch.add(before[:, :, 1:], left[:, :, :-1], out=even[:, :, 1:])
                odd[:, :, -1] = after[:, :, -1]
                torch.add(after[:, :, :-1], right[:, :, 1:], out=odd[:, :, :-1])
        return result.view(B, 2 * H, 2 * W, outputs).permute(0, 3, 1, 2)

    def _sum_rows(self, pixels: Tensor, rows: slice, column: int) -> tuple[Tensor, Tensor]:
        """What a column of the kernel adds to the results of even and of odd row, (B, r, W, O)."""
        assert self.products is not None
        top, middle, bottom = self.products[column::3]
        above, below = int(rows.start > 0), int(rows.stop < pixels.shape[1])
        of_top = top(pixels[:, rows.start - above : rows.stop])
        of_bottom = bottom(pixels[:, rows.start : rows.stop + below])
        centre = middle(pixels[:, rows])
        count = centre.shape[1]
        even, odd = centre + of_bottom[:, :count], centre + of_top[:, above:]
        even[:, 1 - above :] += of_top[:, : count - 1 + above]
        odd[:, : count - 1 + below] += of_bottom[:, 1:]
        return even, odd
