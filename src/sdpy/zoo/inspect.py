"""What a file or folder of weights is: for people who look, and before it is converted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sdpy.checkpoints import (
    DIFFUSERS,
    Checkpoint,
    Origin,
    Part,
    Weights,
    adapter_dialect,
    describe_adapter,
    describe_textual_inversion,
    find_parts,
    find_weights,
    guess_kind,
    holds_averages,
    is_adapter,
    is_lora_folder,
    is_model_folder,
    lora_files,
    misfits,
    open_weights,
    read_checkpoint,
    read_model_folder,
    without_plain,
)
from sdpy.components import COMPONENTS, label_of
from sdpy.errors import UsageError, WeightsError
from sdpy.schedulers import NoiseConfig
from sdpy.schema import Validated
from sdpy.zoo.classes import make_model, read_config
from sdpy.zoo.configs import is_known, noise_config
from sdpy.zoo.families import config_in, family_of
from sdpy.zoo.hints import other_model
from sdpy.zoo.recognise import component_alone, component_files
from sdpy.zoo.schemas import check_folder, told_beside
from sdpy.zoo.variants import VOCABULARY, ModelVariant


@dataclass(frozen=True)
class InspectedComponent:
    """One component of what was looked at.

    Attributes:
        name: key of `COMPONENTS`; None if it cannot be told.
        weights: where it is.
        summary: what it looks like, in words; None for what is of no known kind.
        config: its sizes, as our models take them; None where they cannot be told.
        problems: what keeps it from being loaded, by kind; empty lists where all is well.
        guessed: whether ``config`` holds guesses, for sizes that no known model has.
        is_told: whether a ``config.json`` says the sizes.
    """

    name: str | None
    weights: Weights
    summary: str | None
    config: Any
    problems: Mapping[str, list[str]]
    guessed: bool
    is_told: bool

    @property
    def tensors(self) -> list[Tensor]:
        """Its tensors' shapes and dtypes, without what is dropped."""
        return list(self.weights.outline.values())

    @property
    def parameters(self) -> int:
        """Number of its numbers."""
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def dtypes(self) -> dict[str, int]:
        """Its dtypes, with the number of tensors of each."""
        found = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors)
        return dict(found.most_common())


