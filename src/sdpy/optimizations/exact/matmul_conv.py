"""Convolutions as one matrix product, for small maps with many channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MatmulConv2d(nn.Module):
    """A convolution as the product of the patches it falls on and its weights as they are.

    Where maps are small and channels many, the weights are the larger operand by far, and a
    matrix product reads them once, where a direct convolution first copies them into another order.

    Args:
        original: the convolution to compute, with a square kernel, without groups or dilation.
    """

    needs_original = True

    def __init__(self, original: nn.Conv2d) -> None:
        super().__init__()
        self.original = original
        self.stride, self.padding = original.stride[0], int(original.padding[0])

    def prepare(self) -> None:
        """Nothing: the weights are used as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, h, w), the result in channels-last memory."""
        weight, bias = self.original.weight, self.original.bias
        kernel = weight.shape[-1]
        if (kernel, self.stride, self.padding) == (1, 1, 0):
            pixels = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
            return pixels.permute(0, 3, 1, 2)
        patches = unfold_patches(x, kernel, self.stride, self.padding)
        B, h, w = patches.shape[1:]
        result = patches.flatten(1).t() @ weight.flatten(1).t()  # (B * h * w, O)
        if bias is not None:
            result += bias
        return result.view(B, h, w, -1).permute(0, 3, 1, 2)


def unfold_patches(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """What a kernel x kernel convolution falls on: (B, C, H, W) -> (C * kernel^2, B, h, w)."""
    x = F.pad(x.transpose(0, 1).contiguous(), (padding,) * 4)  # (C, B, H + 2 p, W + 2 p)
    patches = x.unfold(2, kernel, stride).unfold(3, kernel, stride)  # (C, B, h, w, k, k)
    C, B, h, w = patches.shape[:4]
    return patches.permute(0, 4, 5, 1, 2, 3).reshape(C * kernel * kernel, B, h, w)
