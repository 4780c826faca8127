"""3x3 convolutions by Winograd's minimal filtering: fewer multiplications for the same result.

A tile of m x m results needs (m + 2)^2 multiplications a pair of channels instead of 9 m^2. Input
tiles and weights are transformed, multiplied point by point, which over all channels and tiles is
one matrix product a point, and transformed back:

    Y = A^T [(G g G^T) * (B^T d B)] A

Source: "Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, 2016), equation 8; the
matrices are those of Toom and Cook's interpolation at 0, +-1, (+-2,) and infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WORKSPACE = 16 * 2**20
"""Bytes of transformed tiles that are worked on together: they should stay in a cache."""
WEIGHT_WORKSPACE = 8 * 2**20
"""Bytes of weights that are transformed at a time: they should stay in a cache beside the tiles."""


@dataclass(frozen=True)
class Transforms:
    """The matrices of F(m x m, 3 x 3), for both axes at once (Kronecker products with themselves).

    Attributes:
        m: side of a tile of results; it is computed from m + 2 by m + 2 inputs.
        weight: G x G, ((m + 2)^2, 9).
        input: B^T x B^T, ((m + 2)^2, (m + 2)^2).
        output: A^T x A^T, (m^2, (m + 2)^2).
    """

    m: int
    weight: Tensor
    input: Tensor
    output: Tensor

    @classmethod
    def from_rows(
        cls, weight: list[list[float]], input: list[list[float]], output: list[list[float]]
    ) -> Transforms:
        """From G, B^T and A^T of one axis."""
        g, b, a = (_twice(rows) for rows in (weight, input, output))
        return cls(len(output), g, b, a)

    @property
    def points(self) -> int:
        """Matrix products a tile takes part in, one a point."""
        return (self.m + 2) ** 2


def _twice(rows: list[list[float]]) -> Tensor:
    matrix = torch.tensor(rows, dtype=torch.float64, device="cpu")
    return torch.kron(matrix, matrix).float()


def _f2() -> Transforms:
    return Transforms.from_rows(
        weight=[[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        input=[[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        output=[[1, 1, 1, 0], [0, 1, -1, -1]],
    )


def _f4() -> Transforms:
    return Transforms.from_rows(
        weight=[
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        input=[
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        output=[
            [1, 1, 1, 1, 1, 0],
            [0, 1, -1, 2, -2, 0],
            [0, 1, 1, 4, 4, 0],
            [0, 1, -1, 8, -8, 1],
        ],
    )


TRANSFORMS = {2: _f2(), 4: _f4()}


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1, computed by F(m x m, 3 x 3).

    Transformed weights are ``(m + 2)^2 / 9`` times as large as the originals (16/9 for m = 2, 4 for
    m = 4). Kept, they are made at the first use, and the originals are let go. Otherwise they are
    made at each use, some output channels at a time, so that they never leave the cache.

    Args:
        conv: the convolution to replace, its weights float32 on the CPU.
        m: 2 or 4. Rounding errors grow with it: about 1e-6 and 4e-6 of the result.
        keep_weights: whether to keep transformed weights.

    Attributes:
        let_go: called with the originals when they are not needed any more.
    """

    def __init__(self, conv: nn.Conv2d, m: int, *, keep_weights: bool = True) -> None:
        super().__init__()
        self.transforms, self.keep_weights = TRANSFORMS[m], keep_weights
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.weight: Tensor | None = conv.weight
        self.bias = conv.bias
        self.transformed: Tensor | None
        self.register_buffer("transformed", None, persistent=False)
        self.let_go: Callable[[Tensor], None] | None = None

    def forward(self, x: Tensor, above: int = 0, below: int = 0) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W); fastest, and the result is, in channels-last memory.

        Of the rows of ``x``, the first ``above`` and the last ``below`` (0 or 1 each) border those
        that are asked for, in place of the zeros there; the result has so many rows less.
        """
        B, _, H, W = x.shape
        H -= above + below
        m = self.transforms.m
        rows, columns = -(-H // m), -(-W // m)  # of tiles
        pixels = x.permute(0, 2, 3, 1)
        result = x.new_empty(B, rows * m, columns * m, self.out_channels)
        for images, band in self._parts(B, rows, columns):
            part = _cut(pixels[images], band, columns, m, above)
            place = result[images, band.start * m : band.stop * m]
            self._convolve(part, place.view(len(part), -1, m, columns, m, self.out_channels))
        return result[:, :H, :W].permute(0, 3, 1, 2)

    def _convolve(self, part: Tensor, place: Tensor) -> None:
        """(b, r m + 2, c m + 2, C) into ``place`` (b, r, m, c, m, O)."""
        m, points = self.transforms.m, self.transforms.points
        tiles = part.unfold(1, m + 2, m).unfold(2, m + 2, m)  # (b, r, c, C, m + 2, m + 2)
        b, r, c, C = tiles.shape[:4]
        tiles = tiles.permute(4, 5, 0, 1, 2, 3).reshape(points, b * r * c * C)
        tiles = (self.transforms.input @ tiles).view(points, b * r * c, C)
        for outputs, weights in self._weights():
            products = tiles @ weights  # (points, tiles, outputs)
            results = self.transforms.output @ products.view(points, -1)
            results = results.view(m, m, b, r, c, -1).permute(2, 3, 0, 4, 1, 5)
            if self.bias is None:
                place[..., outputs] = results
            else:
                torch.add(results, self.bias[outputs], out=place[..., outputs])

    def _weights(self) -> Iterator[tuple[slice, Tensor]]:
        """Output channels and their transformed weights (points, C, outputs)."""
        if self.keep_weights:
            if self.transformed is None:
                self.transformed = self._transform_all()
            yield slice(0, self.out_channels), self.transformed
            return
        assert self.weight is not None
        for outputs in self._pieces(self.out_channels, self.in_channels):
            points = self.transforms.weight @ self.weight[outputs].flatten(2).flatten(0, 1).t()
            yield outputs, points.view(len(points), -1, self.in_channels).mT

    def _transform_all(self) -> Tensor:
        """All weights (points, C, O), in that order in memory: so products are fastest."""
        assert self.weight is not None
        transformed = self.weight.new_empty(
            self.transforms.points, self.in_channels, self.out_channels
        )
        for inputs in self._pieces(self.in_channels, self.out_channels):
            piece = self.weight[:, inputs].flatten(2).permute(2, 1, 0).flatten(1)  # (9, C O)
            transformed[:, inputs] = (self.transforms.weight @ piece).view_as(
                transformed[:, inputs]
            )
        if self.let_go is not None:
            self.let_go(self.weight)
        self.weight, self.let_go = None, None  # it may hold on to the file in which weights lie
        return transformed

    def _pieces(self, channels: int, others: int) -> Iterator[slice]:
        """Slices of channels whose transformed weights to the others fit the workspace."""
        step = max(WEIGHT_WORKSPACE // (4 * self.transforms.points * others), 1)
        for start in range(0, channels, step):
            yield slice(start, min(start + step, channels))

    def _parts(self, images: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
        """Slices of the images and of the rows of tiles that are worked on together."""
        values = 2 * self.in_channels + self.out_channels  # of a tile, at each point
        fitting = WORKSPACE // (4 * values * self.transforms.points)
        # Every part reads all weights again: twice as much as its own tiles at most.
        worthwhile = self.in_channels * self.out_channels // (2 * values)
        tiles = max(fitting, worthwhile)
        together = tiles // columns  # rows
        if together >= rows:
            step = together // rows
            for start in range(0, images, step):
                yield slice(start, min(start + step, images)), slice(0, rows)
            return
        step = max(together, 1)
        for image in range(images):
            for start in range(0, rows, step):
                yield slice(image, image + 1), slice(start, min(start + step, rows))


def _cut(pixels: Tensor, band: slice, columns: int, m: int, first: int) -> Tensor:
    """Rows of tiles out of (b, H, W, C), with the zeros around them: (b, r m + 2, c m + 2, C).

    The first tile of the first row begins in row ``first``.
    """
    B, H, W, C = pixels.shape
    top, bottom = band.start * m - 1 + first, band.stop * m + 1 + first
    inside = pixels[:, max(top, 0) : min(bottom, H)]
    above, below = max(-top, 0), max(bottom - H, 0)
    part = pixels.new_empty(B, bottom - top, columns * m + 2, C)
    part[:, :above] = 0
    part[:, bottom - top - below :] = 0
    part[:, :, 0] = 0
    part[:, :, W + 1 :] = 0
    part[:, above : bottom - top - below, 1 : W + 1] = inside
    return part
