"""Other ways to compute the same: passes over a loaded model, which it knows nothing of.

The README beside this package says which there are, what each replaces, and what it is worth.
"""

from __future__ import annotations

from torch import nn

from sdpy.optimizations.base import Pass, PassContext
from sdpy.optimizations.exact.bfloat16_pairs import PairedProducts
from sdpy.optimizations.exact.compiling import Compilation
from sdpy.optimizations.exact.cuda_graphs import GraphCapturing
from sdpy.optimizations.exact.fast_convolutions import FastConvolutions
from sdpy.optimizations.exact.feed_forward import FeedForwardChunking
from sdpy.optimizations.exact.folded_attention import PromptCaching
from sdpy.optimizations.exact.gpu_layers import ChannelsLast, JoinedProjections
from sdpy.optimizations.exact.onednn_products import OneDNNProducts
from sdpy.optimizations.exact.packed_layers import PackedWeights
from sdpy.optimizations.exact.product_attention import AttentionByProducts
from sdpy.optimizations.exact.sliced_attention import AttentionSlicing
from sdpy.optimizations.exact.streaming import WeightStreaming
from sdpy.optimizations.exact.tiling import Tiling

PASSES: tuple[Pass, ...] = (
    Tiling(),
    AttentionSlicing(),
    AttentionByProducts(),
    PromptCaching(),
    JoinedProjections(),
    PairedProducts(),
    PackedWeights(),
    OneDNNProducts(),
    FeedForwardChunking(),
    FastConvolutions(),
    ChannelsLast(),
    Compilation(),
    GraphCapturing(),
    WeightStreaming(),
)
"""All passes, in the order in which they are applied."""


def apply_passes(model: nn.Module, context: PassContext) -> None:
    """Make a loaded model compute as the context says, by the passes that apply to it.

    Args:
        model: a UNet, ControlNet, autoencoder or text encoder with its weights, LoRAs merged
            unless they are streamed. This is done once to a model.
        context: see `PassContext`.
    """
    for one in PASSES:
        if one.applies(model, context):
            one.apply(model, context)


__all__ = ["PASSES", "Pass", "PassContext", "apply_passes"]
