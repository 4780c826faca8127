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
    Lora,
    TextualInversion,
    check_loras,
    check_weights,
    load_weights,
    merge_loras,
    outline_of,
)
from sdpy.devices import Placement
from sdpy.errors import WeightsError
from sdpy.kernels import accelerate_at_first_use, slice_attention
from sdpy.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    AutoencoderTiny,
    AutoencoderTinyConfig,
    CLIPTextModel,
    ControlNetConfig,
    ControlNetModel,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from sdpy.pipelines.configs import COND_PROJ, is_tiny_vae
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
        notices: what the user should know about the files, a line each.
        textual_inversions: words that prompts may use beside the vocabulary.
        fast_kernels: compute convolutions and others in faster ways where there are such: on the
            CPU in float32.
        keep: fields of `ModelFiles` whose models stay loaded, and "controlnet" for all of these.
        loras: merged into the text encoder and the UNet whenever they are loaded, in this order.
    """

    variant: ModelVariant
    files: ModelFiles
    placement: Placement = field(default_factory=Placement)
    sliced_attention_size: int | None = None
    fast_kernels: bool = True
    keep: frozenset[str] = frozenset()
    notices: tuple[str, ...] = ()
    textual_inversions: tuple[TextualInversion, ...] = ()
    loras: tuple[Lora, ...] = ()
    _kept: dict[tuple[str, Path], nn.Module] = field(default_factory=dict)

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
    def unet_config(self) -> UNet2DConditionConfig:
        """Sizes of the UNet in the file: the variant's, but for two that the file itself decides.

        These are the input channels, 9 for inpainting, and the width of the guidance scale's
        embedding, None where the UNet takes none.

        Raises:
            WeightsError: the file cannot be read.
        """
        outline = outline_of(self.files.unet, "unet")
        config = self.variant.unet
        conv_in = outline.get("conv_in.weight")
        if conv_in is None or conv_in.ndim != 4:
            return config  # not a UNet, as loading will say
        cond_proj = outline.get(COND_PROJ)
        return replace(
            config,
            in_channels=conv_in.shape[1],
            time_cond_proj_dim=None if cond_proj is None else cond_proj.shape[-1],
        )

    @property
    def unet_in_channels(self) -> int:
        """Input channels of the UNet in the file: 9 for one made for inpainting.

        Raises:
            WeightsError: the file cannot be read.
        """
        return self.unet_config.in_channels

    @cached_property
    def vae_config(self) -> AutoencoderKLConfig | AutoencoderTinyConfig:
        """Sizes of the autoencoder in the file, the variant's real or its tiny one.

        Raises:
            WeightsError: the file cannot be read.
        """
        tiny = is_tiny_vae(outline_of(self.files.vae, "vae"))
        return self.variant.tiny_vae if tiny else self.variant.vae

    def check(self) -> None:
        """Read the vocabulary and the names and shapes of all weights but ControlNets', no weights.

        Raises:
            WeightsError: a file is broken or of the wrong kind.
        """
        _ = self.tokenizer
        text_encoder, unet = self._empty_text_encoder(), self._empty_unet()
        check_weights(text_encoder, self.files.text_encoder)
        check_weights(unet, self.files.unet)
        check_weights(self._empty_vae(), self.files.vae)
        self._check_latents()
        check_loras(self.loras, {"text_encoder": text_encoder, "unet": unet})

    def _check_latents(self) -> None:
        ours, theirs = self.variant.vae, self.vae_config
        if (ours.downsample_factor, ours.latent_channels) != (
            theirs.downsample_factor,
            theirs.latent_channels,
        ):
            raise WeightsError(
                f"{self.files.vae} is a tiny autoencoder for other latents than those of "
                f"{self.variant.name}; leave --vae-weights out"
            )

    def check_controlnet(self, path: Path) -> None:
        """Read the names and shapes of a ControlNet's weights.

        Raises:
            WeightsError: the file is broken or of the wrong kind.
        """
        check_weights(self._empty_controlnet(path), path)

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
    def controlnet(self, path: Path) -> Iterator[ControlNetModel]:
        """The ControlNet in a file, for the duration of the block, where the UNet is."""
        model, device = self._empty_controlnet(path), self.placement.unet
        with self._loaded(model, "controlnet", device, path) as loaded:
            yield loaded

    @contextmanager
    def vae(self) -> Iterator[AutoencoderKL | AutoencoderTiny]:
        """The autoencoder, for the duration of the block."""
        with self._loaded(self._empty_vae(), "vae", self.placement.vae) as loaded:
            yield loaded

    @contextmanager
    def _loaded(
        self, empty: Model, name: str, device: torch.device, path: Path | None = None
    ) -> Iterator[Model]:
        path = getattr(self.files, name) if path is None else path
        if (name, path) in self._kept:
            yield cast(Model, self._kept[name, path])
            return
        model = empty.eval()
        load_weights(model, path, device=device)
        if name in ("text_encoder", "unet"):
            merge_loras(self.loras, name, model)
        if self.sliced_attention_size is not None:
            slice_attention(model, self.sliced_attention_size)
        if self.fast_kernels and device.type == "cpu":
            for network in _networks(model):
                accelerate_at_first_use(network)
        if name in self.keep:
            self._kept[name, path] = model
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
        config = self.unet_config  # reads a file, which is not to land on the meta device
        with torch.device("meta"):
            return UNet2DConditionModel(config)

    def _empty_vae(self) -> AutoencoderKL | AutoencoderTiny:
        config = self.vae_config
        with torch.device("meta"):
            if isinstance(config, AutoencoderTinyConfig):
                return AutoencoderTiny(config)
            return AutoencoderKL(config)

    def _empty_controlnet(self, path: Path) -> ControlNetModel:
        vae = self.variant.vae
        config = ControlNetConfig(
            unet=replace(self.variant.unet, in_channels=vae.latent_channels),
            conditioning_embedding_out_channels=_conditioning_widths(path, vae.downsample_factor),
        )
        with torch.device("meta"):
            return ControlNetModel(config)


def _networks(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that are called as a whole and have convolutions."""
    if isinstance(model, AutoencoderKL | AutoencoderTiny):
        return [model.encoder, model.decoder]
    return [] if isinstance(model, CLIPTextModel) else [model]


def _conditioning_widths(path: Path, downsample_factor: int) -> tuple[int, ...]:
    """Channels of a ControlNet's embedding of the picture, one entry a halving and one more.

    Where the file lacks one, it is no ControlNet, or one for other latents, as loading will say.
    """
    outline = outline_of(path, "controlnet")
    names = ["conv_in", *(f"blocks.{2 * i + 1}" for i in range(downsample_factor.bit_length() - 1))]
    tensors = [outline.get(f"controlnet_cond_embedding.{name}.weight") for name in names]
    return tuple(1 if tensor is None else tensor.shape[0] for tensor in tensors)
