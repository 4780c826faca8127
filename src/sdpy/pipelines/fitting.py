"""How much memory a picture takes, and how to take no more than there is.

An estimate is the sum of the weights, which are known to the byte, and of what a network computes
with, which grows with the picture and was measured on Stable Diffusion's sizes. It is meant to be a
little too high rather than too low.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add, or_
from pathlib import Path

import torch

from sdpy.checkpoints import outline_of, read_checkpoint
from sdpy.errors import ShortageError
from sdpy.models import AutoencoderTinyConfig
from sdpy.optimizations.exact.sliced_attention import AUTOMATIC
from sdpy.optimizations.exact.streaming import PIECE_BYTES
from sdpy.pipelines.components import Components
from sdpy.pipelines.events import Notice
from sdpy.pipelines.execution import Execution
from sdpy.pipelines.paint import Settings, sees_negative_prompt
from sdpy.runtime.memory import free_memory, resident_memory, show_size

STEADY = 150 * 10**6
"""Bytes that any network takes: buffers of libraries, and memory that is not given back at once."""

# How many feature maps of its first level's size and channels a network has together at most, as
# if all that it computes with were such.
UNET_MAPS = 36
CONTROL_MAPS = 12
DECODER_MAPS = 8
ENCODER_MAPS = 7
DECODER_MAPS_IN_STRIPS = 4
ENCODER_MAPS_IN_STRIPS = 3


def fit_memory(
    components: Components,
    settings: Settings,
    shape: tuple[int, int, int, int],
    *,
    encodes: bool = False,
) -> Generator[Notice, None, Components]:
    """See to it that a picture needs no more memory than there is, before anything is loaded.

    Args:
        components: the models; their files have been checked.
        settings: what to paint and how.
        shape: of the latents.
        encodes: whether it begins with a picture.

    Returns:
        The models, computing in a way that fits.

    Raises:
        ShortageError: there is none.
    """
    painting = Painting.of(components, settings, shape, encodes=encodes)
    room = find_room(components.execution, painting.gpus)
    execution = components.execution
    if execution.memory == "low":
        for saving in painting.savings:
            execution = saving.applied(execution)
    at_first = painting.need(execution)
    execution, taken = _thriftier(execution, painting, room)
    need = painting.need(execution)
    if not need.fits(room):
        raise ShortageError(
            f"{painting.size} would take {_compared(need, room)}, even in the thriftiest way: use "
            "a smaller --width and --height, or --memory with a larger size if you know better"
        )
    if taken:
        told = " and ".join(saving.told for saving in taken)
        yield Notice(f"{painting.size} would take {_compared(at_first, room)}: {told}")
    budget = 0 if execution.streamed else room.main - need.main
    return components.changed(execution=execution.within(budget))


# ----------------------------------------------------------------------------- what is needed


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory, and of a GPU's, beyond those that the process already has."""

    main: float = 0
    gpu: float = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.main + other.main, self.gpu + other.gpu)

    def __or__(self, other: Memory) -> Memory:
        """Enough for either, if not for both together."""
        return Memory(max(self.main, other.main), max(self.gpu, other.gpu))

    def fits(self, room: Memory) -> bool:
        """Whether there is so much."""
        return self.main <= room.main and self.gpu <= room.gpu


@dataclass(frozen=True)
class Model:
    """The weights of a model.

    Attributes:
        name: by the fields of `ModelFiles`, or "controlnet".
        device: where it is to run.
        numbers: of its weights.
        unmapped: bytes of its file that cannot be mapped.
        is_kept: whether it stays after its use.
        is_loaded: whether it is there already.
    """

    name: str
    device: torch.device
    numbers: int
    unmapped: int
    is_kept: bool
    is_loaded: bool

    @classmethod
    def of(cls, components: Components, name: str, path: Path, device: torch.device) -> Model:
        """The model in a file. Reads its outline."""
        outline = outline_of(path, name).values()
        is_mapped = read_checkpoint(path).is_mapped
        return cls(
            name,
            device,
            numbers=sum(tensor.numel() for tensor in outline),
            unmapped=0 if is_mapped else sum(tensor.nbytes for tensor in outline),
            is_kept=name in components.keep,
            is_loaded=components.has_loaded(name, path),
        )

    def weights(self, execution: Execution) -> Memory:
        """What its weights take while it runs."""
        if self.is_loaded:
            return Memory()
        bytes_ = self.numbers * execution.dtype_on(self.device).itemsize
        piece = min(bytes_, 2 * PIECE_BYTES)
        on_cpu = self.device.type == "cpu"
        if execution.streamed:
            return Memory(self.unmapped + piece, 0 if on_cpu else piece)
        if on_cpu:
            return Memory(bytes_)
        return Memory(bytes_ if execution.offload else piece, bytes_)

    def computing(self, execution: Execution, values: float) -> Memory:
        """What it computes with, if that is so many numbers."""
        if self.device.type == "cpu":
            return Memory(main=STEADY + values * execution.dtype_on(self.device).itemsize)
        return Memory(gpu=STEADY + values * execution.dtype_on(self.device).itemsize)


