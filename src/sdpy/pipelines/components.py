"""The models of a variant: where their files are, what is loaded, and when it is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from sdpy.checkpoints import (
    Checkpoint,
    Lora,
    TextualInversion,
    Weights,
    check_loras,
    check_weights,
    load_weights,
    lora_changes,
    merge_loras,
)
from sdpy.components import COMPONENTS, components_with_role
from sdpy.errors import WeightsError
from sdpy.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    AutoencoderTiny,
    AutoencoderTinyConfig,
    CLIPTextModel,
    ControlNetModel,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from sdpy.pipelines.execution import Execution
from sdpy.runtime.allocator import give_back_freed_memory
from sdpy.runtime.devices import CPU, Placement
from sdpy.runtime.streaming import moved, stream_weights
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.files import ModelFiles
from sdpy.zoo.source import ModelSource
from sdpy.zoo.variants import ModelVariant

_LORA_ROLES = ("text_encoder", "unet")
"""Roles of the components that LoRAs change."""

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
        keep: names of the components that stay loaded.
        loras: merged into the text encoder and the UNet whenever they are loaded, in this order.
        checkpoints: files that stay open; see `ModelSource`.
    """

    variant: ModelVariant
    files: ModelFiles
    placement: Placement = field(default_factory=Placement)
    execution: Execution = Execution()
    keep: frozenset[str] = frozenset()
    notices: tuple[str, ...] = ()
    textual_inversions: tuple[TextualInversion, ...] = ()
    loras: tuple[Lora, ...] = ()
    checkpoints: dict[Path, Checkpoint] = field(default_factory=dict)
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

    @property
    def source(self) -> ModelSource:
        """The files of these models."""
        return ModelSource(self.variant, self.files, checkpoints=self.checkpoints)

    @cached_property
    def unet_config(self) -> UNet2DConditionConfig:
        """Sizes of the UNet in the file; see `ModelSource.config`.

        Raises:
            WeightsError: the file cannot be read.
        """
        return cast(UNet2DConditionConfig, self.source.config("unet"))

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
        return cast("AutoencoderKLConfig | AutoencoderTinyConfig", self.source.config("vae"))

    @property
    def vae_dtype(self) -> torch.dtype:
        """The dtype in which the autoencoder runs."""
        return self.execution.dtype_on(self.placement["vae"])

    def check(self) -> None:
        """Read the vocabulary and the names and shapes of all weights but ControlNets', no weights.

        Raises:
            WeightsError: a file is broken or of the wrong kind.
        """
        _ = self.tokenizer
        source = self.source
        models = {name: source.make(name) for name in self.files.weights}
        for name, model in models.items():
            check_weights(model, source.checkpoint(name), component=name)
        self._check_latents()
        takers = components_with_role(*_LORA_ROLES)
        check_loras(self.loras, {c.name: models[c.name] for c in takers if c.name in models})

    def _check_latents(self) -> None:
        ours, theirs = self.variant.vae, self.vae_config
        if (ours.downsample_factor, ours.latent_channels) != (
            theirs.downsample_factor,
            theirs.latent_channels,
        ):
            raise WeightsError(
                f"{self.files.weights['vae']} is a tiny autoencoder for other latents than those "
                f"of {self.variant.name}; leave --vae-weights out"
            )

    def check_controlnet(self, path: Path) -> None:
        """Read the names and shapes of a ControlNet's weights.

        Raises:
            WeightsError: the file is broken or of the wrong kind.
        """
        model = self.source.make("controlnet", path)
        check_weights(model, self.source.checkpoint("controlnet", path), component="controlnet")

    @contextmanager
    def text_encoder(self) -> Iterator[CLIPTextModel]:
        """The text encoder, for the duration of the block."""
        with self._loaded("text_encoder") as loaded:
            yield cast(CLIPTextModel, loaded)

    @contextmanager
    def unet(self) -> Iterator[UNet2DConditionModel]:
        """The UNet, for the duration of the block."""
        with self._loaded("unet") as loaded:
            yield cast(UNet2DConditionModel, loaded)

    @contextmanager
    def controlnet(self, path: Path) -> Iterator[ControlNetModel]:
        """The ControlNet in a file, for the duration of the block, where the UNet is."""
        with self._loaded("controlnet", path) as loaded:
            yield cast(ControlNetModel, loaded)

    @contextmanager
    def vae(self) -> Iterator[AutoencoderKL | AutoencoderTiny]:
        """The autoencoder, for the duration of the block."""
        with self._loaded("vae") as loaded:
            yield cast("AutoencoderKL | AutoencoderTiny", loaded)

    @contextmanager
    def _loaded(self, name: str, path: Path | None = None) -> Iterator[nn.Module]:
        path, device = self.source.path(name, path), self.placement[name]
        execution = self.execution
        offload = execution.offload and not execution.streamed and device.type != "cpu"
        key = (name, path, device, replace(execution, weight_budget=None))
        file: Weights | None = None
        if key in self._kept:
            model = self._kept[key]
        else:
            model = self.source.make(name, path)
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
    ) -> Weights:
        """Give a model its weights, or the means to get them when it runs; returns their file."""
        execution = self.execution
        dtype = execution.dtype_on(device)
        loras = self.loras if COMPONENTS[name].role in _LORA_ROLES else ()
        source = self.source.checkpoint(name, path)
        if not execution.streamed:
            file = load_weights(
                model, source, component=name, dtype=dtype, device=CPU if offload else device
            )
            merge_loras(loras, name, model)
            file.forget()  # what was read of it to merge something
            execution.apply_to(model, _networks(model), device, file.forget)
            return file
        file = load_weights(model, source, component=name, dtype=None)
        changes = {
            model.get_parameter(parameter): change
            for parameter, change in lora_changes(loras, name, model).items()
        }
        execution.apply_to(model, _networks(model), device, file.forget)
        stream_weights(
            model, _networks(model), file.mappings, dtype=dtype, device=device, changes=changes
        )
        return file


def _networks(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that are called as a whole."""
    if isinstance(model, AutoencoderKL | AutoencoderTiny):
        return [model.encoder, model.decoder]
    return [model]