@dataclass(frozen=True)
class Inspection:
    """What a path is.

    Attributes:
        path: as given.
        kind: "file", "diffusers folder" or "folder".
        components: in the order of `COMPONENTS`.
        variant: whose UNet it has, with what is known of its noise; None without a UNet.
        assumptions: what of the variant could not be told, a line each.
        unexpected: keys in a whole checkpoint that belong to nothing known.
        vocabulary: CLIP's merges, if the folder has them.
    """

    path: Path
    kind: str
    components: tuple[InspectedComponent, ...]
    variant: ModelVariant | None = None
    assumptions: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    vocabulary: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The weights files, each once."""
        return tuple(dict.fromkeys(one.weights.checkpoint.path for one in self.components))

    def component(self, name: str) -> InspectedComponent | None:
        """The component of that name, if there is one."""
        return next((one for one in self.components if one.name == name), None)


def inspect_weights(path: Path, *, variant: str | None = None, ema: bool = False) -> Inspection:
    """Look at a weights file, a diffusers folder or a folder of component files.

    Reads names, shapes and dtypes only.

    Args:
        path: of the file or folder.
        variant: of the weights in a diffusers folder, such as "fp16"; see `read_model_folder`.
        ema: whether to look at the averaged weights of a UNet instead of the others.

    Raises:
        UsageError: there are no such weights.
        WeightsError: it is missing, broken or holds no weights.
    """
    seen = _look_at(path, variant, read_checkpoint if not ema else _read_averages)
    averaged = [holds_averages(one.weights.checkpoint.outline) for one in seen.components]
    if ema and not any(averaged):
        raise UsageError(f"{path} holds no averaged weights (EMA); leave --ema out")
    return seen


def _read_averages(path: Path) -> Checkpoint:
    return without_plain(read_checkpoint(path))


def _look_at(path: Path, variant: str | None, read: Callable[[Path], Checkpoint]) -> Inspection:
    if is_model_folder(path):
        folder, notices = check_folder(read_model_folder(path, variant))
        found = [
            _component(read(file), name, folder.configs[name])
            for name, file in folder.weights.items()
        ]
        seen = Inspection(path, "diffusers folder", tuple(found), vocabulary=folder.vocabulary)
        seen = _with_variant(seen, folder.configs["scheduler"])
        return replace(seen, assumptions=(*seen.assumptions, *notices))
    if variant is not None and os.path.isdir(path):
        return _look_at(find_weights(path, variant), None, read)
    if variant is not None:
        raise UsageError(f"{path} is a file, and has no variants; leave --variant out")
    if is_lora_folder(path):
        path = lora_files(path)[0]
    files = component_files(path) if os.path.isdir(path) else {}
    vocabulary = files.pop(VOCABULARY, None)
    if files:
        found = [_component(read(file), name, {}) for name, file in files.items()]
        return _with_variant(Inspection(path, "folder", tuple(found), vocabulary=vocabulary), {})
    checkpoint = read(path)
    addition = _addition(checkpoint)
    if addition is not None:
        return Inspection(path, "file", (addition,), metadata=checkpoint.metadata)
    parts = find_parts(checkpoint.outline)
    order = [None, *COMPONENTS]
    names = sorted(parts.by_component, key=order.index)
    told = Validated({})
    if len(names) == 1 and names[0] is not None:
        alone = component_alone(checkpoint, names[0])
        names, told = [alone], told_beside(alone, checkpoint.path)
    components = tuple(_component(checkpoint, name, told.values) for name in names)
    seen = Inspection(
        path,
        "file",
        components,
        assumptions=told.notices,
        unexpected=parts.unexpected,
        metadata=checkpoint.metadata,
    )
    return _with_variant(seen, {})


def _addition(checkpoint: Checkpoint) -> InspectedComponent | None:
    """What is no component but added to one: an adapter, or new words; None for anything else."""
    outline = checkpoint.outline
    is_component = None not in find_parts(outline).by_component
    if is_component and not is_adapter(outline):
        return None
    summary, dialect = describe_adapter(outline), adapter_dialect(outline)
    if summary is None:
        summary, dialect = describe_textual_inversion(checkpoint), DIFFUSERS
    if summary is None:
        return None
    part = Part(None, dialect, {name: Origin(name) for name in outline})
    return InspectedComponent(None, Weights(checkpoint, part), summary, None, {}, False, False)


def _component(
    checkpoint: Checkpoint, name: str | None, config: Mapping[str, Any]
) -> InspectedComponent:
    if name is not None:
        parts = find_parts(checkpoint.outline).by_component
        if name not in parts and len(parts) != 1:
            raise WeightsError(f"{checkpoint.path} holds no {label_of(name)}")
    weights = open_weights(checkpoint, name)
    outline = weights.outline
    summary = guess_kind({ours: tuple(tensor.shape) for ours, tensor in outline.items()})
    sizes, problems = _sizes(weights, outline, config)
    guessed = sizes is not None and not config and not is_known(sizes)
    component = weights.part.component
    told = bool(config)
    return InspectedComponent(component, weights, summary, sizes, problems, guessed, told)


def _sizes(
    weights: Weights, outline: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[Any, dict[str, list[str]]]:
    """The sizes of a component, and what does not fit a model of these sizes."""
    component = weights.part.component
    if component is None:
        return None, {}
    try:
        sizes = read_config(component, outline, config)
        model = make_model(component, sizes)
    except (WeightsError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        return None, {"of unknown structure": [str(error)]}
    found = misfits(model, weights)
    return sizes, {problem: cases for problem, cases in found.items() if cases}


def _with_variant(seen: Inspection, scheduler: Mapping[str, Any]) -> Inspection:
    unet = seen.component("unet")
    if unet is None or unet.config is None:
        return seen
    other = other_model(unet.weights.checkpoint.outline)
    if other is not None:
        return replace(seen, assumptions=(f"this is {other}; sdpy does not run it",))
    family, assumptions = family_of(unet.config, unet.weights.checkpoint, scheduler)
    noise: NoiseConfig = noise_config(scheduler, family.noise)
    told = (*assumptions, *seen.assumptions)
    components = tuple(_in_family(family, one) for one in seen.components)
    variant = replace(family, noise=noise)
    return replace(seen, components=components, variant=variant, assumptions=told)


def _in_family(family: ModelVariant, one: InspectedComponent) -> InspectedComponent:
    """The component with what its family decides, where neither weights nor a file say it."""
    if one.name is None or type(one.config) is not type(family.configs.get(one.name)):
        return one
    return replace(one, config=config_in(family, one.name, one.config, is_told=one.is_told))
