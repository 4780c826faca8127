"""Token merging: self-attention at the highest resolution looks at fewer, averaged tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.errors import UsageError
from sdpy.models import UNet2DConditionConfig, UNet2DConditionModel
from sdpy.models.attention import BasicTransformerBlock, Transformer2DModel
from sdpy.optimizations.approximate.base import replaced_forward

TILE = 2
"""One token of each square of TILE x TILE is a destination, into which others may be merged."""

LARGEST_RATIO = 1 - 1 / TILE**2
"""Share of the tokens that are no destinations."""


@dataclass(frozen=True)
class TokenMerging:
    """Merge the tokens of self-attention that are most like another, attend, and copy back.

    This is done at the highest resolution at which the UNet attends at all, where nearly all the
    work of attention is; at the lower ones merging costs more than it saves. Which token of each
    2x2 square is a destination is drawn anew for each attention, the same for all of a batch.

    Attributes:
        ratio: share of the tokens that are merged away, in [0, 0.75]; 0 is exact.

    Source: "Token Merging for Fast Stable Diffusion" (Bolya and Hoffman, 2023), section 4; the
    likeness is that of the normed tokens, as they come into the attention.
    """

    ratio: float

    def check(self, config: UNet2DConditionConfig) -> None:
        """Refuse a ratio that cannot be, and a UNet that has no such level."""
        if not 0 <= self.ratio <= LARGEST_RATIO:
            raise UsageError(
                f"token merging ratio {self.ratio:g}: use 0 (exact) to {LARGEST_RATIO:g}"
            )
        if not any(config.cross_attention):
            raise UsageError("token merging is of no use: no level of this UNet attends")

    @contextmanager
    def applied(self, unet: UNet2DConditionModel, seed: int) -> Iterator[None]:
        """Put a `MergingForward` in the place of each such attention's; see `Approximation`."""
        generator = torch.Generator().manual_seed(seed)
        level = unet.config.cross_attention.index(True)
        with ExitStack() as stack:
            for block in (unet.down_blocks[level], unet.up_blocks[-1 - level]):
                for transformer in cast(list[Transformer2DModel], block.attentions):
                    stack.enter_context(_merging(transformer, self.ratio, generator))
            yield

    def facts(self) -> dict[str, str]:
        """The ratio, under the name that A1111's web UI gives it."""
        return {"Token merging ratio": f"{self.ratio:g}"}


@contextmanager
def _merging(
    transformer: Transformer2DModel, ratio: float, generator: torch.Generator
) -> Iterator[None]:
    """Let its self-attentions merge for the duration of the block."""
    blocks = cast(list[BasicTransformerBlock], transformer.transformer_blocks)
    attentions = [block.attn1 for block in blocks]
    merging = [MergingForward(attention.forward, ratio, generator) for attention in attentions]

    def tell_size(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for one in merging:
            one.size = inputs[0].shape[-2:]  # the tokens alone do not tell

    with ExitStack() as stack:
        stack.callback(transformer.register_forward_pre_hook(tell_size).remove)
        for attention, forward in zip(attentions, merging, strict=True):
            stack.enter_context(replaced_forward(attention, forward))
        yield


class MergingForward:
    """Stands in for a self-attention's ``forward``, and gives it merged tokens."""

    def __init__(
        self, plain: Callable[[Tensor], Tensor], ratio: float, generator: torch.Generator
    ) -> None:
        self.plain, self.ratio, self.generator = plain, ratio, generator
        self.size: tuple[int, ...] = (0, 0)
        """Rows and columns of the tokens, set before each call."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        H, W = self.size
        choice = torch.randint(TILE**2, (H // TILE, W // TILE), generator=self.generator)
        count = min(int(self.ratio * H * W), H * W - choice.numel())
        if count == 0 or choice.numel() == 0:
            return self.plain(x)
        matching = match(x, destinations(choice, W), count)
        return matching.unmerge(self.plain(matching.merge(x)))


@dataclass(frozen=True)
class Matching:
    """Which tokens are merged.

    Attributes:
        place: (B * T,) int64, where each token goes, counted through the whole batch; those with
            the same place are merged.
        places: for each sample of the batch.
    """

    place: Tensor
    places: int

    def merge(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, places, D), the mean of the tokens of each place."""
        B, _, D = x.shape
        tokens = x.flatten(0, 1)
        total = x.new_zeros(B * self.places, D).index_add_(0, self.place, tokens)
        count = x.new_zeros(B * self.places).index_add_(0, self.place, x.new_ones(len(tokens)))
        return (total / count[:, None]).view(B, self.places, D)

    def unmerge(self, x: Tensor) -> Tensor:
        """(B, places, D) -> (B, T, D), to each token what has become of its place."""
        return x.flatten(0, 1)[self.place].view(len(x), -1, x.shape[-1])


def destinations(choice: Tensor, width: int) -> Tensor:
    """Numbers of the tokens that others may be merged into, one in each whole tile.

    Args:
        choice: (rows, columns) of tiles, int64 on the CPU: which token of the tile, row by row.
        width: tokens in a row; a last odd row or column has no destination.

    Returns:
        (rows * columns,) int64 on the CPU.
    """
    rows, columns = (torch.arange(count) for count in choice.shape)
    y = TILE * rows[:, None] + choice // TILE
    x = TILE * columns[None, :] + choice % TILE
    return (y * width + x).flatten()


def match(x: Tensor, destinations: Tensor, count: int) -> Matching:
    """Match each token to the likest destination, and merge the ``count`` that are likest to it.

    Args:
        x: (B, T, D) tokens; likeness is the cosine between two.
        destinations: (N,) numbers of tokens, int64 on the CPU.
        count: of the other T - N, how many are merged.
    """
    B, T, _ = x.shape
    N = len(destinations)
    is_source = torch.ones(T, dtype=torch.bool)
    is_source[destinations] = False
    sources = is_source.nonzero().squeeze(1).to(x.device)  # (T - N,)
    destinations = destinations.to(x.device)

    directions = F.normalize(x, dim=-1)
    likeness = directions[:, sources] @ directions[:, destinations].transpose(1, 2)
    best, into = likeness.max(dim=-1)  # (B, T - N)
    order = best.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)

    # Places are those of the destinations, then those of the sources that stay alone.
    place = torch.empty(B, T, dtype=torch.int64, device=x.device)
    place[:, destinations] = torch.arange(N, device=x.device)
    place[:, sources] = torch.where(rank < count, into, N + rank - count)
    places = T - count
    return Matching((place + places * torch.arange(B, device=x.device)[:, None]).flatten(), places)
