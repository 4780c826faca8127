"""Textual inversion: files that teach the text encoder new words, one or more vectors long.

These forms are about, in any container that `read_checkpoint` knows:

- of diffusers: a tensor for each word, called by it (``<cat-toy>``);
- of A1111's web UI: one tensor, called ``*`` under ``string_to_param``, or ``emb_params`` in
  ``.safetensors`` files. The file's name is the word;
- for Stable Diffusion XL: a tensor for each text encoder, ``clip_l`` and ``clip_g``;
- in the file of a LoRA that was trained together with words, under ``bundle_emb.WORD.``;
- in the text of a PNG image, as A1111's web UI wrote them ("cards").

Source: "An Image is Worth One Word" (Gal et al., 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sdpy.checkpoints.adapters.files import Lora, lora_files
from sdpy.checkpoints.adapters.merging import BUNDLED
from sdpy.checkpoints.base import Checkpoint, printable
from sdpy.checkpoints.embedding_cards import is_card, read_card
from sdpy.checkpoints.kinds import guess_kind
from sdpy.checkpoints.registry import read_checkpoint
from sdpy.errors import UsageError, WeightsError

_PLACEHOLDERS = {"emb_params", "*"}

# Of the two text encoders of Stable Diffusion XL, by the programs that write such files.
_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))

_MODELS = {
    (768,): " (Stable Diffusion 1.x)",
    (1024,): " (Stable Diffusion 2.x)",
    (768, 1280): " (Stable Diffusion XL)",
}

_OF_LAYERS = (".weight", ".bias")
"""How names end that are no words."""


@dataclass(frozen=True, eq=False)
class TextualInversion:
    """A new word.

    Attributes:
        path: the file that it came from.
        names: how prompts call it; either will do.
        vectors: (N, D) float32, the embeddings of its N tokens.
        vectors_2: (N, D_2) float32, those of a second text encoder; None for models with one.
        is_named: whether the user gave the name.
        is_bundled: whether it came with a LoRA.
    """

    path: Path
    names: tuple[str, ...]
    vectors: Tensor
    vectors_2: Tensor | None = None
    is_named: bool = False
    is_bundled: bool = False

    def of(self, component: str) -> Tensor | None:
        """The vectors for a text encoder, by its name in the table; None if there are none."""
        return {"text_encoder": self.vectors, "text_encoder_2": self.vectors_2}[component]


def read_textual_inversions(path: Path, name: str | None = None) -> tuple[TextualInversion, ...]:
    """Read the new words of a file.

    Args:
        path: the file.
        name: how prompts shall call the word; None for the file's name without its extension, and
            for the word that the file itself gives, if it does. Of a file of several words, each
            is called as the file says.

    Raises:
        UsageError: a name for several words.
        WeightsError: the file cannot be read or holds something else.
    """
    own_name = None
    if is_card(path):
        tensors, own_name = read_card(path)
    else:
        # A1111's files also hold the number of the token that was trained.
        stored = read_checkpoint(path).tensors
        tensors = {key: tensor for key, tensor in stored.items() if tensor.is_floating_point()}
    words = _words(path, tensors, own_name)
    if name is None:
        return words
    if len(words) > 1:
        listed = ", ".join(printable(word.names[0]) for word in words[:3])
        raise UsageError(
            f"--embedding {name}={path}: the file has {len(words)} words ({listed}), which keep "
            "their names; leave the name out"
        )
    return (replace(words[0], names=(name,), is_named=True),)


def describe_textual_inversion(checkpoint: Checkpoint) -> str | None:
    """What new words a file holds, in words; None for what holds none. Reads no numbers."""
    floating = {
        name: tensor
        for name, tensor in checkpoint.outline.items()
        if tensor.is_floating_point() and tensor.ndim <= 2
    }
    if any(tensor.ndim > 2 for tensor in checkpoint.outline.values()):
        return None
    try:
        words = _words(checkpoint.path, floating, None)
    except WeightsError:
        return None
    vectors = sum(len(word.vectors) for word in words)
    widths = [word.shape[1] for word in (words[0].vectors, words[0].vectors_2) if word is not None]
    count = (
        "a textual inversion" if len(words) == 1 else f"textual inversions of {len(words)} words"
    )
    rows = "1 vector" if vectors == 1 else f"{vectors} vectors"
    return f"{count}, {rows}, {' and '.join(map(str, widths))} wide{_MODELS.get(tuple(widths), '')}"


def bundled_textual_inversions(lora: Lora) -> tuple[TextualInversion, ...]:
    """The new words in the files of a LoRA, which were trained with it.

    Raises:
        WeightsError: a file cannot be read, or a word in it has no proper vectors.
    """
    found: list[TextualInversion] = []
    for file in lora_files(lora.path):
        checkpoint = read_checkpoint(file)
        words: dict[str, dict[str, Tensor]] = {}
        for name in checkpoint.outline:
            if name.startswith(BUNDLED):
                word, _, key = name.removeprefix(BUNDLED).partition(".")
                words.setdefault(word, {})[key] = checkpoint.tensors[name]
        for word, tensors in words.items():
            (one, *others) = _words(file, tensors, None)
            if others or not word:
                raise _no_embedding(file, tensors)
            found.append(replace(one, names=(word,), is_bundled=True))
    return tuple(found)


def _words(
    path: Path, tensors: Mapping[str, Tensor], own_name: str | None
) -> tuple[TextualInversion, ...]:
    """The words that tensors are; at least one."""
    keys = {key: key.split(".")[-1] for key in tensors}
    pair = next((pair for pair in _PAIRS if set(keys.values()) == set(pair)), None)
    if pair is not None and len(tensors) == len(pair):
        first, second = (
            next(tensors[key] for key, own in keys.items() if own == half) for half in pair
        )
        rows, rows_2 = _rows(path, first, tensors), _rows(path, second, tensors)
        if len(rows) != len(rows_2):
            raise _no_embedding(path, tensors)
        return (TextualInversion(path, (path.stem,), rows, rows_2),)
    if len(tensors) == 1:
        ((key, tensor),) = tensors.items()
        own = keys[key]
        told = own_name if own in _PLACEHOLDERS or not own else key
        names = tuple(dict.fromkeys([path.stem, *([told] if told else [])]))
        return (TextualInversion(path, names, _rows(path, tensor, tensors)),)
    if not tensors or any(key.endswith(_OF_LAYERS) for key in tensors):
        raise _no_embedding(path, tensors)
    words = [(key, _rows(path, tensor, tensors)) for key, tensor in tensors.items()]
    if len({rows.shape[1] for _, rows in words}) != 1:
        raise _no_embedding(path, tensors)
    return tuple(TextualInversion(path, (key,), rows) for key, rows in words)


def _rows(path: Path, tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    rows = tensor[None] if tensor.ndim == 1 else tensor
    if rows.ndim != 2 or not rows.numel():
        raise _no_embedding(path, tensors)
    return rows if rows.is_meta else rows.to(torch.float32, copy=True)


def _no_embedding(path: Path, tensors: Mapping[str, Tensor]) -> WeightsError:
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    some = [f"{printable(key)} {list(shape)}" for key, shape in list(shapes.items())[:3]]
    listed = ", ".join(some) + (", ..." if len(shapes) > 3 else "")
    holds = (guess_kind(shapes) or listed) if shapes else "no such tensor"
    return WeightsError(
        f"{path} is no textual-inversion embedding, which is one tensor of a row a token; it "
        f"holds {holds}"
    )
