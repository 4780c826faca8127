"""Layers as GPUs want them: maps in channels-last memory, and few large products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdpy.models.attention import Attention, BasicTransformerBlock
from sdpy.optimizations.base import PassContext, replace_module


class ChannelsLast:
    """The pass that lays out the weights of convolutions as matrix units read them.

    What a convolution with such weights returns is in channels-last memory, too, and stays so.
    """

    name = "channels-last"

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """To models on a GPU that have convolutions, and whose weights stay."""
        stays = context.device.type != "cpu" and not context.streamed
        return stays and any(isinstance(module, nn.Conv2d) for module in model.modules())

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Lay out the weights; the parameters are the same objects afterwards."""
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class JoinedAttention(Attention):
    """Self-attention whose queries, keys and values are one product.

    Args:
        original: whose layers are taken over, and whose three weights are no longer needed.
    """

    def __init__(self, original: Attention) -> None:
        nn.Module.__init__(self)
        self.heads = original.heads
        weights = [layer.weight for layer in (original.to_q, original.to_k, original.to_v)]
        dim = original.to_q.in_features
        with torch.no_grad():
            self.to_qkv = nn.Linear(dim, 3 * dim, bias=False, device="meta")
            joined = torch.cat([weight.detach() for weight in weights])
            self.to_qkv.weight = nn.Parameter(joined, requires_grad=False)
        self.to_out = original.to_out
        self.attend = original.attend

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); ``context`` is for other attentions."""
        assert context is None, "this attention is to the tokens themselves"
        parts = torch.chunk(self.to_qkv(x), 3, dim=-1)
        query, key, value = (self._split_heads(part) for part in parts)
        x = self.attend(query, key, value)
        return self.to_out[0](x.transpose(1, 2).flatten(2))


class JoinedProjections:
    """The pass that makes queries, keys and values of self-attention in one product.

    A GPU spends more time on starting three small products than on computing one large one.
    """

    name = "joined projections"

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """To models on a GPU that have transformers, and whose weights stay."""
        stays = context.device.type != "cpu" and not context.streamed
        return stays and any(isinstance(m, BasicTransformerBlock) for m in model.modules())

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """Replace the self-attention of each transformer block."""
        for name, module in list(model.named_modules()):
            if isinstance(module, BasicTransformerBlock) and not module.only_cross_attention:
                replace_module(model, f"{name}.attn1", JoinedAttention(module.attn1))
