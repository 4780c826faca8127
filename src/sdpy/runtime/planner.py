"""The memory planner: how to compute a request within the memory that there is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from sdpy.components import COMPANIONS
from sdpy.errors import ShortageError
from sdpy.runtime.execution import Execution
from sdpy.runtime.fallbacks import Notice
from sdpy.runtime.memory import free_memory, resident_memory, show_size
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.workload import Memory, Saving, Workload

GPU_BATCH_POSITIONS = 8 * 64 * 64
"""Latent positions that a GPU computes together by ``--batch-size auto``: eight images of 512x512
pixels. A choice that has not been measured with sdpy yet."""
CPU_BATCH_POSITIONS = 4 * 32 * 32
"""The same on a CPU, and only for UNets whose channels are few."""
SMALL_UNET_CHANNELS = 64
"""Channels of the first level up to which a UNet counts as small. Batches were measured to pay off
for the demo model, which has 48; a larger UNet should keep all cores of a CPU busy with a single
image."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a request is computed within the memory that there is.

    Attributes:
        execution: how the models compute.
        keep: components that stay loaded after their use.
        batch: images that are computed together.
        notices: what the user should know of it.
    """

    execution: Execution
    keep: frozenset[str]
    batch: int
    notices: tuple[Notice, ...] = ()


def plan_memory(models: RequestModels, workload: Workload, batch_size: int | None) -> MemoryPlan:
    """See to it that a request needs no more memory than there is, before anything is loaded.

    Models of other requests are released first, the least recently used before the others. Then
    fewer models stay after their use and fewer images are computed together: a batch that the user
    asked for is halved only where it does not fit even if nothing stays, any other before fewer
    models stay, since loading costs more than a batch gains. The savings come last, the cheapest
    first.

    Args:
        models: of the request; their files have been checked.
        workload: what is to be computed.
        batch_size: images that the user wants to be computed together; None for as many as is
            fastest.

    Raises:
        ShortageError: nothing suffices.
    """
    execution = models.execution
    wanted = fastest_batch(workload) if batch_size is None else batch_size
    wanted = max(1, min(wanted, workload.images))
    keeps = _choices_of_keep(models, workload, wanted)
    needed = frozenset(models.key(name) for name in models.session.source.files.weights)
    if execution.memory == "low":
        for saving in workload.savings:
            execution = saving.applied(execution)
        keeps = [frozenset()]
        wanted = 1 if batch_size is None else wanted
    room = find_room(models.execution, workload.gpus)
    while not workload.need(execution, keeps[0], wanted).fits(room):
        if not models.session.loaded.release_least_recently_used(needed):
            break
        room = find_room(models.execution, workload.gpus)

    batches = [wanted >> halvings for halvings in range(wanted.bit_length())]
    if batch_size is None:
        choices = [(keep, batch) for keep in keeps for batch in batches]
    else:
        choices = [(keep, batch) for batch in batches for keep in keeps]
    keep, batch = next(
        (choice for choice in choices if workload.need(execution, *choice).fits(room)), choices[-1]
    )
    at_first = workload.need(execution, keep, batch)
    taken: list[Saving] = []
    if not at_first.fits(room):
        execution, taken = _save(execution, workload, room)
    need = workload.need(execution, keep, batch)
    if not need.fits(room):
        raise ShortageError(
            f"{workload.size} would take {_compared(need, room)}, even with every saving: use "
            "a smaller --width and --height, or --memory with a larger size if you know better"
        )
    notices = []
    if taken:
        done = " and ".join(saving.description for saving in taken)
        notices.append(Notice(f"{workload.size} would take {_compared(at_first, room)}: {done}"))
    if batch_size is not None and batch < wanted:
        notices.append(
            Notice(f"not enough memory for {wanted} images at a time: computing {batch} at a time")
        )
    # Faster forms of weights, which each network makes for itself.
    budget = 0 if execution.streamed else (room.main - need.main) / workload.forming(keep)
    return MemoryPlan(execution.within(budget), keep, batch, tuple(notices))


def plan_two_stages(
    first: tuple[RequestModels, Workload],
    second: tuple[RequestModels, Workload],
    batch_size: int | None,
) -> tuple[MemoryPlan, MemoryPlan]:
    """The same for a model and the refiner that goes on with its images, as `plan_memory`.

    If what stays of both does not fit together, nothing stays of either.

    Raises:
        ShortageError: nothing suffices for one of the two.
    """
    (models, workload), (refiner, refining) = first, second
    one = plan_memory(models, workload, batch_size)
    other = plan_memory(refiner, refining, one.batch)
    batch = min(one.batch, other.batch)
    room = find_room(models.execution, workload.gpus | refining.gpus)
    needs = (
        workload.need(one.execution, one.keep, batch),
        refining.need(other.execution, other.keep, batch),
    )
    together = needs[0] + needs[1]
    plans = [replace(plan, batch=batch) for plan in (one, other)]
    if (one.keep or other.keep) and not together.fits(room):
        plans = [replace(plan, keep=frozenset()) for plan in plans]
    elif one.keep or other.keep:
        budget = max(room.main - together.main, 0)
        budget /= workload.forming(one.keep) + refining.forming(other.keep)
        plans = [replace(p, execution=p.execution.within(budget)) for p in plans]
    return plans[0], plans[1]


def fastest_batch(workload: Workload) -> int:
    """How many images are computed together by ``--batch-size auto``, if memory allows."""
    if workload.unet.device.type != "cpu":
        return max(1, GPU_BATCH_POSITIONS // workload.positions)
    if workload.unet_width > SMALL_UNET_CHANNELS:
        return 1
    return max(1, CPU_BATCH_POSITIONS // workload.positions)


def find_room(execution: Execution, gpus: Iterable[torch.device]) -> Memory:
    """What the process may take; infinite where nobody says."""
    if isinstance(execution.memory, int):
        main: float = execution.memory - resident_memory()
    else:
        free = free_memory()
        main = math.inf if free is None else free
    if not torch.cuda.is_available():
        return Memory(main, math.inf)
    cuda = [_free_on(device) for device in gpus if device.type == "cuda"]
    return Memory(main, min(cuda, default=math.inf))


def _free_on(device: torch.device) -> float:
    """Bytes that are free on a GPU, those that torch holds for its next tensors included."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + max(held, 0)


