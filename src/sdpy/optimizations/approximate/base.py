"""What the denoising loop asks of every approximation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from sdpy.models import UNet2DConditionConfig, UNet2DConditionModel


class UNet(Protocol):
    """What the denoising loop calls: a `UNet2DConditionModel`, or what stands in for one."""

    @property
    def config(self) -> UNet2DConditionConfig:
        """The UNet's sizes."""

    @property
    def device(self) -> torch.device:
        """See `ModelMixin.device`."""

    @property
    def dtype(self) -> torch.dtype:
        """See `ModelMixin.dtype`."""

    def embed(
        self,
        timestep: Tensor,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """See `UNet2DConditionModel.embed`."""

    def __call__(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **options: Any
    ) -> Tensor:
        """See `UNet2DConditionModel.forward`."""


class Approximation(Protocol):
    """A way to evaluate a loaded UNet with less work, and not quite the same result."""

    def check(self, config: UNet2DConditionConfig) -> None:
        """Find out whether it can work with a UNet of these sizes.

        Raises:
            UsageError: it cannot.
        """

    def applied(
        self, unet: UNet2DConditionModel, seeds: Sequence[int]
    ) -> AbstractContextManager[UNet]:
        """Approximate ``unet`` for the duration of the block, which is one denoising loop.

        Args:
            unet: afterwards it is as it was.
            seeds: one for each sample of the batch. What is chosen at random has generators of its
                own, so that the samples' noise stays what it is.

        Returns:
            What is to be called in the place of the UNet, with the same arguments. If its parts
            were replaced, that is the UNet itself.
        """

    def facts(self) -> dict[str, str]:
        """What is to be written into the image's file, by name."""
