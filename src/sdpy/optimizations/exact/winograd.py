"""3x3 convolutions by Winograd's minimal filtering: fewer multiplications for the same result.

A tile of m x m results needs (m + 2)^2 multiplications a pair of channels instead of 9 m^2. Input
tiles and weights are transformed, multiplied point by point, which over all channels and tiles is
one matrix product a point, and transformed back:

    Y = A^T [(G g G^T) * (B^T d B)] A

Source: "Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, 2016), equation 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from sdpy.optimizations.base import PackingModule
from sdpy.optimizations.exact import onednn_products
from sdpy.optimizations.exact.winograd_transforms import Transforms

WORKSPACE = 16 * 2**20
"""The bytes of transformed tiles that are worked on together; they should stay in a cache."""

ONEDNN_WORKSPACE = 64 * 2**20
"""The same for weights that are kept transformed, where `onednn_products.is_fast`: larger products
gain more there than a cache does. Tiles that are read for each piece of weights stay in the cache.
"""

LARGE = 512 * 512
"""The numbers of a kernel's weights at a point from which on oneDNN multiplies them, there. Smaller
products take too little time for as many calls as there are points."""

POINTS_TOGETHER = 9
"""The points for which weights are transformed at a time before oneDNN packs them, which is as much
memory as the weights take."""

WEIGHT_WORKSPACE = 12 * 2**20
"""The bytes of weights that are transformed at a time; they should stay in a cache, too."""

WEIGHT_STEP = 32
"""The number of output channels at a time is a multiple of this, whole vectors of a product."""


class Keep(Enum):
    """What a convolution keeps of its weights."""

    TRANSFORMED = "transformed"
    """``(m + 2)^2 / 9`` times as much as there was (16/9 for m = 2, 4 for m = 4)."""
    ORDERED = "ordered"
    """As much, in the order in which they are transformed at each use."""
    ORIGINAL = "original"
    """The originals alone, which are put in order and transformed at each use."""


@dataclass(frozen=True)
class Frame:
    """Memory for an input, to be filled by whoever makes it, so that none need be copied.

    Attributes:
        pixels: (B, H, W, C), the input with what is around it, up to whole tiles.
        inside: the place for the input itself, as (B, C, H, W).
        shape: (B, H, W) of that part of the input for which results are asked.
    """

    pixels: Tensor
    inside: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(
        cls, shape: torch.Size, above: int, below: int, m: int, dtype: torch.dtype = torch.float32
    ) -> Frame:
        """Zeros around an empty place.

        Args:
            shape: (B, C, H, W) of the input.
            above, below: how many of its first and last rows (0 or 1 each) only border those that
                results are asked for, in place of the zeros there.
            m: of the convolution.
            dtype: of the input.
        """
        B, C, H, W = shape
        height = H - above - below
        rows, columns = (-(-side // m) * m + 2 for side in (height, W))
        pixels = torch.empty(B, rows, columns, C, dtype=dtype)
        top = 1 - above
        pixels[:, :top] = 0
        pixels[:, top + H :] = 0
        pixels[:, :, 0] = 0
        pixels[:, :, W + 1 :] = 0
        inside = pixels[:, top : top + H, 1 : W + 1].permute(0, 3, 1, 2)
        return cls(pixels, inside, (B, height, W))


class WinogradConv2d(PackingModule):
    """A 3x3 convolution of stride 1 and padding 1, of an input or of an input doubled.

    What is kept of the weights is made at the first use, and the originals are not looked at any
    more. Weights that are transformed at each use are so some output channels at a time, so that
    they never leave the cache. Those that are kept transformed and large are packed for oneDNN,
    where it multiplies faster.

    Args:
        original: the convolution to compute, its weights float32 on the CPU.
        transforms: what to compute it by. Rounding errors grow with m: about 1e-6 of the result at
            2, 4e-6 at 4.
        keep: what to keep of the weights.
    """

    def __init__(
        self, original: nn.Conv2d, transforms: Transforms, keep: Keep = Keep.TRANSFORMED
    ) -> None:
        super().__init__()
        self.original, self.transforms, self.keep = original, transforms, keep
        self.in_channels, self.out_channels = original.in_channels, original.out_channels
        self.needs_original = keep is Keep.ORIGINAL
        self.doubles = transforms.scale == 2
        self.frame_multiple = None if self.doubles else transforms.m
        self.kept: Tensor | None
        self.register_buffer("kept", None, persistent=False)
        large = self.in_channels * self.out_channels >= LARGE
        self.packs = keep is Keep.TRANSFORMED and large and onednn_products.is_fast()
        self.packed: tuple[Tensor, ...] | None = None

    def forward(self, x: Tensor | Frame, place: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, O, scale H, scale W); fastest, and the result is, channels-last.

        Args:
            x: the input, or a `Frame` that was filled with it.
            place: for the result; None for new memory.
        """
        m, scale = self.transforms.m, self.transforms.scale
        B, H, W = (x.shape[0], *x.shape[2:]) if isinstance(x, Tensor) else x.shape
        if place is None:
            place = torch.empty(B, scale * H, scale * W, self.out_channels).permute(0, 3, 1, 2)
        result = place.permute(0, 2, 3, 1)
        for images, band in self._parts(B, H, W):
            if isinstance(x, Frame):
                part = x.pixels[images, band.start : -(-band.stop // m) * m + 2]
            else:
                part = _framed(x[images], band, m)
            self._convolve(part, result[images, _times(band, scale)])
        return place

    def _convolve(self, part: Tensor, result: Tensor) -> None:
        """(b, r m + 2, c m + 2, C) into ``result`` (b, H, W, O), of which tiles may stand out."""
        m, points = self.transforms.m, self.transforms.points
        b, height, width, _ = part.shape
        r, c = (height - 2) // m, (width - 2) // m  # of tiles
        tiles = self.transforms.transform_input(part)
        for outputs, products in self._products(tiles):
            results = self.transforms.transform_output(products.view(points, -1))
            results = results.view(*results.shape[:-1], b, r, c, -1).permute(4, 5, 2, 0, 6, 3, 1, 7)
            bias = None if self.original.bias is None else self.original.bias[outputs]
            _write_tiles(results, bias, result[..., outputs])
            del products, results  # their memory is in the cache, and the next ones take it

    def _products(self, tiles: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Output channels and (points, T, outputs) of them, of tiles (points, T, C)."""
        if not self.packs:
            for outputs, weights in self._weights():
                yield outputs, tiles @ weights
            return
        self.prepare()
        assert self.packed is not None
        products = tiles.new_empty(*tiles.shape[:2], self.out_channels)
        for some, weight, place in zip(tiles, self.packed, products, strict=True):
            place.copy_(onednn_products.product(some, weight, None))
        yield slice(0, self.out_channels), products

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
        return _in_order(self.original.weight[outputs])

    def _transform(self, ordered: Tensor, memory: Tensor | None = None) -> Tensor:
        """(9, C, outputs) -> (points, C, outputs), in the beginning of ``memory`` if given."""
        points, values = self.transforms.points, ordered[0].numel()
        place = None if memory is None else memory[: points * values].view(points, values)
        transformed = torch.mm(self.transforms.weight, ordered.flatten(1), out=place)
        return transformed.view(points, *ordered.shape[1:])

    def _kept(self) -> Tensor:
        """All weights: (points, C, O) if transformed, else those of each piece, flattened."""
        self.prepare()
        assert self.kept is not None
        return self.kept

    def prepare(self) -> None:
        """Make what is kept of the weights, unless it is there."""
        if self.needs_original or self.kept is not None or self.packed is not None:
            return
        weight = self.original.weight
        if self.packs:
            self.packed = tuple(self._pack(weight.detach()))
            return
        shape = self.transforms.points, self.in_channels, self.out_channels
        transformed = self.keep is Keep.TRANSFORMED
        kept = weight.new_empty(shape if transformed else weight.numel())
        for outputs in self._pieces():
            piece = _in_order(weight[outputs])
            if transformed:
                kept[..., outputs] = self._transform(piece)
            else:
                kept[_span(outputs, 9 * self.in_channels)].view(piece.shape).copy_(piece)
        self.kept = kept

    def _pack(self, weight: Tensor) -> Iterator[Tensor]:
        """The transformed weights (O, C) of each point, as oneDNN reads them."""
        rows = self._tiles_together()
        kernels = weight.reshape(-1, 9).t()
        for some in torch.split(self.transforms.weight, POINTS_TOGETHER):
            for one in (some @ kernels).view(-1, *weight.shape[:2]):
                yield onednn_products.packed(one, rows)

    def _pieces(self) -> Iterator[slice]:
        """Slices of output channels whose transformed weights fit the workspace."""
        within_cache = WEIGHT_WORKSPACE // (4 * self.transforms.points * self.in_channels)
        step = max(within_cache // WEIGHT_STEP, 1) * WEIGHT_STEP
        for start in range(0, self.out_channels, step):
            yield slice(start, min(start + step, self.out_channels))

    def _tiles_together(self) -> int:
        points = self.transforms.points
        return tiles_together(self.in_channels, self.out_channels, points, self.keep)

    def _parts(self, images: int, height: int, width: int) -> Iterator[tuple[slice, slice]]:
        """Slices of the images and of the rows that are worked on together, from tile to tile."""
        m = self.transforms.m
        rows, columns = -(-height // m), -(-width // m)  # of tiles
        together = self._tiles_together() // columns  # rows
        if together >= rows:
            step = together // rows
            for start in range(0, images, step):
                yield slice(start, min(start + step, images)), slice(0, height)
            return
        step = max(together, 1) * m
        for image in range(images):
            for start in range(0, height, step):
                yield slice(image, image + 1), slice(start, min(start + step, height))


def tiles_together(in_channels: int, out_channels: int, points: int, keep: Keep) -> int:
    """How many tiles are worked on together, if they are not rounded to whole rows."""
    values = 2 * in_channels + out_channels  # of a tile, at each point
    large = keep is Keep.TRANSFORMED and onednn_products.is_fast()
    workspace = ONEDNN_WORKSPACE if large else WORKSPACE
    within_cache = workspace // (4 * values * points)
    # Every part reads all weights again, twice as much as its own tiles at most; those that it
    # has to transform cost more.
    factor = 1 if keep is Keep.TRANSFORMED else 2
    worthwhile = factor * in_channels * out_channels // (2 * values)
    return max(within_cache, worthwhile)


def _in_order(weights: Tensor) -> Tensor:
    """A view (9, C, O) of weights (O, C, 3, 3)."""
    return weights.flatten(2).permute(2, 1, 0)


def _span(outputs: slice, values: int) -> slice:
    """Where the weights of output channels lie, of each of which there are so many ``values``."""
    return slice(outputs.start * values, outputs.stop * values)


def _framed(x: Tensor, band: slice, m: int) -> Tensor:
    """Some rows of (b, C, H, W) as the pixels of a `Frame`."""
    above, below = int(band.start > 0), int(band.stop < x.shape[2])
    inside = x[:, :, band.start - above : band.stop + below]
    frame = Frame.of(inside.shape, above, below, m)
    frame.inside.copy_(inside)
    return frame.pixels


def _write_tiles(tiles: Tensor, bias: Tensor | None, result: Tensor) -> None:
    """Add the bias (O,) to tiles and write them into ``result`` (b, H, W, O).

    Args:
        tiles: (b, r, m, scale, c, m, scale, O).
    """
    m, scale = tiles.shape[2:4]
    for r, rows, height in _whole_and_last(result.shape[1] // scale, m):
        for c, columns, width in _whole_and_last(result.shape[2] // scale, m):
            part = tiles[:, r, :height, :, c, :width]
            place = result[:, _times(rows, scale), _times(columns, scale)].view(part.shape)
            if bias is None:
                place.copy_(part)
            else:
                torch.add(part, bias, out=place)


def _whole_and_last(length: int, m: int) -> Iterator[tuple[slice, slice, int]]:
    """Tiles along an axis, the places that they cover, and how many each does: m, the last less."""
    whole, rest = divmod(length, m)
    if whole:
        yield slice(0, whole), slice(0, whole * m), m
    if rest:
        yield slice(whole, whole + 1), slice(whole * m, length), rest


def _times(rows: slice, scale: int) -> slice:
    return slice(rows.start * scale, rows.stop * scale)
