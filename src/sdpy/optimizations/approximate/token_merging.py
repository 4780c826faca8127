"""Token merging: self-attention at the highest resolution looks at fewer, averaged tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.errors import UsageError
from sdpy.models import UNet2DConditionConfig, UNet2DConditionModel

TILE = 2
"""One token of each square of TILE x TILE is a destination, into which others may be merged."""

LARGEST_RATIO = 1 - 1 / TILE**2
"""Share of the tokens that are no destinations."""


@dataclass(frozen=True)
class TokenMerging:
    """Merge the tokens of self-attention that are most like another, attend, and copy back.

    This is done at the highest resolution at which the UNet attends at all, where nearly all the
    work of attention is; at the lower ones merging costs more than it saves. Which token of each
    2x2 square is a destination is drawn anew for each attention, from each sample's own generator.

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
        if _first_level(config) is None:
            raise UsageError(
                "token merging is of no use: at no level does this UNet attend to itself"
            )

    @contextmanager
    def applied(
        self, unet: UNet2DConditionModel, seeds: Sequence[int]
    ) -> Iterator[UNet2DConditionModel]:
        """Have such attentions replaced by `MergingAttention`; see `Approximation.applied`."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        level = _first_level(unet.config)
        assert level is not None, "the configuration was checked"
        with ExitStack() as stack:
            for block in (unet.down_blocks[level], unet.up_blocks[-1 - level]):
                attentions = cast(nn.ModuleList, block.attentions)
                for i, transformer in enumerate(attentions):
                    merging = stack.enter_context(_merging(transformer, self.ratio, generators))
                    stack.enter_context(_wrapped(attentions, str(i), merging))
            yield unet

    def facts(self) -> dict[str, str]:
        """The ratio, under the name that A1111's web UI gives it."""
        return {"Token merging ratio": f"{self.ratio:g}"}


def _first_level(config: UNet2DConditionConfig) -> int | None:
    """The level of the highest resolution whose transformers attend to themselves."""
    attending = (i for i, attends in enumerate(config.cross_attention) if attends)
    return next((i for i in attending if not config.attends_only_to_prompt(i)), None)


@contextmanager
def _merging(
    transformer: nn.Module, ratio: float, generators: Sequence[torch.Generator]
) -> Iterator[MergingTransformer]:
    """The same whose self-attentions merge, for the duration of the block."""
    attentions = []
    with ExitStack() as stack:
        for block in cast(Iterable[nn.Module], transformer.transformer_blocks):
            attentions.append(MergingAttention(cast(nn.Module, block.attn1), ratio, generators))
            stack.enter_context(_wrapped(block, "attn1", attentions[-1]))
        yield MergingTransformer(transformer, attentions)


@contextmanager
def _wrapped(
    parent: nn.Module, name: str, wrapper: MergingTransformer | MergingAttention
) -> Iterator[None]:
    """``parent`` has ``wrapper`` under that name for the duration of the block."""
    setattr(parent, name, wrapper)
    try:
        yield
    finally:
        setattr(parent, name, wrapper.original)


class MergingTransformer(nn.Module):
    """A transformer that tells its self-attentions of which size the feature map is."""

    def __init__(self, original: nn.Module, attentions: Sequence[MergingAttention]) -> None:
        super().__init__()
        self.original = original
        self._attentions = tuple(attentions)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """See `Transformer2DModel.forward`."""
        for attention in self._attentions:
            attention.size = (x.shape[-2], x.shape[-1])  # the tokens alone do not tell
        return self.original(x, context)


class MergingAttention(nn.Module):
    """A self-attention that is given merged tokens.

    Args:
        original: any attention that takes (B, T, D) and returns the same.
        ratio: share of the tokens that are merged away.
        generators: one for each sample of the batch, from which its destinations are drawn. A batch
            may have several rows for each sample, as of guidance: these have the same destinations.
    """

    def __init__(
        self, original: nn.Module, ratio: float, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        self.original, self.ratio, self.generators = original, ratio, generators
        self.size = (0, 0)
        """Rows and columns of the tokens, set before each call."""

    def forward(self, x: Tensor) -> Tensor:
        """(k B, T, D) -> (k B, T, D); row ``i`` is of sample ``i % B``."""
        H, W = self.size
        tiles = (H // TILE, W // TILE)
        choices = [torch.randint(TILE**2, tiles, generator=one) for one in self.generators]
        count = min(int(self.ratio * H * W), H * W - math.prod(tiles))
        if count == 0 or math.prod(tiles) == 0:
            return self.original(x)
        if len(x) % len(choices):
            raise ValueError(f"{len(x)} rows of tokens for the seeds of {len(choices)} samples")
        chosen = torch.stack([destinations(choice, W) for choice in choices])
        matching = match(x, chosen.repeat(len(x) // len(choices), 1), count)
        return matching.unmerge(self.original(matching.merge(x)))


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
        destinations: (B, N) numbers of tokens, int64 on the CPU.
        count: of the other T - N, how many are merged.
    """
    B, T, D = x.shape
    N = destinations.shape[1]
    # Sorted instead of searched for, so that the number of the results needs not be waited for.
    is_destination = torch.zeros(B, T, dtype=torch.uint8).scatter_(1, destinations, 1)
    sources = is_destination.argsort(dim=1, stable=True)[:, : T - N]
    sources = sources.to(x.device, non_blocking=True)
    destinations = destinations.to(x.device, non_blocking=True)

    directions = F.normalize(x, dim=-1)
    of_sources = directions.gather(1, sources[..., None].expand(-1, -1, D))
    of_destinations = directions.gather(1, destinations[..., None].expand(-1, -1, D))
    best, into = (of_sources @ of_destinations.mT).max(dim=-1)  # (B, T - N)
    order = best.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)

    # Places are those of the destinations, then those of the sources that stay alone.
    numbers = torch.arange(N, device=x.device).expand(B, -1)
    place = torch.empty(B, T, dtype=torch.int64, device=x.device)
    place.scatter_(1, destinations, numbers)
    place.scatter_(1, sources, torch.where(rank < count, into, N + rank - count))
    places = T - count
    return Matching((place + places * torch.arange(B, device=x.device)[:, None]).flatten(), places)
