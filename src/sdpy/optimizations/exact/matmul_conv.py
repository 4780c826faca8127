"""Convolutions as one matrix product, for small pictures with many channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MatmulConv2d(nn.Module):
    """A convolution as the product of the patches it falls on and its weights as they are.

    Where pictures are small and channels many, the weights are the larger operand by far, and a
    matrix product reads them once, where a direct convolution first copies them into another order.

    Args:
        conv: the convolution to replace, with a square kernel, without groups or dilation.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding = conv.stride[0], int(conv.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, h, w), the result in channels-last memory."""
        kernel = self.weight.shape[-1]
        if (kernel, self.stride, self.padding) == (1, 1, 0):
            pixels = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
            return pixels.permute(0, 3, 1, 2)
        patches = unfold_patches(x, kernel, self.stride, self.padding)
        B, h, w = patches.shape[1:]
        result = patches.flatten(1).t() @ self.weight.flatten(1).t()  # (B * h * w, O)
        if self.bias is not None:
            result += self.bias
        return result.view(B, h, w, -1).permute(0, 3, 1, 2)


def unfold_patches(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """What a kernel x kernel convolution falls on: (B, C, H, W) -> (C * kernel^2, B, h, w)."""
    x = F.pad(x.transpose(0, 1).contiguous(), (padding,) * 4)  # (C, B, H + 2 p, W + 2 p)
    patches = x.unfold(2, kernel, stride).unfold(3, kernel, stride)  # (C, B, h, w, k, k)
    C, B, h, w = patches.shape[:4]
    return patches.permute(0, 4, 5, 1, 2, 3).reshape(C * kernel * kernel, B, h, w)
