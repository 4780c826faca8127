"""What a UNet is conditioned on, and how text encoders make it of prompts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sdpy.errors import UsageError
from sdpy.models import CLIPTextModel, CLIPTextModelWithProjection
from sdpy.text.prompts import Chunk, TokenizedPrompt, token_ids
from sdpy.text.tokenizer import CLIPTokenizer

CHUNKS_AT_ONCE = 16
"""The text encoder reads at most so many chunks together, which bounds the memory it takes."""


@dataclass(frozen=True)
class Conditioning:
    """A batch of what a UNet is conditioned on. The denoising loop passes it on without looking.

    Attributes:
        encoder_hidden_states: (B, S, D), the prompts' embeddings that cross-attention looks at.
        text_embeds: (B, P), pooled embeddings, for UNets that take them (Stable Diffusion XL).
        time_ids: (B, n) float32, sizes, for UNets that take them; see `sdpy.text.sizes`.
    """

    encoder_hidden_states: Tensor
    text_embeds: Tensor | None = None
    time_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.encoder_hidden_states)

    @classmethod
    def cat(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """One batch of several.

        Embeddings of different lengths are repeated to their least common multiple. Attention to a
        sequence and to that sequence repeated is the same, since the softmax gives each repeated
        token its share.
        """
        length = math.lcm(*(part.encoder_hidden_states.shape[1] for part in parts))
        states = [
            part.encoder_hidden_states.repeat(1, length // part.encoder_hidden_states.shape[1], 1)
            if part.encoder_hidden_states.shape[1] != length
            else part.encoder_hidden_states
            for part in parts
        ]
        return cls(
            torch.cat(states),
            _cat([part.text_embeds for part in parts]),
            _cat([part.time_ids for part in parts]),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """The same on another device, and in another dtype but for the sizes.

        These are numbers such as 1001, which bfloat16 does not have.
        """
        return Conditioning(
            **{
                name: x.to(device, None if name == "time_ids" else dtype)
                for name, x in self.inputs().items()
            }
        )

    @classmethod
    def join(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """What several text encoders made of the same prompts: their states side by side.

        The pooled embedding is that of the only one that makes one.
        """
        if len(parts) == 1:
            return parts[0]
        device = parts[0].encoder_hidden_states.device
        states = [part.encoder_hidden_states.to(device) for part in parts]
        pooled = [part.text_embeds.to(device) for part in parts if part.text_embeds is not None]
        return cls(torch.cat(states, dim=-1), pooled[0] if pooled else None)

    def zeros(self) -> Conditioning:
        """Zeros instead of embeddings, as some models take an absent negative prompt."""
        pooled = self.text_embeds
        return replace(
            self,
            encoder_hidden_states=torch.zeros_like(self.encoder_hidden_states),
            text_embeds=None if pooled is None else torch.zeros_like(pooled),
        )

    def inputs(self) -> dict[str, Tensor]:
        """What there is of it, by the names of the UNet's arguments."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def _cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    given = [tensor for tensor in tensors if tensor is not None]
    assert len(given) in (0, len(tensors)), "some of a batch lack what others have"
    return torch.cat(given) if given else None


@dataclass(frozen=True)
class PromptConditioning:
    """What a batch of images is guided by in a step.

    Attributes:
        prompts: of B images each: one, or those that ``AND`` joins.
        negative: likewise, what they are guided away from; all are of one length.
    """

    prompts: tuple[Conditioning, ...]
    negative: Conditioning

    @classmethod
    def cat(cls, parts: Sequence[PromptConditioning]) -> PromptConditioning:
        """One batch of several with the same number of prompts."""
        if len(parts) == 1:
            return parts[0]
        together = zip(*(part.prompts for part in parts), strict=True)
        return cls(
            tuple(Conditioning.cat(same) for same in together),
            Conditioning.cat([part.negative for part in parts]),
        )


@dataclass(frozen=True)
class ConditioningSchedule:
    """What a batch of images is guided by, step by step.

    Attributes:
        conditionings: in some steps or others, at least one.
        indices: which of them each step is guided by; empty where it is the first throughout.
        weights: (B tuples) of each image's prompts that ``AND`` joins; None where nothing is
            joined.
    """

    conditionings: tuple[PromptConditioning, ...]
    indices: tuple[int, ...] = ()
    weights: tuple[tuple[float, ...], ...] | None = None

    def index(self, step: int) -> int:
        """Which of the conditionings step ``step``, from 0, is guided by."""
        return self.indices[step] if self.indices else 0

    @classmethod
    def cat(cls, parts: Sequence[ConditioningSchedule]) -> ConditioningSchedule:
        """One batch of several that are of as many steps, all with joined prompts or none."""
        steps = max(len(part.indices) for part in parts)
        each = [tuple(part.index(step) for part in parts) for step in range(max(steps, 1))]
        distinct = list(dict.fromkeys(each))
        weights = [one for part in parts if part.weights is not None for one in part.weights]
        return cls(
            tuple(
                PromptConditioning.cat(
                    [part.conditionings[i] for part, i in zip(parts, chosen, strict=True)]
                )
                for chosen in distinct
            ),
            tuple(distinct.index(chosen) for chosen in each) if len(distinct) > 1 else (),
            tuple(weights) if weights else None,
        )


