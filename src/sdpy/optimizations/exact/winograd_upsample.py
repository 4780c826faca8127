"""Doubling a map and convolving it, without the doubled map."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sdpy.models.resnet import Upsample2D
from sdpy.optimizations.exact.winograd import DOUBLING, Keep, WinogradConv2d


class WinogradUpsample2D(nn.Module):
    """`Upsample2D` whose convolution is computed of the map as it is before it is doubled.

    Args:
        original: what to replace. It is kept, with its weights, for results that are to be other
            than twice as large.
        keep: what to keep of the weights beside them.
    """

    def __init__(self, original: Upsample2D, keep: Keep = Keep.TRANSFORMED) -> None:
        super().__init__()
        self.original = original
        self.conv = WinogradConv2d(original.conv, DOUBLING, keep)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W), or to ``size`` where an odd side was halved before."""
        if size is None or list(size) == [2 * side for side in x.shape[2:]]:
            return self.conv(x)
        return self.original(x, size)
