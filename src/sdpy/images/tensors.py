"""Between Pillow's images and tensors."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdpy.errors import OutputError


def image_to_tensor(image: Image.Image) -> Tensor:
    """Image (RGB) to float32 (1, 3, H, W) in [-1, 1]."""
    rgb = torch.from_numpy(np.array(image.convert("RGB")))  # (H, W, 3)
    return rgb.permute(2, 0, 1).unsqueeze(0).contiguous().float() / 255.0 * 2.0 - 1.0


def mask_to_tensor(mask: Image.Image) -> Tensor:
    """Mask (mode L) to float32 (1, 1, H, W): 1 is repainted, 0 is kept, and shares in between."""
    return torch.from_numpy(np.array(mask.convert("L"))).float()[None, None] / 255


def tensor_to_image(tensor: Tensor) -> Image.Image:
    """Float (3, H, W) or (1, 3, H, W) in [-1, 1] to an image; outside values are clamped.

    Grey levels are rounded to the nearest, not cut off.

    Raises:
        OutputError: a value is NaN or infinite, as when a decoder overflows in half precision.
    """
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"tensor is {tuple(tensor.shape)}, (3, H, W) or (1, 3, H, W) is needed")
    tensor = tensor.detach().to("cpu", torch.float32)
    if not torch.isfinite(tensor).all():
        raise OutputError(
            "the generated image holds values that are not numbers; "
            "the weights may be damaged or overflow in half precision: try float32"
        )
    levels = (tensor / 2.0 + 0.5).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