def encode_prompts(
    prompts: Sequence[tuple[TokenizedPrompt, ...]],
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel | CLIPTextModelWithProjection,
    *,
    chunks: Sequence[int] | None = None,
    pad_id: int | None = None,
    skip_layers: int = 0,
    final_norm: bool = True,
    added_embeddings: Sequence[Tensor] = (),
) -> list[tuple[Conditioning, ...]]:
    """Encode prompts; chunks that repeat are encoded once.

    Args:
        prompts: groups of prompts that the UNet sees together, such as a prompt and its negative
            prompt. Those that are shorter than another of their group are lengthened by empty
            chunks, as in A1111's web UI.
        tokenizer: that made them.
        text_encoder: on any device; its length is ``room`` and two more.
        chunks: of so many chunks each group is to be; None for that of its longest prompt.
        pad_id: fills up short chunks; None for the end token.
        skip_layers: last layers of the text encoder that are left out.
        final_norm: whether its final layer norm is applied.
        added_embeddings: (N, D) of each textual inversion, in the order of those with which the
            prompts were tokenised.

    Returns:
        One conditioning of batch 1 for each prompt of each group, float32 on the text encoder's
        device. The pooled embedding, of encoders that make one, is the first chunk's.

    Raises:
        UsageError: weights that make the embeddings infinite.
    """
    counts = [max(len(one.chunks) for one in group) for group in prompts]
    counts = counts if chunks is None else list(chunks)
    framed = [
        [[frame(chunk, tokenizer, pad_id, one.room) for chunk in _filled(one, n)] for one in group]
        for group, n in zip(prompts, counts, strict=True)
    ]
    distinct = {_hashable(one): one for group in framed for made in group for one in made}
    added = torch.cat(list(added_embeddings)) if added_embeddings else None
    encoded: dict[Hashable, tuple[Tensor, Tensor | None]] = {}
    items = list(distinct.items())
    for start in range(0, len(items), CHUNKS_AT_ONCE):
        some = items[start : start + CHUNKS_AT_ONCE]
        input_ids = torch.tensor([ids for _, (ids, _) in some], device=text_encoder.device)
        weights = torch.tensor([weights for _, (_, weights) in some], device=text_encoder.device)
        with torch.inference_mode():
            options: dict[str, Any] = {
                "skip_layers": skip_layers,
                "final_norm": final_norm,
                "added_embeddings": added,
            }
            if isinstance(text_encoder, CLIPTextModelWithProjection):
                options["end_id"] = tokenizer.end_id
            result = text_encoder(input_ids, **options)
            states, pooled = result if isinstance(result, tuple) else (result, None)
            rows = weigh(states.float(), weights)  # (chunks, T, D)
        sums = [None] * len(some) if pooled is None else pooled.float().split(1)
        for (key, _), row, summed in zip(some, rows, sums, strict=True):
            encoded[key] = row, summed

    def joined(made: Sequence[tuple[list[int], list[float]]]) -> Conditioning:
        rows = [encoded[_hashable(chunk)] for chunk in made]
        return Conditioning(torch.cat([row for row, _ in rows])[None], rows[0][1])

    return [tuple(joined(made) for made in group) for group in framed]


def _hashable(framed: tuple[list[int], list[float]]) -> Hashable:
    ids, weights = framed
    return tuple(ids), tuple(weights)


def _filled(prompt: TokenizedPrompt, count: int) -> list[Chunk]:
    """Its chunks, and empty ones up to that number."""
    return [*prompt.chunks, *[()] * (count - len(prompt.chunks))]


def frame(
    chunk: Chunk, tokenizer: CLIPTokenizer, pad_id: int | None, room: int
) -> tuple[list[int], list[float]]:
    """A chunk as the text encoder takes it: ids between start and end, padded, and their weights.

    ``pad_id`` None stands for the end token. Start, end and padding have the weight 1.
    """
    weights = [token.weight for token in chunk for _ in token.ids]
    padding = room - len(weights)
    pad_id = tokenizer.end_id if pad_id is None else pad_id
    ids = [tokenizer.start_id, *token_ids(chunk), tokenizer.end_id, *[pad_id] * padding]
    return ids, [1.0, *weights, 1.0, *[1.0] * padding]


def weigh(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Multiply tokens by their weights, then the whole so that its mean is what it was.

    Args:
        embeddings: (B, T, D).
        weights: (B, T). Where a row of them is 1 throughout, nothing changes.

    Raises:
        UsageError: the result is infinite.

    Source: A1111's web UI, whose documentation calls this emphasis "original".
    """
    is_weighted = (weights != 1).any(dim=1)
    if not is_weighted.any():
        return embeddings
    weighted = embeddings * weights[..., None]
    mean, weighted_mean = (x.mean(dim=(1, 2), keepdim=True) for x in (embeddings, weighted))
    weighted = weighted * (mean / weighted_mean)
    if not weighted[is_weighted].isfinite().all():
        raise UsageError("the prompt's weights are too large or cancel out; use some nearer to 1")
    return torch.where(is_weighted[:, None, None], weighted, embeddings)
