"""The autoencoder in strips: the same picture in less memory, at any size.

Nearly all of its memory goes to feature maps of the picture's own width and height, of which a
ResNet needs several at once: normed, activated, and laid out anew for the convolution. Here these
exist for a strip of rows at a time. A norm's statistics are taken over the whole map before, and a
strip is convolved together with the rows that border it, so nothing is blended and there is no
seam: the result differs from the plain one by the rounding of a sum alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from sdpy.models.vae import AutoencoderKL, Decoder, Encoder
from sdpy.optimizations.exact.winograd import Frame, WinogradConv2d

STRIP_BYTES = 16 * 2**20
"""How much of a feature map is normed and convolved at a time."""
STATISTICS_BYTES = 2 * 2**20
"""How much of it a norm's statistics are taken of at a time, which goes over it more than once."""
WHOLE_ROWS = 4
"""A strip has a multiple of so many rows: whole tiles of Winograd's convolutions."""
MIN_ROWS = 8
"""Of a strip, however wide: each is computed with two more rows, which are thrown away."""

Make = Callable[[Tensor | None], Tensor]
"""Makes a tensor, in the place that it is given if any."""
Strips = Iterable[tuple[slice, Make]]
"""Rows of a map, and what makes them: (B, C, rows, W); from top to bottom, one at a time."""


def compute_in_strips(model: nn.Module) -> None:
    """Make an autoencoder compute in strips; any other model stays as it is.

    The convolutions are called as they are, whatever computes them. The layers of the encoder's
    and the decoder's levels follow one another directly, as a level would hold on to its input;
    with that, the names of parameters change.
    """
    if not isinstance(model, AutoencoderKL):
        return
    for module in model.modules():
        in_strips = _IN_STRIPS.get(type(module))
        if in_strips is not None:
            module.__class__ = in_strips
    model.encoder.down_blocks = _layers(model.encoder.down_blocks)
    model.decoder.up_blocks = _layers(model.decoder.up_blocks)


class ResnetBlock2DInStrips(ResnetBlock2D):
    """A ResNet of an autoencoder, which knows no time. It may write over what it is given."""

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


class Upsample2DInStrips(Upsample2D):
    """Doubles height and width."""

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        assert size is None, "only a UNet asks for a size"
        return _joined(self._strips(x), 2 * x.shape[-2])

    def _strips(self, x: Tensor) -> Strips:
        for rows in _cut(x.shape[-2], 4 * _row_bytes(x)):
            strip, above, below = _with_border(x, rows)
            doubled = F.interpolate(strip, scale_factor=2.0, mode="nearest")
            doubled = doubled[:, :, above : doubled.shape[-2] - below]  # single rows as borders
            made = partial(_placed, doubled)
            make = partial(_convolve_within, self.conv, made, doubled.shape, above, below)
            yield slice(2 * rows.start, 2 * rows.stop), make


