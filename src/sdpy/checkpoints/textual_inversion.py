"""Textual inversion: files that teach the text encoder a new word, one or more vectors long.

Two forms are about, both in any container that `read_checkpoint` knows:

- of diffusers: one tensor, called by the new word (``<cat-toy>``);
- of A1111's web UI: one tensor, called ``*`` under ``string_to_param``, or ``emb_params`` in
  ``.safetensors`` files. The file's name is the word.

Source: "An Image is Worth One Word" (Gal et al., 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdpy.checkpoints.base import printable
from sdpy.checkpoints.kinds import guess_kind
from sdpy.checkpoints.registry import read_checkpoint
from sdpy.errors import WeightsError

_PLACEHOLDERS = {"emb_params", "*"}
_SDXL = {"clip_g", "clip_l"}


@dataclass(frozen=True, eq=False)
class TextualInversion:
    """A new word.

    Attributes:
        path: the file that it came from.
        names: how prompts call it; either will do.
        vectors: (N, D) float32, the embeddings of its N tokens.
    """

    path: Path
    names: tuple[str, ...]
    vectors: Tensor


def read_textual_inversion(path: Path, name: str | None = None) -> TextualInversion:
    """Read a new word.

    Args:
        path: the file.
        name: how prompts shall call it; None for the file's name without its extension, and for
            the word that the file itself gives, if it does.

    Raises:
        WeightsError: the file cannot be read or holds something else.
    """
    tensors = read_checkpoint(path).tensors
    # A1111's files also hold the number of the token that was trained.
    floating = {key: tensor for key, tensor in tensors.items() if tensor.is_floating_point()}
    if set(floating) == _SDXL:
        raise WeightsError(
            f"{path} is an embedding for Stable Diffusion XL; give one for 1.x or 2.x"
        )
    if len(floating) != 1:
        raise _no_embedding(path, floating)
    ((key, tensor),) = floating.items()
    vectors = tensor[None] if tensor.ndim == 1 else tensor
    if vectors.ndim != 2 or not vectors.numel():
        raise _no_embedding(path, floating)
    if name is not None:
        names = [name]
    else:
        own = key.split(".")[-1]
        names = [path.stem] if own in _PLACEHOLDERS or not own else [path.stem, key]
    return TextualInversion(path, tuple(dict.fromkeys(names)), vectors.to(torch.float32, copy=True))


def _no_embedding(path: Path, tensors: Mapping[str, Tensor]) -> WeightsError:
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    some = [f"{printable(key)} {list(shape)}" for key, shape in list(shapes.items())[:3]]
    listed = ", ".join(some) + (", ..." if len(shapes) > 3 else "")
    holds = (guess_kind(shapes) or listed) if shapes else "no such tensor"
    return WeightsError(
        f"{path} is no textual-inversion embedding, which is one tensor of a row a token; it "
        f"holds {holds}"
    )
