"""The models of a variant: where their files are, what is loaded, and when it is dropped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

from sdpy.checkpoints import (
    TextualInversion,
    check_weights,
    load_weights,
    read_checkpoint,
)
from sdpy.devices import Placement
from sdpy.errors import WeightsError
from sdpy.kernels.sliced_attention import slice_attention
from sdpy.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from sdpy.tokenizer import CLIPTokenizer
from sdpy.variants import ModelVariant

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class ModelFiles:
    """The files of one set of models."""

    text_encoder: Path
    unet: Path
    vae: Path
    vocabulary: Path


def find_files(
    variant: ModelVariant, folder: Path, given: Mapping[str, Path | None] | None = None
) -> ModelFiles:
    """Where a variant's files are.

    Args:
        variant: gives the names that are looked for.
        folder: the data folder; a bundled variant has its own.
        given: files named by the user, by the fields of `ModelFiles`; None where none is.

    Raises:
        WeightsError: files are missing; says which, where, and what to do.
    """
    folder = folder if variant.bundled is None else variant.bundled
    found: dict[str, Path] = {}
    missing: list[str] = []
    for name, candidates in vars(variant.files).items():
        chosen = None if given is None else given.get(name)
        paths = [folder / candidate for candidate in candidates] if chosen is None else [chosen]
        existing = [path for path in paths if os.path.exists(path)]  # False also for a bad name
        if existing:
            found[name] = existing[0]
        else:
            missing.append(str(paths[0]))
    if missing:
        raise WeightsError(
            f"no weights for {variant.name}: looked for {', '.join(missing)}; `sdpy download "
            f"{variant.name}` fetches them (see data/README.md), --data names another folder, "
            "--model demo paints without them"
        )
    return ModelFiles(**found)


@dataclass
class Components:
    """Tokenizer, text encoder, UNet and autoencoder of a variant, each loaded when it is used.

    A model lives as long as the ``with`` block that uses it, so that no two need be in memory
    together; one in `keep` stays for the next use.

    Attributes:
        variant: sizes, noise and defaults.
        files: what to load.
        placement: where to.
        sliced_attention_size: heads of a batch computed together; None for all of them.
        keep: fields of `ModelFiles` whose models stay loaded.
        notices: what the user should know about the files, a line each.
        textual_inversions: words that prompts may use beside the vocabulary.
    """

    variant: ModelVariant
    files: ModelFiles
    placement: Placement = field(default_factory=Placement)
    sliced_attention_size: int | None = None
    keep: frozenset[str] = frozenset()
    notices: tuple[str, ...] = ()
    textual_inversions: tuple[TextualInversion, ...] = ()
    _kept: dict[str, nn.Module] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer.

        Raises:
            WeightsError: the vocabulary cannot be read.
        """
        return CLIPTokenizer.from_file(
            self.files.vocabulary, vocab_size=self.variant.text_encoder.vocab_size
        )

    @cached_property
    def unet_in_channels(self) -> int:
        """Input channels of the UNet in the file: 9 for one made for inpainting.

        Raises:
            WeightsError: the file cannot be read.
        """
        conv_in = read_checkpoint(self.files.unet).outline.get("conv_in.weight")
        if conv_in is None or conv_in.ndim != 4:
            return self.variant.unet.in_channels  # not a UNet, as loading will say
        return conv_in.shape[1]

    def check(self) -> None:
        """Read the vocabulary and the names and shapes of all weights, not the weights.

        Raises:
            WeightsError: a file is broken or of the wrong kind.
        """
        _ = self.tokenizer
        check_weights(self._empty_text_encoder(), self.files.text_encoder)
        check_weights(self._empty_unet(), self.files.unet)
        check_weights(self._empty_vae(), self.files.vae)

    @contextmanager
    def text_encoder(self) -> Iterator[CLIPTextModel]:
        """The text encoder, for the duration of the block."""
        model, device = self._empty_text_encoder(), self.placement.text_encoder
        with self._loaded(model, "text_encoder", device) as loaded:
            yield loaded

    @contextmanager
    def unet(self) -> Iterator[UNet2DConditionModel]:
        """The UNet, for the duration of the block."""
        with self._loaded(self._empty_unet(), "unet", self.placement.unet) as loaded:
            yield loaded

    @contextmanager
    def vae(self) -> Iterator[AutoencoderKL]:
        """The autoencoder, for the duration of the block."""
        with self._loaded(self._empty_vae(), "vae", self.placement.vae) as loaded:
            yield loaded

    @contextmanager
    def _loaded(self, empty: Model, name: str, device: torch.device) -> Iterator[Model]:
        if name in self._kept:
            yield cast(Model, self._kept[name])
            return
        model = empty.eval()
        load_weights(model, getattr(self.files, name), device=device)
        if self.sliced_attention_size is not None:
            slice_attention(model, self.sliced_attention_size)
        if name in self.keep:
            self._kept[name] = model
        try:
            yield model
        finally:
            if name not in self.keep:
                # Lets go of the weights even where somebody still holds the model.
                model.to("meta")

    def _empty_text_encoder(self) -> CLIPTextModel:
        with torch.device("meta"):
            return CLIPTextModel(self.variant.text_encoder)

    def _empty_unet(self) -> UNet2DConditionModel:
        config = replace(self.variant.unet, in_channels=self.unet_in_channels)
        with torch.device("meta"):
            return UNet2DConditionModel(config)

    def _empty_vae(self) -> AutoencoderKL:
        with torch.device("meta"):
            return AutoencoderKL(self.variant.vae)
