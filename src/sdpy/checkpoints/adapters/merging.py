"""Adapters, merged into a model's weights when it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from sdpy.checkpoints.adapters.base import Adapter, Factors
from sdpy.checkpoints.adapters.difference import BIASES
from sdpy.checkpoints.adapters.files import Lora, lora_files
from sdpy.checkpoints.adapters.kinds import (
    XL,
    guess_adapter,
    guess_family,
    model_family,
)
from sdpy.checkpoints.adapters.lora import LoRA
from sdpy.checkpoints.adapters.names import Owner, find_layer, layer_names, split_name
from sdpy.checkpoints.adapters.registry import ENDINGS, adapters_of, kind_name
from sdpy.checkpoints.adapters.settings import read_settings
from sdpy.checkpoints.base import Checkpoint, printable
from sdpy.checkpoints.registry import read_checkpoint
from sdpy.components import COMPONENTS
from sdpy.errors import WeightsError

Change = Callable[[Tensor], Tensor]
"""From a weight to what is to be in its place."""

BUNDLED = "bundle_emb."
"""Before the names of textual inversions within a LoRA's file."""

SOLE = "lora_te_"
"""Before the layers of the only text encoder of a model."""

_ENDINGS = sorted(ENDINGS, key=len, reverse=True)
_SHOWN = 3


def check_loras(loras: Iterable[Lora], models: Mapping[str, nn.Module]) -> None:
    """Check that every tensor of the files has a place, reading names and shapes alone.

    Args:
        loras: the files.
        models: of all components that take adapters, by their names; they may be on the meta
            device.

    Raises:
        WeightsError: a file cannot be read, or a tensor in it does not fit.
    """
    for lora in loras:
        for file in _open(lora):
            file.check(models)


def merge_loras(loras: Iterable[Lora], component: str, model: nn.Module) -> None:
    """Add the adapters' changes to the weights of a loaded model, layer by layer.

    Weights that no adapter touches stay the tensors that they are, memory-mapped ones included.

    Args:
        loras: the files, all of whose tensors `check_loras` has found a place for.
        component: which one the model is.
        model: on any device, in any floating-point dtype; the sum is made in float32.

    Raises:
        WeightsError: a file cannot be read, or a tensor in it does not fit.
    """
    for name, change in lora_changes(loras, component, model).items():
        owner, _, parameter = name.rpartition(".")
        module = model.get_submodule(owner)
        changed = change(module.get_parameter(parameter))
        setattr(module, parameter, nn.Parameter(changed, requires_grad=False))


def lora_changes(loras: Iterable[Lora], component: str, model: nn.Module) -> dict[str, Change]:
    """What `merge_loras` makes of the weights that it changes, by their names in the model.

    The functions take a weight of the model's, on any device, in any floating-point dtype.

    Raises:
        WeightsError: a file cannot be read, or a tensor in it does not fit.
    """
    found: dict[str, list[tuple[float, Adapter, Checkpoint]]] = {}
    for lora in loras:
        for file in _open(lora):
            for name, adapter in file.fit(component, model).items():
                found.setdefault(name, []).append((lora.weight, adapter, file.source))
    return {name: partial(_sum, adapters=adapters) for name, adapters in found.items()}


@torch.no_grad()
def _sum(weight: Tensor, adapters: Iterable[tuple[float, Adapter, Checkpoint]]) -> Tensor:
    for share, adapter, source in adapters:
        single = weight.float()
        weight = (single + share * adapter.delta(single)).to(weight.dtype)
        source.forget()  # the change may be kept, to be made again much later
    return weight


def _open(lora: Lora) -> list[AdapterFile]:
    return [AdapterFile(read_checkpoint(file)) for file in lora_files(lora.path)]


