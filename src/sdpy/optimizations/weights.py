"""The weights of a loaded model, and where each comes from: to release them and get them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdpy.checkpoints import Change, MappedFile, Weights


@dataclass(frozen=True)
class _Origin:
    """Where a parameter comes from: its name in the model, and what LoRAs make of it."""

    name: str
    change: Change | None


class ModelWeights:
    """The parameters of a model that was loaded from a file.

    A weight that lies in the mapped file is released by giving back its pages, which the system
    reads again when they are touched. Any other, one that was converted from another dtype or that
    a LoRA changed, is freed, and made anew from the file when it is restored: read, converted and
    changed as when it was loaded. Until then its numbers are NaN, so that an accidental use does
    not go unnoticed; shape, dtype and device stay.

    Parameters that this object does not know are never released, all of them if no model is given.

    Args:
        model: as it was loaded, LoRAs merged, before any layer is replaced.
        stored: where the weights are, as `load_weights` returned it.
        dtype: of the floating-point weights in the model; None for each as it is stored.
        device: where the weights are.
        changes: what LoRAs make of some parameters, by their names in the model; see
            `sdpy.checkpoints.lora_changes`.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        stored: Weights | None = None,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
        changes: Mapping[str, Change] | None = None,
    ) -> None:
        changes = {} if changes is None else changes
        self.dtype, self.device = dtype, device
        self._stored = stored
        self._origins: dict[Tensor, _Origin] = {}
        self._released: set[Tensor] = set()
        if model is not None and stored is not None:
            self._origins = {
                parameter: _Origin(name, changes.get(name))
                for name, parameter in model.named_parameters()
            }

    def release(self, parameter: Tensor) -> None:
        """Give back the memory of a weight that is not needed for now."""
        if self._stored is None or parameter not in self._origins:
            return
        if self.mapping_of(parameter) is not None:
            self._stored.forget(parameter)
        elif parameter not in self._released:
            with torch.inference_mode(parameter.is_inference()):
                nan = torch.full((), torch.nan, dtype=parameter.dtype, device=parameter.device)
                parameter.data = nan.expand(parameter.shape)
            self._released.add(parameter)

    def restore(self, parameter: Tensor) -> None:
        """Make sure that a weight is there, whether it was released or not."""
        if parameter in self._released:
            # Torch does not take the data of a tensor of inference mode for another one.
            with torch.inference_mode(parameter.is_inference()), torch.no_grad():
                parameter.data = self._make(self._origins[parameter])
            self._released.remove(parameter)

    def is_released(self, parameter: Tensor) -> bool:
        """Whether the weight has to be restored before it can be used."""
        return parameter in self._released

    def change_of(self, parameter: Tensor) -> Change | None:
        """What LoRAs make of a stored weight; None for nothing."""
        origin = self._origins.get(parameter)
        return None if origin is None else origin.change

    def mapping_of(self, tensor: Tensor) -> MappedFile | None:
        """The mapped file that a tensor lies in; None for none."""
        mappings = () if self._stored is None else self._stored.mappings
        return next((mapping for mapping in mappings if mapping.holds(tensor)), None)

    def _make(self, origin: _Origin) -> Tensor:
        assert self._stored is not None
        stored = self._stored.tensor(origin.name, self._stored.checkpoint.tensors)
        kind = self.dtype if stored.is_floating_point() else None
        tensor = stored.to(device=self.device, dtype=kind)
        made = tensor if origin.change is None else origin.change(tensor)
        if made is not stored:
            self._stored.forget(stored)
        return made
