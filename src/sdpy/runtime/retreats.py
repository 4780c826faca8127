"""What is done on a GPU whose memory does not suffice, once slices and smaller batches do not help.

Estimates can be wrong, and another program can take the memory meanwhile, also while a model is
being loaded. Each way needs less of the GPU than the one before it, and the last one nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sdpy.runtime.devices import Placement
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.workload import AUTOMATIC_SLICES


@dataclass(frozen=True)
class Retreat:
    """A way to compute a request with less of a GPU's memory.

    Attributes:
        description: for the notice.
        of: the models of a request, computed so.
    """

    description: str
    of: Callable[[RequestModels], RequestModels]


def retreats(models: RequestModels) -> list[Retreat]:
    """The ways that are left, in the order in which they are to be tried; none without a GPU."""
    execution, found = models.execution, []
    if not models.placement.gpus:
        return []
    if not (execution.offload or execution.streamed):
        description = "keeping each model in main memory while it does not run"
        found.append(Retreat(description, partial(_thrifty, offload=True)))
    if not execution.streamed:
        description = "reading the weights anew at each step"
        found.append(Retreat(description, partial(_thrifty, streamed=True)))
    found.append(Retreat("computing on the CPU", _on_cpu))
    return found


def _thrifty(models: RequestModels, **changes: Any) -> RequestModels:
    size = models.execution.sliced_attention_size
    return models.changed(keep=frozenset()).computing(
        tiled=True,
        compile=False,
        cuda_graphs=False,
        sliced_attention_size=AUTOMATIC_SLICES if size is None else size,
        **changes,
    )


def _on_cpu(models: RequestModels) -> RequestModels:
    execution = replace(
        models.execution,
        offload=False,
        compile=False,
        cuda_graphs=False,
        sliced_attention_size=None,
    )
    return models.changed(execution=execution, keep=frozenset(), placement=Placement())