@dataclass(frozen=True)
class Saving:
    """A way to need less memory: what to tell of it, and what it is."""

    told: str
    strips: bool = False
    streamed: bool = False
    slices: bool = False

    def applied(self, execution: Execution) -> Execution:
        """With this saving, too."""
        size = execution.sliced_attention_size
        return replace(
            execution,
            strips=execution.strips or self.strips,
            streamed=execution.streamed or self.streamed,
            sliced_attention_size=AUTOMATIC if self.slices and size is None else size,
        )


STRIPS = Saving("running the autoencoder in strips", strips=True)
SLICES = Saving("computing attention in slices", slices=True)
STREAMING = Saving("reading the weights anew at each step", streamed=True)


@dataclass(frozen=True)
class Painting:
    """What is to be painted, as far as it matters for memory.

    Attributes:
        size: for people.
        pixels: of the picture.
        positions: of the latents, in all samples that the UNet sees together.
        models: that are to run; as often as there are ControlNets, these.
        widths: channels of the first level, by the model's name.
        encodes: whether it begins with a picture.
        tiny_vae: whether the autoencoder is a tiny one, which does not work in strips.
        loras: bytes of these files.
    """

    size: str
    pixels: int
    positions: int
    models: tuple[Model, ...]
    widths: Mapping[str, int]
    encodes: bool
    tiny_vae: bool
    loras: int

    @classmethod
    def of(
        cls,
        components: Components,
        settings: Settings,
        shape: tuple[int, int, int, int],
        *,
        encodes: bool,
    ) -> Painting:
        """What the settings ask for, of latents of that shape."""
        variant, files, places = components.variant, components.files, components.placement
        factor = variant.vae.downsample_factor
        batch = 2 if sees_negative_prompt(components, settings) else 1
        vae = components.vae_config
        vae_width = (
            vae.channels if isinstance(vae, AutoencoderTinyConfig) else vae.block_out_channels[0]
        )
        parts = [
            ("text_encoder", files.text_encoder, places.text_encoder),
            ("unet", files.unet, places.unet),
            ("vae", files.vae, places.vae),
            *(("controlnet", control.weights, places.unet) for control in settings.controls),
        ]
        return cls(
            size=f"{factor * shape[-1]}x{factor * shape[-2]} pixels",
            pixels=factor * factor * shape[-1] * shape[-2],
            positions=batch * shape[-1] * shape[-2],
            models=tuple(Model.of(components, *part) for part in parts),
            widths={"unet": variant.unet.block_out_channels[0], "vae": vae_width},
            encodes=encodes,
            tiny_vae=isinstance(vae, AutoencoderTinyConfig),
            loras=sum(os.path.getsize(lora.path) for lora in components.loras),
        )

    @property
    def gpus(self) -> set[torch.device]:
        """Devices of models that do not run on the CPU."""
        return {model.device for model in self.models if model.device.type != "cpu"}

    @property
    def savings(self) -> tuple[Saving, ...]:
        """What there is to save memory with, the cheapest first.

        Slices save nothing on the CPU, where attention never makes all scores at a time.
        """
        return (STRIPS, SLICES, STREAMING) if self.gpus else (STRIPS, STREAMING)

    def need(self, execution: Execution) -> Memory:
        """What it takes to paint it so: the largest of the phases."""
        return reduce(or_, self._phases(execution))

    def _phases(self, execution: Execution) -> Iterator[Memory]:
        controls = [model for model in self.models if model.name == "controlnet"]
        text_encoder, unet, vae = self.models[:3]
        files = Memory(main=self.loras)

        def phase(runs: list[Model], values: float) -> Memory:
            weights = [m.weights(execution) for m in self.models if m.is_kept or m in runs]
            return reduce(add, weights, runs[0].computing(execution, values))

        yield phase([text_encoder], 0) + files
        maps = UNET_MAPS + CONTROL_MAPS * len(controls)
        yield phase([unet, *controls], maps * self.positions * self.widths["unet"]) + files
        in_strips = execution.in_strips_on(vae.device) and not self.tiny_vae
        maps = DECODER_MAPS_IN_STRIPS if in_strips else DECODER_MAPS
        yield phase([vae], maps * self.pixels * self.widths["vae"])
        if self.encodes:
            maps = ENCODER_MAPS_IN_STRIPS if in_strips else ENCODER_MAPS
            yield phase([vae], maps * self.pixels * self.widths["vae"])


# ------------------------------------------------------------------------------ what there is


def find_room(execution: Execution, gpus: Iterable[torch.device]) -> Memory:
    """What the process may take; infinite where nobody says."""
    if isinstance(execution.memory, int):
        main: float = execution.memory - resident_memory()
    else:
        free = free_memory()
        main = math.inf if free is None else free
    if not torch.cuda.is_available():
        return Memory(main, math.inf)
    cuda = [torch.cuda.mem_get_info(device)[0] for device in gpus if device.type == "cuda"]
    return Memory(main, min(cuda, default=math.inf))


def _thriftier(
    execution: Execution, painting: Painting, room: Memory
) -> tuple[Execution, list[Saving]]:
    """An execution that fits, if there is any, and what of the savings it took."""
    taken: list[Saving] = []
    while not painting.need(execution).fits(room):
        need = painting.need(execution)
        for saving in painting.savings:
            better = saving.applied(execution)
            if better != execution and painting.need(better) != need:
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