class AdapterFile:
    """The tensors of an adapter's file, sorted by the component and layer that they are for."""

    def __init__(self, source: Checkpoint) -> None:
        """Sort the names.

        Raises:
            WeightsError: names that are no adapter's, or settings that cannot be read.
        """
        self.source = source
        own, by_component = read_settings(source)
        self.layers: dict[Owner, dict[str, Factors]] = {}
        unknown, twice = [], []
        for name in source.outline:
            if name.startswith(BUNDLED):
                continue
            ending = next((one for one in _ENDINGS if name.endswith(one)), None)
            if ending is None:
                unknown.append(name)
                continue
            owner, rest = split_name(name)
            layer = rest.removesuffix(ending)
            settings = by_component.get(owner.component or "unet", own)
            entry = self.layers.setdefault(owner, {}).setdefault(
                layer, Factors(source, settings, layer)
            )
            if ENDINGS[ending] in entry.names:
                twice.append(name)
            entry.names[ENDINGS[ending]] = name
        if unknown:
            raise self._error("no layers of a LoRA for these models are", unknown)
        if twice:
            raise self._error("two names mean the same:", twice)

    def check(self, models: Mapping[str, nn.Module]) -> None:
        """Find a place for everything. Raises ``WeightsError``."""
        if not self.source.outline:
            raise WeightsError(f"{self.source.path} holds no LoRA: it is empty")
        self._check_family(models)
        for component, model in models.items():
            self.fit(component, model)
        for owner, layers in self.layers.items():
            if owner.component is not None and owner.component not in models:
                label = COMPONENTS[owner.component].label
                raise self._error(f"the model has no {label} for", _shown(layers.values()))
            if owner.component is not None:
                continue
            possible = [name for name in models if COMPONENTS[name].role == owner.role]
            fitting = [name for name in possible if self._fits(layers, name, models[name])]
            if not fitting:
                self._place(layers, possible[0], models[possible[0]])  # raises
            if len(fitting) > 1:
                raise self._error(
                    f"it does not say whether for {' or '.join(fitting)} are",
                    _shown(layers.values()),
                )

    def fit(self, component: str, model: nn.Module) -> dict[str, Adapter]:
        """What changes a model's parameters, by their names.

        Raises:
            WeightsError: something for this component does not fit.
        """
        role = COMPONENTS[component].role
        told = self.layers.get(Owner(role, component), {})
        untold = self.layers.get(Owner(role, None), {})
        if not self._fits(untold, component, model):
            untold = {}
        return self._place(told | untold, component, model, twice=told.keys() & untold.keys())

    def _fits(self, layers: Mapping[str, Factors], component: str, model: nn.Module) -> bool:
        try:
            self._place(layers, component, model)
        except WeightsError:
            return False
        return True

    def _place(
        self,
        layers: Mapping[str, Factors],
        component: str,
        model: nn.Module,
        twice: Iterable[str] = (),
    ) -> dict[str, Adapter]:
        if not layers:
            return {}
        names = layer_names(model, COMPONENTS[component].role)
        placed: dict[str, Adapter] = {}
        homeless, incomplete, misshapen, biasless = [], [], [], []
        doubled = [layers[name] for name in twice]
        for name, factors in layers.items():
            place = find_layer(name, names)
            adapters = adapters_of(factors)
            if place is None:
                homeless.append(factors)
                continue
            if adapters is None:
                incomplete.append(factors)
                continue
            owned = dict(model.get_submodule(place).named_parameters(recurse=False))
            for parameter, adapter in adapters.items():
                weight = owned.get(parameter)
                if weight is None:
                    biasless.append(factors)
                elif not _fits(adapter, factors, weight):
                    misshapen.append(factors)
                elif f"{place}.{parameter}" in placed:
                    doubled.append(factors)
                else:
                    placed[f"{place}.{parameter}"] = adapter
        owner = type(model).__name__
        if homeless:
            raise self._error(f"{owner} has no layers for", _shown(homeless))
        if incomplete:
            raise self._error(
                "some of the tensors that belong together are missing beside", _shown(incomplete)
            )
        if biasless:
            raise self._error(f"{owner} has layers without a bias for", _shown(biasless))
        if misshapen:
            raise self._error(f"{owner} has layers of other sizes than", _shown(misshapen))
        if doubled:
            raise self._error("two names mean the same:", _shown(doubled))
        return placed

    def _check_family(self, models: Mapping[str, nn.Module]) -> None:
        theirs, ours = guess_family(self.source.outline), model_family(models)
        # kohya's programs number the text encoders where there are two.
        if theirs is None and ours == XL and any(n.startswith(SOLE) for n in self.source.outline):
            theirs = "Stable Diffusion 1.x or 2.x"
        if theirs is not None and ours is not None and theirs != ours:
            raise WeightsError(
                f"{self.source.path} cannot be merged: it looks like a LoRA for {theirs}, but the "
                f"model is a {ours}; give a LoRA that was made for this model"
            )

    def _error(self, problem: str, names: list[str]) -> WeightsError:
        shown = ", ".join(printable(name) for name in names[:_SHOWN])
        more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        guess = guess_adapter(self.source.outline) or self._own_kind()
        return WeightsError(
            f"{self.source.path} cannot be merged: {problem} {shown}{more}; "
            + (f"this looks like {guess}; " if guess else "")
            + "give a LoRA that was made for this model"
        )

    def _own_kind(self) -> str | None:
        """Of which kind in the table it is."""
        for layers in self.layers.values():
            for factors in layers.values():
                kind = kind_name(factors)
                if kind not in (None, LoRA.kind):
                    return f"{kind} for other layers"
                if any(role in factors for role in BIASES.values()):
                    return "a LoRA with biases for other layers"
        return None


def _fits(adapter: Adapter, factors: Factors, weight: Tensor) -> bool:
    alpha = factors.shape("alpha") if "alpha" in factors else ()
    return all(size == 1 for size in alpha) and adapter.fits(tuple(weight.shape))


def _shown(layers: Iterable[Factors]) -> list[str]:
    """The name of a tensor of each of some layers; not of its alpha, which fits everywhere."""
    return [
        next((name for role, name in one.names.items() if role != "alpha"), one.layer)
        for one in layers
    ]
