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
from enum import Enum

import torch
from torch import Tensor, nn

WORKSPACE = 16 * 2**20
"""Bytes of transformed tiles that are worked on together: they should stay in a cache."""
WEIGHT_WORKSPACE = 12 * 2**20
"""Bytes of weights that are transformed at a time: they should stay in a cache beside the tiles."""
WEIGHT_STEP = 32
"""Output channels at a time are a multiple of this: a product has whole vectors of them."""


class Keep(Enum):
    """What a convolution keeps of its weights."""

    TRANSFORMED = "transformed"
    """``(m + 2)^2 / 9`` times as much as there was (16/9 for m = 2, 4 for m = 4)."""
    ORDERED = "ordered"
    """As much, in the order in which they are transformed at each use."""
    ORIGINAL = "original"
    """The originals alone, which are put in order and transformed at each use."""


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

    What is kept of the weights is made at the first use, and the originals are let go. Weights that
    are transformed at each use are so some output channels at a time, so that they never leave the
    cache.

    Args:
        conv: the convolution to replace, its weights float32 on the CPU.
        m: 2 or 4. Rounding errors grow with it: about 1e-6 and 4e-6 of the result.
        keep: what to keep of the weights.

    Attributes:
        let_go: called with the originals when they are not needed any more.
    """

    def __init__(self, conv: nn.Conv2d, m: int, keep: Keep = Keep.TRANSFORMED) -> None:
        super().__init__()
        self.transforms, self.keep = TRANSFORMS[m], keep
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.weight: Tensor | None = conv.weight
        self.bias = conv.bias
        self.kept: Tensor | None
        self.register_buffer("kept", None, persistent=False)
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
            del products, results  # their memory is in the cache, and the next ones take it

    def _weights(self) -> Iterator[tuple[slice, Tensor]]:
        """Output channels and their transformed weights (points, C, outputs)."""
        if self.keep is Keep.TRANSFORMED:
            yield slice(0, self.out_channels), self._kept()
            return
        # All pieces in the same memory, which then is in the cache.
        memory: Tensor | None = None
        for outputs in self._pieces():
            ordered = self._ordered(outputs)
            if memory is None:
                memory = ordered.new_empty(self.transforms.points * ordered[0].numel())
            yield outputs, self._transform(ordered, memory)

    def _ordered(self, outputs: slice) -> Tensor:
        """The weights (9, C, outputs) of some output channels."""
        if self.keep is Keep.ORDERED:
            return self._kept()[_span(outputs, 9 * self.in_channels)].view(9, self.in_channels, -1)
        assert self.weight is not None
        return self.weight[outputs].flatten(2).permute(2, 1, 0)

    def _transform(self, ordered: Tensor, memory: Tensor | None = None) -> Tensor:
        """(9, C, outputs) -> (points, C, outputs), in the beginning of ``memory`` if given."""
        points, values = self.transforms.points, ordered[0].numel()
        place = None if memory is None else memory[: points * values].view(points, values)
        transformed = torch.mm(self.transforms.weight, ordered.flatten(1), out=place)
        return transformed.view(points, *ordered.shape[1:])

    def _kept(self) -> Tensor:
        """All weights: (points, C, O) if transformed, else those of each piece, flattened."""
        if self.kept is None:
            assert self.weight is not None
            shape = self.transforms.points, self.in_channels, self.out_channels
            transformed = self.keep is Keep.TRANSFORMED
            kept = self.weight.new_empty(shape if transformed else self.weight.numel())
            for outputs in self._pieces():
                piece = self.weight[outputs].flatten(2).permute(2, 1, 0)  # (9, C, outputs)
                if transformed:
                    kept[..., outputs] = self._transform(piece)
                else:
                    kept[_span(outputs, 9 * self.in_channels)].view(piece.shape).copy_(piece)
            self.kept = kept
            if self.let_go is not None:
                self.let_go(self.weight)
            self.weight, self.let_go = None, None  # it may hold on to the file with the weights
        return self.kept

    def _pieces(self) -> Iterator[slice]:
        """Slices of output channels whose transformed weights fit the workspace."""
        fitting = WEIGHT_WORKSPACE // (4 * self.transforms.points * self.in_channels)
        step = max(fitting // WEIGHT_STEP, 1) * WEIGHT_STEP
        for start in range(0, self.out_channels, step):
            yield slice(start, min(start + step, self.out_channels))

    def _parts(self, images: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
        """Slices of the images and of the rows of tiles that are worked on together."""
        tiles = tiles_together(self, self.transforms.points, self.keep)
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


def tiles_together(conv: nn.Conv2d | WinogradConv2d, points: int, keep: Keep) -> int:
    """How many tiles are worked on together, if they are not rounded to whole rows."""
    values = 2 * conv.in_channels + conv.out_channels  # of a tile, at each point
    fitting = WORKSPACE // (4 * values * points)
    # Every part reads all weights again, twice as much as its own tiles at most; those that it
    # has to transform are dearer.
    dearer = 1 if keep is Keep.TRANSFORMED else 2
    worthwhile = dearer * conv.in_channels * conv.out_channels // (2 * values)
    return max(fitting, worthwhile)


def _span(outputs: slice, values: int) -> slice:
    """Where the weights of output channels lie, of each of which there are so many ``values``."""
    return slice(outputs.start * values, outputs.stop * values)


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
