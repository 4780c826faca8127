"""Residual blocks and the changes of resolution, shared by the UNet and the VAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.models.rows import add_rows, repeat_rows


class ResnetBlock2D(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, added to the input.

    Args:
        in_channels: C of the input.
        out_channels: C of the result; where it differs, a 1x1 convolution adapts the shortcut.
        time_embed_dim: channels of the time embedding that is added between the convolutions;
            None for the VAE, which knows no time.
        norm_num_groups: groups of both GroupNorms.
        eps: of both GroupNorms (1e-5 in the UNet, 1e-6 in the VAE).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_embed_dim: int | None,
        norm_num_groups: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = (
            None if time_embed_dim is None else nn.Linear(time_embed_dim, out_channels)
        )
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = (
            None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        """Compute the block.

        Args:
            x: (B or k B, C_in, H, W).
            time_emb: (1, B or k B, time_embed_dim).

        Returns:
            (B or k B, C_out, H, W), with as many rows as the argument that has more.
        """
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None and time_emb is not None:
            h = add_rows(h, self.time_emb_proj(F.silu(_as_rows_of(h, time_emb)))[:, :, None, None])
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return add_rows(shortcut, h)


def _as_rows_of(h: Tensor, time_emb: Tensor) -> Tensor:
    """The embedding of each row, as the rounding of a product depends on how many rows it has."""
    if len(time_emb) == 1:
        return time_emb.expand(len(h), -1)
    return repeat_rows(time_emb, max(len(h), len(time_emb)))


class Downsample2D(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2.

    The UNet pads by one on every side; the VAE on the right and the bottom only
    (``asymmetric_padding``), as they were trained.
    """

    def __init__(self, channels: int, *, asymmetric_padding: bool) -> None:
        super().__init__()
        self.asymmetric_padding = asymmetric_padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=int(not asymmetric_padding))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2), rounded up; down with asymmetric padding."""
        if self.asymmetric_padding:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample2D(nn.Module):
    """Doubles height and width by repeating pixels, then smooths with a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W), or to ``size`` where an odd side was halved before."""
        if size is None:
            size = (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=list(size), mode="nearest"))
