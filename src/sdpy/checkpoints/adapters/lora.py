"""LoRA: two factors of a low rank, for convolutions also three (LoCon).

Source: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021), equation 3; for
convolutions as in "Navigating Text-To-Image Customization" (Yeh et al., 2024), LyCORIS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdpy.checkpoints.adapters.base import Adapter, Roles, without_ones


@dataclass(frozen=True)
class LoRA(Adapter):
    """``alpha / rank * up @ down``, with ``mid`` between the two where there is one."""

    kind: ClassVar[str] = "a LoRA"
    # From top to bottom: kohya, peft, then diffusers' forms from the newest to the oldest.
    endings: ClassVar[Mapping[str, str]] = {
        ".lora_down.weight": "lora_down",
        ".lora_up.weight": "lora_up",
        ".lora_mid.weight": "lora_mid",
        ".lora_A.weight": "lora_down",
        ".lora_B.weight": "lora_up",
        ".lora_A.default.weight": "lora_down",
        ".lora_B.default.weight": "lora_up",
        ".lora.down.weight": "lora_down",
        ".lora.up.weight": "lora_up",
        ".lora_linear_layer.down.weight": "lora_down",
        ".lora_linear_layer.up.weight": "lora_up",
        "_lora.down.weight": "lora_down",
        "_lora.up.weight": "lora_up",
    }
    required: ClassVar[tuple[Roles, ...]] = (frozenset({"lora_down", "lora_up"}),)
    optional: ClassVar[Roles] = frozenset({"lora_mid", "alpha"})

    def fits(self, shape: tuple[int, ...]) -> bool:
        """See `Adapter.fits`."""
        up, down = self.factors.shape("lora_up"), self.factors.shape("lora_down")
        if min(len(up), len(down), len(shape)) < 2 or down[0] == 0:
            return False
        # Without a middle factor, the outer ones meet directly.
        has_mid = "lora_mid" in self.factors
        mid = self.factors.shape("lora_mid") if has_mid else (down[0], down[0])
        # A linear layer may be held as a 1x1 convolution, and the other way round.
        kernel = without_ones(down[2:]) + without_ones(mid[2:])
        return (
            mid[:2] == (up[1], down[0])
            and math.prod(up[2:]) == 1
            and (up[0], down[1]) == shape[:2]
            and kernel == without_ones(shape[2:])
        )

    def delta(self, weight: Tensor) -> Tensor:
        """See `Adapter.delta`."""
        up, down = (self.factors.tensor(role, weight.device) for role in ("lora_up", "lora_down"))
        rank = down.shape[0]
        if "lora_mid" in self.factors:
            # Convolutions 1x1, k x k and 1x1 one after another.
            mid = self.factors.tensor("lora_mid", weight.device)
            change = torch.einsum("oa,abk,bi->oik", up.flatten(1), mid.flatten(2), down.flatten(1))
        else:
            change = up.flatten(1) @ down.flatten(1)
        return change.reshape(weight.shape) * self.factors.scale(rank)