class Downsample2DInStrips(Downsample2D):
    """Halves height and width of an encoder's map, which is padded on the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2), rounded down."""
        assert self.asymmetric_padding, "this layer is not of an autoencoder"
        return _joined(self._strips(x), x.shape[-2] // 2)

    def _strips(self, x: Tensor) -> Strips:
        for rows in _cut(x.shape[-2] // 2, 2 * _row_bytes(x)):
            strip = x[:, :, 2 * rows.start : 2 * rows.stop + 1]
            missing = 2 * (rows.stop - rows.start) + 1 - strip.shape[-2]
            yield rows, partial(_placed, self.conv(F.pad(strip, (0, 1, 0, missing))))


class EncoderInStrips(Encoder):
    """Picture -> moments of the latents' distribution."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 2 latent_channels, H / f, W / f)."""
        x = self.conv_in(x)
        for layer in self.down_blocks:
            x = layer(x)
        x = self.mid_block(x)
        return _joined(_norm_silu_conv(self.conv_norm_out, self.conv_out, x), x.shape[-2])


class DecoderInStrips(Decoder):
    """Latents -> picture."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, latent_channels, h, w) -> (B, out_channels, h f, w f)."""
        x = self.mid_block(self.conv_in(x))
        for layer in self.up_blocks:
            x = layer(x)
        return _joined(_norm_silu_conv(self.conv_norm_out, self.conv_out, x), x.shape[-2])


_IN_STRIPS: dict[type[nn.Module], type[nn.Module]] = {
    ResnetBlock2D: ResnetBlock2DInStrips,
    Upsample2D: Upsample2DInStrips,
    Downsample2D: Downsample2DInStrips,
    Encoder: EncoderInStrips,
    Decoder: DecoderInStrips,
}


def _layers(levels: nn.ModuleList) -> nn.ModuleList:
    """The layers of all levels, in the order in which they are run."""
    parts = ("resnets", "downsamplers", "upsamplers")
    return nn.ModuleList(
        layer for level in levels for part in parts for layer in getattr(level, part, None) or ()
    )


def _norm_silu_conv(norm: nn.GroupNorm, conv: nn.Module, x: Tensor) -> Strips:
    """``conv(silu(norm(x)))``, of a 3x3 convolution that pads by one."""
    scale, shift = _as_affine(norm, x)
    for rows in _cut(x.shape[-2], _row_bytes(x)):
        strip, above, below = _with_border(x, rows)
        normed = partial(_norm_silu, scale, shift, strip)
        yield rows, partial(_convolve_within, conv, normed, strip.shape, above, below)


def _norm_silu(scale: Tensor, shift: Tensor, strip: Tensor, place: Tensor | None) -> Tensor:
    return F.silu(torch.addcmul(shift, strip, scale, out=place), inplace=True)


def _placed(x: Tensor, place: Tensor | None) -> Tensor:
    return x if place is None else place.copy_(x)


def _as_affine(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """``scale`` and ``shift`` (B, C, 1, 1), with which ``norm(x)`` is ``scale x + shift``.

    The statistics are torch's own, of a strip at a time, since it also returns what it normed.
    """
    B, C, H, W = x.shape
    weights, means, variances = [], [], []
    for strip in torch.split(x, max(STATISTICS_BYTES // _row_bytes(x), 1), dim=2):
        height = strip.shape[-2]
        _, mean, rstd = torch.native_group_norm(
            _dense(strip), None, None, B, C, height * W, norm.num_groups, 0.0
        )
        weights.append(height / H)
        means.append(mean)
        variances.append(rstd.double() ** -2)
    share = x.new_tensor(weights, dtype=torch.float64)[:, None, None]
    of_strips, within = torch.stack(means).double(), torch.stack(variances)
    mean = (share * of_strips).sum(0)  # (B, groups)
    variance = (share * (within + (of_strips - mean) ** 2)).sum(0)
    mean, rstd = (
        one.to(x.dtype).repeat_interleave(C // norm.num_groups, dim=1)  # (B, C)
        for one in (mean, (variance + norm.eps).rsqrt())
    )
    scale = rstd * norm.weight
    shift = norm.bias - mean * scale
    return scale[..., None, None], shift[..., None, None]


def _dense(strip: Tensor) -> Tensor:
    """The same numbers in the same order in memory, with nothing between them."""
    return strip.contiguous(memory_format=_order(strip))


def _row_bytes(x: Tensor) -> int:
    return x[:, :, :1].numel() * x.element_size()


def _cut(height: int, row_bytes: int) -> Iterator[slice]:
    """The rows of each strip, where a row takes ``row_bytes``; about as many in each."""
    count = -(-height // max(STRIP_BYTES // row_bytes, MIN_ROWS))
    rows = -(-height // count // WHOLE_ROWS) * WHOLE_ROWS
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def _with_border(x: Tensor, rows: slice) -> tuple[Tensor, int, int]:
    """A strip of ``x`` with its neighbours, and how many there are above and below: 0 or 1."""
    above, below = int(rows.start > 0), int(rows.stop < x.shape[-2])
    return x[:, :, rows.start - above : rows.stop + below], above, below


def _convolve_within(
    conv: nn.Module,
    make_input: Make,
    shape: torch.Size,
    above: int,
    below: int,
    place: Tensor | None,
) -> Tensor:
    """What ``conv`` makes of a strip of that shape, without what it makes of its border."""
    if isinstance(conv, WinogradConv2d):
        frame = Frame.of(shape, above, below, conv.transforms.m)
        make_input(frame.inside)
        return conv(frame, place)
    result = conv(make_input(None))
    return _placed(result[:, :, above : result.shape[-2] - below], place)


def _empty_like(strip: Tensor, height: int) -> Tensor:
    """A map of another height, its numbers in the order in memory that a strip's have."""
    B, C, _, W = strip.shape
    shape = (B, C, height, W)
    return torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=_order(strip))


def _order(strip: Tensor) -> torch.memory_format:
    return torch.channels_last if strip.stride(1) == 1 else torch.contiguous_format


def _joined(strips: Strips, height: int) -> Tensor:
    """A new map of that height, which the strips make up."""
    whole: Tensor | None = None
    for rows, make in strips:
        if whole is None:
            first = make(None)
            whole = _empty_like(first, height)
            whole[:, :, rows] = first
        else:
            make(whole[:, :, rows])
    assert whole is not None, "a map without rows"
    return whole


def _written_over(whole: Tensor, strips: Iterable[tuple[slice, Tensor]]) -> Tensor:
    """Strips written over the map that they are made of.

    Each is written when the next one, which still sees the row above it, is there.
    """
    last: tuple[slice, Tensor] | None = None
    for rows, strip in strips:
        if last is not None:
            whole[:, :, last[0]] = last[1]
        last = rows, strip
    assert last is not None, "a map without rows"
    whole[:, :, last[0]] = last[1]
    return whole
