"""What all models can be asked."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ModelMixin(nn.Module):
    """Base of the models: on which device, and in which dtype, one runs."""

    @property
    def device(self) -> torch.device:
        """Where the model runs, and its inputs have to be."""
        return self._resident_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype in which it runs."""
        return self._resident_weight.dtype

    @property
    def _resident_weight(self) -> Tensor:
        """A weight so small that it stays where the model runs even if weights are streamed.

        The input convolution is the first layer of most models, and has only few channels.
        """
        return next(self.parameters())
