"""Strict loading: a file's tensors into a model, or one line that says why they do not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from sdpy.checkpoints.base import Checkpoint, LazyTensors, printable
from sdpy.checkpoints.describe import describe
from sdpy.checkpoints.dialects import COMPONENTS, LABELS, Part, component_of, find_parts
from sdpy.checkpoints.registry import read_checkpoint
from sdpy.errors import WeightsError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SHOWN = 3


def load_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """Fill a model, built on the meta device, with the tensors of a file.

    Every parameter and persistent buffer must be in the file with its shape, and nothing else but
    what ``dialects`` knows as superfluous. On the CPU, tensors that are stored in ``dtype`` are
    not copied: the model's parameters are the mapped file, read when first used, and changing them
    does not change the file. Parameters get ``requires_grad`` False.

    Args:
        model: any module; its parameters are replaced, their values never read.
        path: a weights file of any known format.
        dtype: of the floating-point parameters and buffers; the stored ones (float32, float16,
            bfloat16, float64) are converted. None leaves each as it is stored.
        device: where the parameters go.

    Returns:
        The file.

    Raises:
        WeightsError: the file cannot be read or does not fit; the model is then unchanged.
    """
    checkpoint = read_checkpoint(path)
    tensors: dict[str, Tensor] = {}
    for ours, origin in _fitting_part(model, checkpoint).origins.items():
        stored = origin.take(ours, checkpoint.tensors)
        kind = dtype if stored.is_floating_point() else None
        tensors[ours] = stored.to(device=device, dtype=kind)
        if tensors[ours] is not stored:
            checkpoint.forget(stored)
    model.requires_grad_(False)
    model.load_state_dict(tensors, assign=True)
    # No file can fill a buffer that state_dict() leaves out.
    assert not any(buffer.is_meta for buffer in model.buffers()), "a non-persistent buffer is left"
    return checkpoint


def stored_tensors(model: nn.Module, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """The tensors of a file by the names of a model's parameters, each read when it is asked for.

    Raises:
        WeightsError: the file does not fit the model.
    """
    origins = _fitting_part(model, checkpoint).origins
    makers = {
        ours: partial(origin.take, ours, checkpoint.tensors) for ours, origin in origins.items()
    }
    outline = {ours: origin.take(ours, checkpoint.outline) for ours, origin in origins.items()}
    return LazyTensors(makers, outline)


def check_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Check that ``load_weights`` would succeed, reading only names, shapes and dtypes.

    Raises:
        WeightsError: the file cannot be read or does not fit.
    """
    _fitting_part(model, read_checkpoint(path))


def read_part(checkpoint: Checkpoint, component: str | None) -> Part:
    """A component in a file that may hold several; the only one of a file that holds one.

    Raises:
        WeightsError: the file holds several others.
    """
    parts = find_parts(checkpoint.outline).by_component
    if component in parts:
        return parts[component]
    if len(parts) == 1:
        return next(iter(parts.values()))
    held = " and ".join(LABELS[name] for name in COMPONENTS if name in parts)
    raise WeightsError(
        f"{checkpoint.path} holds no {LABELS.get(str(component), 'such model')}, only {held}; "
        "give the missing part from another file"
    )


def outline_of(path: str | os.PathLike[str], component: str) -> dict[str, Tensor]:
    """The shapes of a component in a file by our names; see `read_part`.

    Raises:
        WeightsError: the file cannot be read, or holds several others.
    """
    checkpoint = read_checkpoint(path)
    origins = read_part(checkpoint, component).origins
    return {ours: origin.take(ours, checkpoint.outline) for ours, origin in origins.items()}


def misfits(model: nn.Module, checkpoint: Checkpoint, part: Part) -> dict[str, list[str]]:
    """What keeps a part of a file from filling a model, by kind of fault; reads no numbers."""
    wanted = model.state_dict()
    found = {ours: origin.take(ours, checkpoint.outline) for ours, origin in part.origins.items()}
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


def _fitting_part(model: nn.Module, checkpoint: Checkpoint) -> Part:
    """The part of the file that fills the model. Raises ``WeightsError`` if it misfits."""
    part = read_part(checkpoint, component_of(model.state_dict()))
    problems = misfits(model, checkpoint, part)
    if any(problems.values()):
        raise WeightsError(_report(model, checkpoint, problems))
    return part


def _converts(stored: torch.dtype, wanted: torch.dtype) -> bool:
    return stored in FLOATS if wanted.is_floating_point else stored == wanted


def _report(model: nn.Module, checkpoint: Checkpoint, problems: dict[str, list[str]]) -> str:
    parts = [
        f"{len(cases)} {problem} ({_some(cases)})" for problem, cases in problems.items() if cases
    ]
    if any(tensor.dtype in FP8 for tensor in checkpoint.outline.values()):
        return (
            f"{checkpoint.path} holds 8-bit floating-point numbers (fp8), which sdpy does not "
            "read; take the fp16 or fp32 version"
        )
    guess = describe({name: tuple(tensor.shape) for name, tensor in checkpoint.outline.items()})
    hint = f"this looks like {guess}; " if guess else ""
    return (
        f"{checkpoint.path} does not fit {type(model).__name__}: {', '.join(parts)}; "
        f"{hint}check which file is given for which part"
    )


def _some(cases: list[str]) -> str:
    shown = ", ".join(printable(case) for case in cases[:_SHOWN])
    return shown + (", ..." if len(cases) > _SHOWN else "")
