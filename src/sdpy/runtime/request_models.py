"""The models of a session as one request uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from sdpy.checkpoints import Lora
from sdpy.models import (
    AutoencoderKL,
    AutoencoderTiny,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    ControlNetModel,
    ControlNetUnionModel,
    T2IAdapter,
    UNet2DConditionModel,
)
from sdpy.runtime.devices import Placement
from sdpy.runtime.execution import Execution
from sdpy.runtime.loaded_models import ModelKey
from sdpy.runtime.loading import Use
from sdpy.zoo.variants import ModelVariant

if TYPE_CHECKING:
    from sdpy.runtime.session import Session


@dataclass(frozen=True)
class RequestModels:
    """A session's models as one request uses them.

    Attributes:
        session: that loads and keeps them.
        execution: how they compute.
        placement: on which devices.
        loras: merged into text encoder and UNet.
        keep: components that stay loaded after their use.
        evaluations: how often components are going to compute, where it is known.
    """

    session: Session
    execution: Execution
    placement: Placement
    loras: tuple[Lora, ...] = ()
    keep: frozenset[str] = frozenset()
    evaluations: Mapping[str, int] = field(default_factory=dict)

    def changed(self, **changes: Any) -> RequestModels:
        """The same with some attributes changed."""
        return replace(self, **changes)

    def computing(self, **changes: Any) -> RequestModels:
        """The same, `changed` in some fields of the execution."""
        return replace(self, execution=replace(self.execution, **changes))

    def releasing(self, *components: str) -> RequestModels:
        """The same, with these components released after their next use."""
        return replace(self, keep=self.keep - set(components))

    @property
    def variant(self) -> ModelVariant:
        """Sizes, noise and defaults of the models."""
        return self.session.variant

    @property
    def vae_dtype(self) -> torch.dtype:
        """In what the autoencoder computes."""
        return self.execution_of("vae").dtype_on(self.placement["vae"])

    def execution_of(self, component: str, path: Path | None = None) -> Execution:
        """How a model computes: in float32 where its numbers are known to overflow in float16."""
        config = self.session.headers.config(component, path)
        overflows = self.execution.dtype == torch.float16 and getattr(config, "force_upcast", False)
        return replace(self.execution, dtype=torch.float32) if overflows else self.execution

    @contextmanager
    def text_encoder(
        self, name: str = "text_encoder"
    ) -> Iterator[CLIPTextModel | CLIPTextModelWithProjection]:
        """A text encoder, by the name of its component, for the duration of the block."""
        with self._use(name) as model:
            yield cast(CLIPTextModel, model)

    @contextmanager
    def unet(self) -> Iterator[UNet2DConditionModel]:
        """The UNet, for the duration of the block."""
        with self._use("unet") as model:
            yield cast(UNet2DConditionModel, model)

    @contextmanager
    def vae(self) -> Iterator[AutoencoderKL | AutoencoderTiny]:
        """The autoencoder, for the duration of the block."""
        with self._use("vae") as model:
            yield cast(AutoencoderKL, model)

    @contextmanager
    def controlnet(self, path: Path) -> Iterator[ControlNetModel | ControlNetUnionModel]:
        """The ControlNet in a file, for the duration of the block."""
        with self._use("controlnet", path) as model:
            yield cast(ControlNetModel, model)

    @contextmanager
    def t2i_adapter(self, path: Path) -> Iterator[T2IAdapter]:
        """The T2I-Adapter in a file, for the duration of the block."""
        with self._use("t2i_adapter", path) as model:
            yield cast(T2IAdapter, model)

    def key(self, component: str, path: Path | None = None) -> ModelKey:
        """What identifies one of these models."""
        path = self.session.source.files.weights[component] if path is None else path
        device = self.placement[component]
        execution = self.execution_of(component, path)
        return self.session.key(component, path, device, execution, self.loras)

    @contextmanager
    def _use(self, component: str, path: Path | None = None) -> Iterator[nn.Module]:
        path = self.session.source.files.weights[component] if path is None else path
        key, keep = self.key(component, path), component in self.keep
        use = Use(self.loras, keep, self.execution.weight_budget, self.evaluations.get(component))
        with self.session.use(key, path, use) as model:
            yield model
