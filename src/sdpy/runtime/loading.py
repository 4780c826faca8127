"""Loading a model: giving it its weights, or the means to get them when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdpy.checkpoints import (
    Checkpoint,
    Lora,
    load_weights,
    lora_changes,
    lora_fingerprint,
    merge_loras,
    outline_of,
)
from sdpy.components import components_with_role
from sdpy.optimizations.base import PassContext, Preparations
from sdpy.optimizations.exact import apply_passes
from sdpy.optimizations.weights import ModelWeights
from sdpy.runtime.devices import CPU
from sdpy.runtime.loaded_models import LoadedModel, ModelKey

TAKES_LORAS = frozenset(one.name for one in components_with_role("text_encoder", "unet"))
"""Components into which LoRAs are merged."""

HEAVY = TAKES_LORAS | {"controlnet"}
"""Components whose weights are large beside what is computed with them."""


def lora_states(loras: tuple[Lora, ...]) -> tuple[Any, ...]:
    """The files and the weight of each LoRA."""
    return tuple((lora_fingerprint(lora.path), lora.weight) for lora in loras)


@dataclass(frozen=True)
class Use:
    """What a request is going to do with a model.

    Attributes:
        loras: merged into it.
        keep: whether it stays loaded afterwards.
        weight_budget: bytes that faster forms of its weights may take, if it is loaded now.
        evaluations: how often it is going to compute, likewise; None for many times.
    """

    loras: tuple[Lora, ...] = ()
    keep: bool = True
    weight_budget: int | None = None
    evaluations: int | None = None


def load_model(
    key: ModelKey, model: nn.Module, opened: Checkpoint, use: Use, preparations: Preparations
) -> LoadedModel:
    """Give a model without weights those in a file, as its key and use say.

    Args:
        key: what it is to become.
        model: on the meta device.
        opened: the file.
        use: what it is for.
        preparations: what was done to make it faster is counted there.

    Raises:
        WeightsError: the file cannot be read, or does not fit.
    """
    execution, device, component = key.execution, key.device, key.component
    dtype = execution.dtype_on(device)
    in_memory = CPU if execution.offloads_on(device) else device
    merged = use.loras if component in TAKES_LORAS else ()
    once = use.evaluations == 1 and _is_faster_streamed(component, opened, device, dtype)
    streamed = execution.streamed or once
    model.eval()
    if streamed:
        file = load_weights(model, opened, component=component, dtype=None)
    else:
        file = load_weights(model, opened, component=component, dtype=dtype, device=in_memory)
    changes = lora_changes(merged, component, model)
    if not streamed:
        merge_loras(merged, component, model)
        file.forget()  # what was read of it to merge something
    weights = ModelWeights(model, file, dtype=dtype, device=in_memory, changes=changes)
    apply_passes(
        model,
        PassContext(
            device=device,
            dtype=dtype,
            fast_kernels=execution.is_fast_on(device),
            tiled=execution.is_tiled_on(device),
            sliced_attention_size=execution.sliced_attention_size,
            compiled=execution.compiles_on(device),
            captured=execution.captures_on(device),
            streamed=streamed,
            weight_budget=use.weight_budget,
            evaluations=use.evaluations,
            weights=weights,
            preparations=preparations,
        ),
    )
    return LoadedModel(key, model, file)


def _is_faster_streamed(
    component: str, opened: Checkpoint, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether weights had better be converted when their layer runs, if it runs only once.

    Then they take the same memory in turn. Memory for all of them would be new, every page of
    which the system has to clear, and that takes longer than converting.
    """
    if device.type != "cpu" or component not in HEAVY or not opened.is_mapped:
        return False
    stored = outline_of(opened, component).values()
    return any(one.is_floating_point() and one.dtype != dtype for one in stored)
