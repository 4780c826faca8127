"""Strict loading: a file's tensors into a model, or one line that says why they do not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdpy.checkpoints.base import Checkpoint, MappedFile, printable
from sdpy.checkpoints.dialects import Part, component_of, find_parts
from sdpy.checkpoints.kinds import guess_kind
from sdpy.checkpoints.registry import read_checkpoint
from sdpy.components import COMPONENTS, label_of
from sdpy.errors import WeightsError

Source = str | os.PathLike[str] | Checkpoint
"""A weights file: its path, or what `read_checkpoint` gave for it."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SHOWN = 3


@dataclass(frozen=True)
class Weights:
    """One component as it lies in a file."""

    checkpoint: Checkpoint
    part: Part

    @property
    def outline(self) -> dict[str, Tensor]:
        """Our names to tensors of the right shapes and dtypes, whose values do not count."""
        return {ours: self.tensor(ours, self.checkpoint.outline) for ours in self.part.origins}

    @property
    def mappings(self) -> tuple[MappedFile, ...]:
        """The mappings of the file in which the tensors lie."""
        return self.checkpoint.mappings

    def tensor(self, ours: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor of our name ``ours``, out of the checkpoint's tensors or its outline."""
        return self.part.origins[ours].take(ours, tensors)

    def forget(self, tensor: Tensor | None = None) -> None:
        """Release the pages of the file that were read for this component, or for one tensor.

        Pages of other components in the same file stay.
        """
        if tensor is not None:
            self.checkpoint.forget(tensor)
            return
        is_alone = len(find_parts(self.checkpoint.outline).by_component) == 1
        if is_alone or not self.checkpoint.is_mapped:
            self.checkpoint.forget()
            return
        for origin in self.part.origins.values():
            self.checkpoint.forget(self.checkpoint.tensors[origin.name])


def load_weights(
    model: nn.Module,
    source: Source,
    *,
    component: str | None = None,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
) -> Weights:
    """Fill a model, built on the meta device, with the tensors of a file.

    Every parameter and persistent buffer must be in the file with its shape, and nothing else but
    what ``dialects`` knows as superfluous. On the CPU, tensors that are stored in ``dtype`` are
    not copied: the model's parameters are the mapped file, read when first used. The mapping is
    shared with whatever else is loaded from the same open file: replace a parameter to change it,
    do not write into it. Parameters get ``requires_grad`` False.

    Args:
        model: any module; its parameters are replaced, their values never read.
        source: a weights file of any known format.
        component: key of `COMPONENTS`, which to take from a file that holds several; None for the
            one that the names of the model's parameters tell.
        dtype: of the floating-point parameters and buffers; the stored ones (float32, float16,
            bfloat16, float64) are converted. None leaves each as it is stored.
        device: where the parameters go.

    Returns:
        Where the weights are.

    Raises:
        WeightsError: the file cannot be read or does not fit; the model is then unchanged.
    """
    weights = _fitting_weights(model, source, component)
    checkpoint = weights.checkpoint
    tensors: dict[str, Tensor] = {}
    for ours in weights.part.origins:
        stored = weights.tensor(ours, checkpoint.tensors)
        kind = dtype if stored.is_floating_point() else None
        tensors[ours] = stored.to(device=device, dtype=kind)
        if tensors[ours] is not stored:
            checkpoint.forget(stored)
    model.requires_grad_(False)
    model.load_state_dict(tensors, assign=True)
    # No file can fill a buffer that state_dict() leaves out.
    assert not any(buffer.is_meta for buffer in model.buffers()), "a non-persistent buffer is left"
    return weights


def check_weights(model: nn.Module, source: Source, *, component: str | None = None) -> None:
    """Check that ``load_weights`` would succeed, reading only names, shapes and dtypes.

    Raises:
        WeightsError: the file cannot be read or does not fit.
    """
    _fitting_weights(model, source, component)


def open_weights(source: Source, component: str | None) -> Weights:
    """A component in a file that may hold several; the only one of a file that holds one.

    Args:
        source: a weights file of any known format.
        component: key of `COMPONENTS`. The names in a file of its own are those of any component
            of its role, and taken for this one's.

    Raises:
        WeightsError: the file cannot be read, or holds several others.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    parts = find_parts(checkpoint.outline, component).by_component
    if component in parts:
        return Weights(checkpoint, parts[component])
    if len(parts) == 1:
        return Weights(checkpoint, next(iter(parts.values())))
    held = " and ".join(row.label for name, row in COMPONENTS.items() if name in parts)
    raise WeightsError(
        f"{checkpoint.path} holds no {label_of(component, 'such model')}, only {held}; "
        "give the missing part from another file"
    )


def outline_of(source: Source, component: str) -> dict[str, Tensor]:
    """The shapes of a component in a file by our names; see `open_weights`.

    Raises:
        WeightsError: the file cannot be read, or holds several others.
    """
    return open_weights(source, component).outline


def misfits(model: nn.Module, weights: Weights) -> dict[str, list[str]]:
    """What keeps weights from filling a model, by kind of fault; reads no numbers."""
    wanted = model.state_dict()
    part, found = weights.part, weights.outline
    both = [name for name in found if name in wanted]
    return {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [part.origins[name].name for name in found if name not in wanted],
        "of another shape": [
            f"{name} is {list(found[name].shape)} instead of {list(wanted[name].shape)}"
            for name in both
            if found[name].shape != wanted[name].shape
        ],
        "of another kind": [
            f"{name} is {str(found[name].dtype).removeprefix('torch.')}"
            for name in both
            if not _converts(found[name].dtype, wanted[name].dtype)
        ],
        "given twice": list(part.twice),
    }


def _fitting_weights(model: nn.Module, source: Source, component: str | None) -> Weights:
    """What of the file fills the model. Raises ``WeightsError`` if it does not fit."""
    component = component_of(model.state_dict()) if component is None else component
    weights = open_weights(source, component)
    problems = misfits(model, weights)
    if any(problems.values()):
        raise WeightsError(_report(model, weights, problems))
    return weights


def _converts(stored: torch.dtype, wanted: torch.dtype) -> bool:
    return stored in FLOATS if wanted.is_floating_point else stored == wanted


def _report(model: nn.Module, weights: Weights, problems: dict[str, list[str]]) -> str:
    checkpoint = weights.checkpoint
    parts = [
        f"{len(cases)} {problem} ({_some(cases)})" for problem, cases in problems.items() if cases
    ]
    if any(tensor.dtype in FP8 for tensor in checkpoint.outline.values()):
        return (
            f"{checkpoint.path} holds 8-bit floating-point numbers (fp8), which sdpy does not "
            "read; take the fp16 or fp32 version"
        )
    outlines = (checkpoint.outline, weights.outline)  # by the file's names, then by ours
    shapes = ({name: tuple(tensor.shape) for name, tensor in one.items()} for one in outlines)
    guess = next((found for found in map(guess_kind, shapes) if found is not None), None)
    hint = f"this looks like {guess}; " if guess else ""
    return (
        f"{checkpoint.path} does not fit {type(model).__name__}: {', '.join(parts)}; "
        f"{hint}check which file is given for which part"
    )


def _some(cases: list[str]) -> str:
    shown = ", ".join(printable(case) for case in cases[:_SHOWN])
    return shown + (", ..." if len(cases) > _SHOWN else "")
