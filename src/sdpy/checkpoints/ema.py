"""Averaged weights: the exponential moving average (EMA) that training keeps beside the weights.

The original programs' checkpoints may hold the UNet twice: as it was trained last, and as its
average over many steps, which most people find to generate better images. The latter's names have
lost their dots, ``model_ema.diffusion_modelinput_blocks00weight``; here they get them back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from sdpy.checkpoints.base import Checkpoint, LazyTensors

PREFIX = "model_ema."
PLAIN_PREFIX = "model.diffusion_model."

_NUMBERED = ("input_blocks", "output_blocks")
_WORDS = (
    *("diffusion_model", "time_embed", "cond_proj", "label_emb", *_NUMBERED, "middle_block"),
    *("in_layers", "emb_layers", "out_layers", "skip_connection", "op", "conv", "out"),
    *("transformer_blocks", "proj_in", "proj_out", "norm1", "norm2", "norm3", "norm"),
    *("attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj"),
    *("weight", "bias"),
)
_TOKENS = re.compile("|".join((*sorted(_WORDS, key=len, reverse=True), r"\d+")))


def name_with_dots(name: str) -> str | None:
    """The name of the plain tensor of which that of this name is the average; None if of none."""
    tokens = _TOKENS.findall(name.removeprefix(PREFIX))
    if not name.startswith(PREFIX) or "".join(tokens) != name.removeprefix(PREFIX):
        return None
    parts: list[str] = []
    for before, token in zip(["", *tokens], tokens, strict=False):
        if not token.isdigit() or before == "transformer_blocks":
            parts.append(token)
        elif before in _NUMBERED:  # the block, and one of its at most three layers
            parts += filter(None, (token[:-1], token[-1]))
        else:
            parts += token
    return "model." + ".".join(parts)


def averaged_names(names: Iterable[str]) -> dict[str, str]:
    """The names of averaged tensors, by those of the plain ones."""
    dotted = {name: name_with_dots(name) for name in names if name.startswith(PREFIX)}
    return {plain: name for name, plain in dotted.items() if plain is not None}


def holds_averages(names: Collection[str]) -> bool:
    """Whether there are averaged weights of a UNet."""
    return any(name.startswith(PREFIX) and name_with_dots(name) is not None for name in names)


def holds_only_averages(names: Collection[str]) -> bool:
    """Whether there are averaged weights of a UNet and no plain ones."""
    return holds_averages(names) and not any(name.startswith(PLAIN_PREFIX) for name in names)


def without_plain(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint less the plain weights of its UNet, so that its averaged ones are found.

    Itself, where it has no averaged ones.
    """
    if not holds_averages(checkpoint.outline):
        return checkpoint
    outline = {n: t for n, t in checkpoint.outline.items() if not n.startswith(PLAIN_PREFIX)}
    return replace(checkpoint, tensors=_some_of(checkpoint.tensors, outline), outline=outline)


def _some_of(tensors: Mapping[str, Tensor], outline: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    makers = {name: (lambda name=name: tensors[name]) for name in outline}
    return LazyTensors(makers, outline)
