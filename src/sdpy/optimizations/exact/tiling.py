"""The autoencoder in tiles of rows: the same image in less memory, at any size.

Nearly all of its memory goes to feature maps of the image's own width and height, of which a ResNet
needs several at once: normed, activated, and laid out anew for the convolution. Here these exist
for one tile at a time, some rows over the whole width. A norm's statistics are taken over the whole
map before, and a tile is convolved together with the rows that border it, so nothing is blended and
there is no seam: the result differs from the plain one by the rounding of a sum alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models import AutoencoderKL
from sdpy.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from sdpy.models.vae import Decoder, Encoder
from sdpy.optimizations.base import PassContext, replace_module
from sdpy.optimizations.exact.adaptive import AdaptiveConv2d
from sdpy.optimizations.exact.winograd import Frame

TILE_BYTES = 16 * 2**20
"""The bytes of a feature map that are normed and convolved at a time."""

STATISTICS_BYTES = 2 * 2**20
"""The bytes of it that a norm's statistics are taken of at a time, which goes over them twice."""

ROW_MULTIPLE = 4
"""The number of rows in a tile is a multiple of this, whole tiles of Winograd's convolutions."""

MIN_ROWS = 8
"""The least number of rows in a tile; two more, its borders, are computed and thrown away."""

Make = Callable[[Tensor | None], Tensor]
"""Makes a tensor, in the memory that it is given if any."""
Tiles = Iterable[tuple[slice, Make]]
"""Rows of a map, and what makes them: (B, C, rows, W); from top to bottom, one at a time."""


