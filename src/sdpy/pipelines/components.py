"""The models of a variant: where their files are, what is loaded, and when it is dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from sdpy.checkpoints import (
    Checkpoint,
    Lora,
    TextualInversion,
    check_loras,
    check_weights,
    load_weights,
    lora_changes,
    merge_loras,
    outline_of,
)
from sdpy.errors import WeightsError
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
from sdpy.models.skeleton import skeleton
from sdpy.optimizations.exact import apply_passes
from sdpy.optimizations.weights import ModelWeights
from sdpy.pipelines.execution import Execution
from sdpy.runtime.allocator import give_back_freed_memory
from sdpy.runtime.devices import CPU, Placement
from sdpy.runtime.offloading import moved
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.components import ModelFiles
from sdpy.zoo.configs import COND_PROJ, is_tiny_vae
from sdpy.zoo.variants import ModelVariant

Model = TypeVar("Model", bound=nn.Module)
_Key = tuple[str, Path, torch.device, Execution]


@dataclass
class Components:
    """Tokenizer, text encoder, UNet and autoencoder of a variant, each loaded when it is used.

    A model lives as long as the ``with`` block that uses it, so that no two need be in memory
    together; one in `keep` stays for the next use.

    Attributes:
        variant: sizes, noise and defaults.
        files: what to load.
        placement: where to.
        execution: how they compute.
        notices: what the user should know about the files, a line each.
        textual_inversions: words that prompts may use beside the vocabulary.
        keep: fields of `ModelFiles` whose models stay loaded, and "controlnet" for all of these.
        loras: merged into the text encoder and the UNet whenever they are loaded, in this order.
    """

    variant: ModelVariant
    files: ModelFiles
    placement: Placement = field(default_factory=Placement)
    execution: Execution = Execution()
    keep: frozenset[str] = frozenset()
    notices: tuple[str, ...] = ()
    textual_inversions: tuple[TextualInversion, ...] = ()
    loras: tuple[Lora, ...] = ()
    _kept: dict[_Key, nn.Module] = field(default_factory=dict)

    def changed(self, **fields: Any) -> Components:
        """The same models, with those that are kept loaded, and some fields changed."""
        twin = copy(self)
        for name, value in fields.items():
            setattr(twin, name, value)
        return twin

    def has_loaded(self, name: str, path: Path) -> bool:
        """Whether the model in that file is loaded, and kept."""
        return any(key[:2] == (name, path) for key in self._kept)

    def computing(self, **changes: Any) -> Components:
        """The same models, `changed` in some fields of `Execution`."""
        return self.changed(execution=replace(self.execution, **changes))

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

    @property
    def vae_dtype(self) -> torch.dtype:
        """In what the autoencoder computes."""
        return self.execution.dtype_on(self.placement.vae)

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
        device = self.placement.text_encoder
        with self._loaded(self._empty_text_encoder, "text_encoder", device) as loaded:
            yield loaded

    @contextmanager
    def unet(self) -> Iterator[UNet2DConditionModel]:
        """The UNet, for the duration of the block."""
        with self._loaded(self._empty_unet, "unet", self.placement.unet) as loaded:
            yield loaded

    @contextmanager
    def controlnet(self, path: Path) -> Iterator[ControlNetModel]:
        """The ControlNet in a file, for the duration of the block, where the UNet is."""
        make, device = partial(self._empty_controlnet, path), self.placement.unet
        with self._loaded(make, "controlnet", device, path) as loaded:
            yield loaded

    @contextmanager
    def vae(self) -> Iterator[AutoencoderKL | AutoencoderTiny]:
        """The autoencoder, for the duration of the block."""
        with self._loaded(self._empty_vae, "vae", self.placement.vae) as loaded:
            yield loaded

    @contextmanager
    def _loaded(
        self,
        make_empty: Callable[[], Model],
        name: str,
        device: torch.device,
        path: Path | None = None,
    ) -> Iterator[Model]:
        path = getattr(self.files, name) if path is None else path
        execution = self.execution
        offload = execution.offload and not execution.streamed and device.type != "cpu"
        key = (name, path, device, replace(execution, weight_budget=None))
        file: Checkpoint | None = None
        if key in self._kept:
            model = cast(Model, self._kept[key])
        else:
            model = make_empty()
            file = self._load(model.eval(), name, path, device, offload=offload)
        if name in self.keep or offload:
            self._kept[key] = model
        try:
            with moved(model, device) if offload else nullcontext():
                yield model
        finally:
            if file is not None and key not in self._kept:
                # Lets go of the weights even where somebody still holds the model.
                model.to("meta")
                file.forget()
                give_back_freed_memory()

    def _load(
        self, model: nn.Module, name: str, path: Path, device: torch.device, *, offload: bool
    ) -> Checkpoint:
        """Give a model its weights, or the means to get them when it runs; returns their file."""
        execution = self.execution
        dtype = execution.dtype_on(device)
        loras = self.loras if name in ("text_encoder", "unet") else ()
        in_memory = CPU if offload else device
        file = (
            load_weights(model, path, dtype=None)
            if execution.streamed
            else load_weights(model, path, dtype=dtype, device=in_memory)
        )
        changes = lora_changes(loras, name, model)
        if not execution.streamed:
            merge_loras(loras, name, model)
            file.forget()  # what was read of it to merge something
        weights = ModelWeights(model, file, dtype=dtype, device=in_memory, changes=changes)
        apply_passes(model, execution.pass_context(device, weights))
        return file

    def _empty_text_encoder(self) -> CLIPTextModel:
        with skeleton():
            return CLIPTextModel(self.variant.text_encoder)

    def _empty_unet(self) -> UNet2DConditionModel:
        config = self.unet_config  # reads a file, which is not to land on the meta device
        with skeleton():
            return UNet2DConditionModel(config)

    def _empty_vae(self) -> AutoencoderKL | AutoencoderTiny:
        config = self.vae_config
        with skeleton():
            if isinstance(config, AutoencoderTinyConfig):
                return AutoencoderTiny(config)
            return AutoencoderKL(config)

    def _empty_controlnet(self, path: Path) -> ControlNetModel:
        vae = self.variant.vae
        config = ControlNetConfig(
            unet=replace(self.variant.unet, in_channels=vae.latent_channels),
            conditioning_embedding_out_channels=_conditioning_widths(path, vae.downsample_factor),
        )
        with skeleton():
            return ControlNetModel(config)


def _conditioning_widths(path: Path, downsample_factor: int) -> tuple[int, ...]:
    """Channels of a ControlNet's embedding of the picture, one entry a halving and one more.

    Where the file lacks one, it is no ControlNet, or one for other latents, as loading will say.
    """
    outline = outline_of(path, "controlnet")
    names = ["conv_in", *(f"blocks.{2 * i + 1}" for i in range(downsample_factor.bit_length() - 1))]
    tensors = [outline.get(f"controlnet_cond_embedding.{name}.weight") for name in names]
    return tuple(1 if tensor is None else tensor.shape[0] for tensor in tensors)
