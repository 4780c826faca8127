"""What a file or folder of weights is: for people who look, and before it is converted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sdpy.checkpoints import (
    COMPONENTS,
    LABELS,
    Checkpoint,
    Weights,
    config_beside,
    describe,
    find_parts,
    is_model_folder,
    misfits,
    read_checkpoint,
    read_model_folder,
)
from sdpy.errors import WeightsError
from sdpy.models import (
    AutoencoderKL,
    AutoencoderTiny,
    AutoencoderTinyConfig,
    CLIPTextModel,
    ControlNetModel,
    UNet2DConditionModel,
)
from sdpy.models.meta import init_empty_weights
from sdpy.schedulers import NoiseConfig
from sdpy.zoo.configs import (
    controlnet_config,
    is_known,
    is_tiny_vae,
    noise_config,
    text_config,
    unet_config,
    vae_config,
)
from sdpy.zoo.recognise import component_files, family_of
from sdpy.zoo.variants import ModelVariant


@dataclass(frozen=True)
class Component:
    """One component of what was looked at.

    Attributes:
        name: one of `COMPONENTS`; None if it cannot be told.
        weights: where it is.
        summary: what it looks like, in words; None for strangers.
        config: its sizes, as our models take them; None where they cannot be told.
        problems: what keeps it from being loaded, by kind; empty lists where all is well.
        guessed: whether ``config`` holds guesses, for sizes that no known model has.
    """

    name: str | None
    weights: Weights
    summary: str | None
    config: Any
    problems: Mapping[str, list[str]]
    guessed: bool

    @property
    def tensors(self) -> list[Tensor]:
        """Its tensors' shapes and dtypes, without what is dropped."""
        outline = self.weights.checkpoint.outline
        return [origin.take(n, outline) for n, origin in self.weights.part.origins.items()]

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
        strangers: names in a whole checkpoint that belong to nothing known.
        vocabulary: CLIP's merges, if the folder has them.
    """

    path: Path
    kind: str
    components: tuple[Component, ...]
    variant: ModelVariant | None = None
    assumptions: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    vocabulary: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The weights files, each once."""
        return tuple(dict.fromkeys(one.weights.checkpoint.path for one in self.components))

    def component(self, name: str) -> Component | None:
        """The component of that name, if there is one."""
        return next((one for one in self.components if one.name == name), None)


def inspect(path: Path) -> Inspection:
    """Look at a weights file, a diffusers folder or a folder of component files.

    Reads names, shapes and dtypes only.

    Raises:
        WeightsError: it is missing, broken or holds no weights.
    """
    if is_model_folder(path):
        folder = read_model_folder(path)
        found = [
            _component(read_checkpoint(file), name, folder.configs[name])
            for name, file in folder.weights.items()
        ]
        seen = Inspection(path, "diffusers folder", tuple(found), vocabulary=folder.vocabulary)
        return _with_variant(seen, folder.configs["scheduler"])
    files = component_files(path) if os.path.isdir(path) else {}
    vocabulary = files.pop("vocabulary", None)
    if files:
        found = [_component(read_checkpoint(file), name, {}) for name, file in files.items()]
        return _with_variant(Inspection(path, "folder", tuple(found), vocabulary=vocabulary), {})
    checkpoint = read_checkpoint(path)
    parts = find_parts(checkpoint.outline)
    names = sorted(parts.by_component, key=lambda n: COMPONENTS.index(n) if n else -1)
    config = config_beside(checkpoint.path) if len(names) == 1 else {}
    components = tuple(_component(checkpoint, name, config) for name in names)
    seen = Inspection(
        path,
        "file",
        components,
        strangers=parts.strangers,
        metadata=checkpoint.metadata,
    )
    return _with_variant(seen, {})


def _component(checkpoint: Checkpoint, name: str | None, config: Mapping[str, Any]) -> Component:
    parts = find_parts(checkpoint.outline).by_component
    if name not in parts:
        if len(parts) != 1:
            raise WeightsError(f"{checkpoint.path} holds no {LABELS[str(name)]}")
        name = next(iter(parts))
    part = parts[name]
    weights = Weights(checkpoint, part)
    outline = {ours: weights.tensor(ours, checkpoint.outline) for ours in part.origins}
    summary = describe({ours: tuple(tensor.shape) for ours, tensor in outline.items()})
    sizes, problems = _sizes(weights, outline, config)
    guessed = sizes is not None and not config and not is_known(sizes)
    return Component(name, weights, summary, sizes, problems, guessed)


def _sizes(
    weights: Weights, outline: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[Any, dict[str, list[str]]]:
    """The sizes of a component, and what does not fit a model of these sizes."""
    try:
        sizes: Any
        model: nn.Module
        with init_empty_weights():
            if weights.part.component == "unet":
                sizes = unet_config(outline, config)
                model = UNet2DConditionModel(sizes)
            elif weights.part.component == "controlnet":
                sizes = controlnet_config(outline, config)
                model = ControlNetModel(sizes)
            elif weights.part.component == "vae" and is_tiny_vae(outline):
                sizes = AutoencoderTinyConfig()
                model = AutoencoderTiny(sizes)
            elif weights.part.component == "vae":
                sizes = vae_config(outline, config)
                model = AutoencoderKL(sizes)
            elif weights.part.component == "text_encoder":
                sizes = text_config(outline, config)
                model = CLIPTextModel(sizes)
            else:
                return None, {}
    except (WeightsError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        return None, {"of unknown structure": [str(error)]}
    found = misfits(model, weights.checkpoint, weights.part)
    return sizes, {problem: cases for problem, cases in found.items() if cases}


def _with_variant(seen: Inspection, scheduler: Mapping[str, Any]) -> Inspection:
    unet = seen.component("unet")
    if unet is None or unet.config is None:
        return seen
    family, assumptions = family_of(unet.config, unet.weights.checkpoint, scheduler)
    noise: NoiseConfig = noise_config(scheduler, family.noise)
    return replace(seen, variant=replace(family, noise=noise), assumptions=assumptions)