class Tiling:
    """The pass that makes an `AutoencoderKL` compute in tiles.

    Encoder, decoder, ResNets and changes of resolution are replaced; the convolutions are called as
    they are, whatever computes them. The layers of all levels follow one another directly, as a
    level would hold on to its input; with that, the names of parameters change.
    """

    name = "tiling"

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """To an `AutoencoderKL`; a tiny one has no norms and needs less memory anyway."""
        return context.tiled and isinstance(model, AutoencoderKL)

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Replace the layers, then encoder and decoder."""
        assert isinstance(model, AutoencoderKL)
        for name, module in list(model.named_modules()):
            if isinstance(module, ResnetBlock2D):
                replace_module(model, name, TiledResnetBlock2D(module))
            elif isinstance(module, Upsample2D):
                replace_module(model, name, TiledUpsample2D(module))
            elif isinstance(module, Downsample2D):
                replace_module(model, name, TiledDownsample2D(module))
        replace_module(model, "encoder", TiledEncoder(model.encoder))
        replace_module(model, "decoder", TiledDecoder(model.decoder))


class TiledResnetBlock2D(nn.Module):
    """A ResNet of an autoencoder, which knows no time. It may write over what it is given.

    Args:
        original: the ResNet whose layers to take over.
    """

    def __init__(self, original: ResnetBlock2D) -> None:
        super().__init__()
        assert original.time_emb_proj is None, "this ResNet is not of an autoencoder"
        self.norm1, self.conv1 = original.norm1, original.conv1
        self.norm2, self.conv2 = original.norm2, original.conv2
        self.conv_shortcut = original.conv_shortcut

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        """``x`` (B, C_in, H, W) -> (B, C_out, H, W)."""
        assert time_emb is None, "this ResNet is not of an autoencoder"
        h = _joined(_norm_silu_conv(self.norm1, self.conv1, x), x.shape[-2])
        second = _norm_silu_conv(self.norm2, self.conv2, h)
        if self.conv_shortcut is None:
            for rows, make in second:
                x[:, :, rows] += make(None)
            return x
        shortcut = self.conv_shortcut
        added = ((rows, make(None).add_(shortcut(x[:, :, rows]))) for rows, make in second)
        return _written_over(h, added)


class TiledUpsample2D(nn.Module):
    """Doubles height and width, then convolves.

    Args:
        original: the layer whose convolution to take over.
    """

    def __init__(self, original: Upsample2D) -> None:
        super().__init__()
        self.conv = original.conv

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        assert size is None, "only a UNet asks for a size"
        return _joined(self._tiles(x), 2 * x.shape[-2])

    def _tiles(self, x: Tensor) -> Tiles:
        for rows in _cut(x.shape[-2], 4 * _row_bytes(x)):
            tile, above, below = _with_border(x, rows)
            doubled = F.interpolate(tile, scale_factor=2.0, mode="nearest")
            doubled = doubled[:, :, above : doubled.shape[-2] - below]  # single rows as borders
            made = partial(_placed, doubled)
            make = partial(_convolve_within, self.conv, made, doubled, above, below)
            yield slice(2 * rows.start, 2 * rows.stop), make


class TiledDownsample2D(nn.Module):
    """Halves height and width of an encoder's map, which is padded on the right and below.

    Args:
        original: the layer whose convolution to take over.
    """

    def __init__(self, original: Downsample2D) -> None:
        super().__init__()
        assert original.asymmetric_padding, "this layer is not of an autoencoder"
        self.conv = original.conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2), rounded down."""
        return _joined(self._tiles(x), x.shape[-2] // 2)

    def _tiles(self, x: Tensor) -> Tiles:
        for rows in _cut(x.shape[-2] // 2, 2 * _row_bytes(x)):
            tile = x[:, :, 2 * rows.start : 2 * rows.stop + 1]
            missing = 2 * (rows.stop - rows.start) + 1 - tile.shape[-2]
            yield rows, partial(_placed, self.conv(F.pad(tile, (0, 1, 0, missing))))


class TiledEncoder(nn.Module):
    """Image -> moments of the latents' distribution.

    Args:
        original: the encoder whose layers to take over.
    """

    def __init__(self, original: Encoder) -> None:
        super().__init__()
        self.conv_in = original.conv_in
        self.down_blocks = _layers(original.down_blocks)
        self.mid_block = original.mid_block
        self.conv_norm_out, self.conv_out = original.conv_norm_out, original.conv_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 2 latent_channels, H / f, W / f)."""
        x = self.conv_in(x)
        for layer in self.down_blocks:
            x = layer(x)
        x = self.mid_block(x)
        return _joined(_norm_silu_conv(self.conv_norm_out, self.conv_out, x), x.shape[-2])


class TiledDecoder(nn.Module):
    """Latents -> image.

    Args:
        original: the decoder whose layers to take over.
    """

    def __init__(self, original: Decoder) -> None:
        super().__init__()
        self.conv_in, self.mid_block = original.conv_in, original.mid_block
        self.up_blocks = _layers(original.up_blocks)
        self.conv_norm_out, self.conv_out = original.conv_norm_out, original.conv_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, latent_channels, h, w) -> (B, out_channels, h f, w f)."""
        x = self.mid_block(self.conv_in(x))
        for layer in self.up_blocks:
            x = layer(x)
        return _joined(_norm_silu_conv(self.conv_norm_out, self.conv_out, x), x.shape[-2])


def _layers(levels: nn.ModuleList) -> nn.ModuleList:
    """The layers of all levels, in the order in which they are run."""
    parts = ("resnets", "downsamplers", "upsamplers")
    return nn.ModuleList(
        layer for level in levels for part in parts for layer in getattr(level, part, None) or ()
    )


def _norm_silu_conv(norm: nn.GroupNorm, conv: nn.Module, x: Tensor) -> Tiles:
    """``conv(silu(norm(x)))``, of a 3x3 convolution that pads by one."""
    scale, shift = _as_affine(norm, x)
    for rows in _cut(x.shape[-2], _row_bytes(x)):
        tile, above, below = _with_border(x, rows)
        normed = partial(_norm_silu, scale, shift, tile)
        yield rows, partial(_convolve_within, conv, normed, tile, above, below)


def _norm_silu(scale: Tensor, shift: Tensor, tile: Tensor, place: Tensor | None) -> Tensor:
    return F.silu(torch.addcmul(shift, tile, scale, out=place), inplace=True)


def _placed(x: Tensor, place: Tensor | None) -> Tensor:
    return x if place is None else place.copy_(x)


def _as_affine(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """``scale`` and ``shift`` (B, C, 1, 1), with which ``norm(x)`` is ``scale x + shift``.

    The statistics are torch's own, of a tile at a time, since it also returns what it normed.
    """
    B, C, H, W = x.shape
    weights, means, variances = [], [], []
    # Of float32 parameters, torch computes statistics in float32, whatever the map is in.
    ones, zeros = (
        (None, None)
        if x.dtype == torch.float32
        else (x.new_ones(C).float(), x.new_zeros(C).float())
    )
    for tile in torch.split(x, max(STATISTICS_BYTES // _row_bytes(x), 1), dim=2):
        height = tile.shape[-2]
        _, mean, rstd = torch.native_group_norm(
            _dense(tile), ones, zeros, B, C, height * W, norm.num_groups, 0.0
        )
        weights.append(height / H)
        means.append(mean)
        variances.append(rstd.double() ** -2)
    share = x.new_tensor(weights, dtype=torch.float64)[:, None, None]
    of_tiles, within = torch.stack(means).double(), torch.stack(variances)
    mean = (share * of_tiles).sum(0)  # (B, groups)
    variance = (share * (within + (of_tiles - mean) ** 2)).sum(0)
    mean, rstd = (
        one.to(x.dtype).repeat_interleave(C // norm.num_groups, dim=1)  # (B, C)
        for one in (mean, (variance + norm.eps).rsqrt())
    )
    scale = rstd * norm.weight
    shift = norm.bias - mean * scale
    return scale[..., None, None], shift[..., None, None]


def _dense(tile: Tensor) -> Tensor:
    """The same numbers in the same order in memory, with nothing between them."""
    return tile.contiguous(memory_format=_order(tile))


def _row_bytes(x: Tensor) -> int:
    return x[:, :, :1].numel() * x.element_size()


def _cut(height: int, row_bytes: int) -> Iterator[slice]:
    """The rows of each tile, where a row takes ``row_bytes``; about as many in each."""
    count = -(-height // max(TILE_BYTES // row_bytes, MIN_ROWS))
    rows = -(-height // count // ROW_MULTIPLE) * ROW_MULTIPLE
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def _with_border(x: Tensor, rows: slice) -> tuple[Tensor, int, int]:
    """A tile of ``x`` with its neighbours, and how many there are above and below: 0 or 1."""
    above, below = int(rows.start > 0), int(rows.stop < x.shape[-2])
    return x[:, :, rows.start - above : rows.stop + below], above, below


def _convolve_within(
    conv: nn.Module,
    make_input: Make,
    tile: Tensor,
    above: int,
    below: int,
    place: Tensor | None,
) -> Tensor:
    """What ``conv`` makes of a tile like that one, without what it makes of its border."""
    if isinstance(conv, AdaptiveConv2d) and conv.frame_multiple is not None:
        frame = Frame.of(tile.shape, above, below, conv.frame_multiple, tile.dtype)
        make_input(frame.inside)
        return conv(frame, place)
    result = conv(make_input(None))
    return _placed(result[:, :, above : result.shape[-2] - below], place)


def _empty_like(tile: Tensor, height: int) -> Tensor:
    """A map of another height, its numbers in the order in memory that a tile's have."""
    B, C, _, W = tile.shape
    shape = (B, C, height, W)
    return torch.empty(shape, dtype=tile.dtype, device=tile.device, memory_format=_order(tile))


def _order(tile: Tensor) -> torch.memory_format:
    return torch.channels_last if tile.stride(1) == 1 else torch.contiguous_format


def _joined(tiles: Tiles, height: int) -> Tensor:
    """A new map of that height, which the tiles make up."""
    whole: Tensor | None = None
    for rows, make in tiles:
        if whole is None:
            first = make(None)
            whole = _empty_like(first, height)
            whole[:, :, rows] = first
        else:
            make(whole[:, :, rows])
    assert whole is not None, "a map without rows"
    return whole


def _written_over(whole: Tensor, tiles: Iterable[tuple[slice, Tensor]]) -> Tensor:
    """Tiles written over the map that they are made of.

    Each is written when the next one, which still sees the row above it, is there.
    """
    last: tuple[slice, Tensor] | None = None
    for rows, tile in tiles:
        if last is not None:
            whole[:, :, last[0]] = last[1]
        last = rows, tile
    assert last is not None, "a map without rows"
    whole[:, :, last[0]] = last[1]
    return whole