def _choices_of_keep(models: RequestModels, workload: Workload, batch: int) -> list[frozenset[str]]:
    """What might stay loaded after its use, the most first."""
    useful = models.keep
    if not models.session.keep_models:
        # Only what this very request needs again.
        again = workload.images > batch
        useful = frozenset({"unet", "vae", *COMPANIONS}) if again else frozenset()
    choices = [useful, useful & {"unet", *COMPANIONS}, frozenset()]
    return list(dict.fromkeys(choices))


def _save(execution: Execution, workload: Workload, room: Memory) -> tuple[Execution, list[Saving]]:
    """An execution that fits, if there is any, and which of the savings it took."""
    taken: list[Saving] = []
    while not workload.need(execution).fits(room):
        need = workload.need(execution)
        for saving in workload.savings:
            better = saving.applied(execution)
            if better != execution and workload.need(better) != need:
                execution = better
                taken.append(saving)
                break
        else:
            break
    return execution, taken


def _compared(need: Memory, room: Memory) -> str:
    """What is needed and what there is, of whichever memory is lacking."""
    if need.main > room.main:
        # Of the whole process, as people see it.
        here = resident_memory()
        wanted, had = show_size(int(need.main + here)), show_size(int(room.main + here))
        return f"about {wanted} of memory, of {had} that are to be had"
    wanted, had = show_size(int(need.gpu)), show_size(int(room.gpu))
    return f"about {wanted} of the GPU's memory, of {had} that are free"
