"""How much memory a request takes.

An estimate is the sum of the weights, which are known to the byte, and of what a network computes
with, which grows with the image and was measured at Stable Diffusion's sizes. It is meant to be a
little too high rather than too low.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path

import torch

from sdpy.checkpoints import lora_fingerprint
from sdpy.components import components_with_role
from sdpy.models import AutoencoderTinyConfig
from sdpy.optimizations.exact.streaming import PIECE_BYTES
from sdpy.runtime.execution import Execution
from sdpy.runtime.request_models import RequestModels

AUTOMATIC_SLICES = 0
"""The ``sliced_attention_size`` that takes half of the heads at a time."""

STEADY = 150 * 10**6
"""Bytes that any network takes: buffers of libraries, and memory that is not given back at once."""

# How many feature maps of its first level's size and channels a network has together at most, as
# if all that it computes with were such.
UNET_MAPS = 36
CONTROL_MAPS = 12
ADAPTER_MAPS = 6
"""While a T2I-Adapter looks at the image; it does so once, for all contexts."""
FEATURE_MAPS = 2
"""What it leaves for the UNet."""
TOKEN_MAPS = 4
"""Likewise, of a prompt's tokens, beside their keys and values: their embeddings."""
DECODER_MAPS = 8
ENCODER_MAPS = 7
TILED_DECODER_MAPS = 4
TILED_ENCODER_MAPS = 3
TILED_BFLOAT16_DECODER_MAPS = 6
"""On a CPU, whose forms of layers in bfloat16 write each result into memory of its own."""


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
class WeightsSize:
    """How large the weights of a model are.

    Attributes:
        component: its name.
        device: where it is to run.
        numbers: how many its weights are.
        unmapped: bytes of its file that cannot be mapped.
        is_loaded: whether it is in memory already.
        token_width: numbers that it keeps of each token of a prompt.
        overflows: whether it computes in float32 where the others do in float16.
    """

    component: str
    device: torch.device
    numbers: int
    unmapped: int
    is_loaded: bool
    token_width: int = 0
    overflows: bool = False

    @classmethod
    def of(cls, models: RequestModels, component: str, path: Path | None = None) -> WeightsSize:
        """Those of one of a request's models. Reads the file's header."""
        size = models.session.headers.file_size(component, path)
        return cls(
            component,
            models.placement[component],
            numbers=size.numbers,
            unmapped=size.unmapped,
            is_loaded=models.key(component, path) in models.session.loaded,
            token_width=size.token_width,
            overflows=bool(
                getattr(models.session.headers.config(component, path), "force_upcast", False)
            ),
        )

    def while_running(self, execution: Execution) -> Memory:
        """What the weights take while the model runs, or stays loaded."""
        bytes_ = self.numbers * self._itemsize(execution)
        if execution.offloads_on(self.device):
            return self.while_offloaded(execution) + Memory(gpu=bytes_)
        if self.is_loaded:
            return Memory()
        piece = min(bytes_, 2 * PIECE_BYTES)
        on_cpu = self.device.type == "cpu"
        if execution.streamed:
            return Memory(self.unmapped + piece, 0 if on_cpu else piece)
        return Memory(bytes_) if on_cpu else Memory(piece, bytes_)

    def while_offloaded(self, execution: Execution) -> Memory:
        """What the weights of an offloaded model take, whether it runs or not."""
        if self.is_loaded:
            return Memory()
        return Memory(self.numbers * self._itemsize(execution))

    def computing(self, execution: Execution, values: float) -> Memory:
        """What the model computes with, if that is so many numbers."""
        if self.device.type == "cpu":
            return Memory(main=STEADY + values * self._itemsize(execution))
        return Memory(gpu=STEADY + values * self._itemsize(execution))

    def _itemsize(self, execution: Execution) -> int:
        dtype = execution.dtype_on(self.device)
        return 4 if self.overflows and dtype == torch.float16 else dtype.itemsize


@dataclass(frozen=True)
class Saving:
    """A way to need less memory: what a notice says of it, and what it is."""

    description: str
    tiled: bool = False
    streamed: bool = False
    slices: bool = False

    def applied(self, execution: Execution) -> Execution:
        """With this saving, too."""
        size = execution.sliced_attention_size
        return replace(
            execution,
            tiled=execution.tiled or self.tiled,
            streamed=execution.streamed or self.streamed,
            sliced_attention_size=AUTOMATIC_SLICES if self.slices and size is None else size,
        )


TILES = Saving("running the autoencoder in tiles", tiled=True)
SLICES = Saving("computing attention in slices", slices=True)
STREAMING = Saving("reading the weights anew at each step", streamed=True)


@dataclass(frozen=True)
class Workload:
    """What is to be computed, as far as it matters for memory.

    Attributes:
        width, height: of an image, in pixels.
        positions: of an image's latents.
        contexts: for how many contexts the UNet evaluates each image: 2 with guidance.
        tokens: of each of them.
        images: how many there are to be, all in all.
        text_encoders, unet, vae, controlnets, adapters: the models that are to run; T2I-Adapters
            before the UNet, ControlNets beside it.
        unet_width, vae_width: channels of their first level.
        token_width: numbers that a token of a prompt takes while the UNet looks at it, beside its
            keys and values.
        encodes: whether it begins with an image.
        tiny_vae: whether the autoencoder is a tiny one, which is not tiled.
        lora_bytes: of these files.
    """

    width: int
    height: int
    positions: int
    contexts: int
    tokens: int
    images: int
    text_encoders: tuple[WeightsSize, ...]
    unet: WeightsSize
    vae: WeightsSize
    controlnets: tuple[WeightsSize, ...]
    adapters: tuple[WeightsSize, ...]
    unet_width: int
    token_width: int
    vae_width: int
    encodes: bool
    tiny_vae: bool
    lora_bytes: int

    @classmethod
    def of(
        cls,
        models: RequestModels,
        latent_shape: tuple[int, int, int, int],
        *,
        contexts: int = 2,
        chunks: int = 1,
        images: int = 1,
        controls: Sequence[Path] = (),
        encodes: bool = False,
    ) -> Workload:
        """The workload of some images, of latents (1, C, h, w). Reads headers of files.

        Args:
            models: of the request.
            latent_shape: of an image.
            contexts, images, encodes: see the attributes.
            chunks: of the longest prompt.
            controls: files of ControlNets and T2I-Adapters.
        """
        steering = [
            WeightsSize.of(models, models.session.source.companion(path), path)
            for path in dict.fromkeys(controls)
        ]
        variant, vae = models.variant, models.session.headers.config("vae")
        factor = variant.vae.downsample_factor
        tiny = isinstance(vae, AutoencoderTinyConfig)
        return cls(
            width=factor * latent_shape[-1],
            height=factor * latent_shape[-2],
            positions=latent_shape[-1] * latent_shape[-2],
            contexts=contexts,
            tokens=chunks * variant.text_encoder.max_position_embeddings,
            images=images,
            text_encoders=tuple(
                WeightsSize.of(models, one.name)
                for one in components_with_role("text_encoder")
                if one.name in models.session.source.files.weights
            ),
            unet=WeightsSize.of(models, "unet"),
            vae=WeightsSize.of(models, "vae"),
            controlnets=tuple(one for one in steering if one.component == "controlnet"),
            adapters=tuple(one for one in steering if one.component == "t2i_adapter"),
            unet_width=variant.unet.block_out_channels[0],
            token_width=TOKEN_MAPS
            * (variant.unet.cross_attention_dim + max(variant.unet.block_out_channels)),
            vae_width=vae.channels if tiny else vae.block_out_channels[0],
            encodes=encodes,
            tiny_vae=tiny,
            lora_bytes=sum(
                file.size for lora in models.loras for file in lora_fingerprint(lora.path)
            ),
        )

    @property
    def size(self) -> str:
        """For people."""
        return f"{self.width}x{self.height} pixels"

    @property
    def work(self) -> float:
        """The arithmetic of one of the UNet's largest operations, for an image.

        These are the multiplications and additions of a 3x3 convolution of its first level.
        """
        return 18.0 * self.unet_width**2 * self.positions * self.contexts

    @property
    def models(self) -> tuple[WeightsSize, ...]:
        """All models that are to run."""
        return (*self.text_encoders, self.unet, self.vae, *self.controlnets, *self.adapters)

    @property
    def gpus(self) -> set[torch.device]:
        """Devices of models that do not run on the CPU."""
        return {model.device for model in self.models if model.device.type != "cpu"}

    def forming(self, keep: frozenset[str]) -> int:
        """How many networks are in memory at a time that may have faster forms of their weights.

        T2I-Adapters and text encoders have none.
        """
        return 1 + len(self.controlnets) + bool(keep & {"unet", "vae"})

    @property
    def savings(self) -> tuple[Saving, ...]:
        """What there is to save memory with, the cheapest first.

        Slices save nothing on the CPU, where attention never makes all scores at a time.
        """
        return (TILES, SLICES, STREAMING) if self.gpus else (TILES, STREAMING)

    def need(
        self, execution: Execution, keep: frozenset[str] = frozenset(), batch: int = 1
    ) -> Memory:
        """What the largest of the phases takes.

        Args:
            execution: how the models compute.
            keep: components that stay loaded after their use.
            batch: images that are computed together.
        """
        return reduce(or_, self._phases(execution, keep, batch))

    def _decoder_maps(self, execution: Execution) -> int:
        """Of a decoder that runs in tiles."""
        on_cpu = self.vae.device.type == "cpu"
        in_bfloat16 = on_cpu and execution.dtype_on(self.vae.device) == torch.bfloat16
        return TILED_BFLOAT16_DECODER_MAPS if in_bfloat16 else TILED_DECODER_MAPS

    def _phases(self, execution: Execution, keep: frozenset[str], batch: int) -> Iterator[Memory]:
        files = Memory(main=self.lora_bytes)

        def phase(runs: tuple[WeightsSize, ...], values: float) -> Memory:
            total = runs[0].computing(execution, values)
            for model in self.models:
                if model not in runs and execution.offloads_on(model.device):
                    total += model.while_offloaded(execution)
                elif model in runs or model.component in keep:
                    total += model.while_running(execution)
            return total

        for text_encoder in self.text_encoders:
            yield phase((text_encoder,), 0) + files
        first_maps = batch * self.positions * self.unet_width
        features = FEATURE_MAPS * len(self.adapters) * first_maps
        for adapter in self.adapters:
            yield phase((adapter,), ADAPTER_MAPS * first_maps + features)
        maps = UNET_MAPS + CONTROL_MAPS * len(self.controlnets)
        values = maps * self.contexts * first_maps + features
        kept = sum(network.token_width for network in (self.unet, *self.controlnets))
        values += self.contexts * batch * self.tokens * (self.token_width + kept)
        yield phase((self.unet, *self.controlnets), values) + files
        tiled = execution.is_tiled_on(self.vae.device) and not self.tiny_vae
        pixels = batch * self.width * self.height
        maps = self._decoder_maps(execution) if tiled else DECODER_MAPS
        yield phase((self.vae,), maps * pixels * self.vae_width)
        if self.encodes:
            maps = TILED_ENCODER_MAPS if tiled else ENCODER_MAPS
            yield phase((self.vae,), maps * self.width * self.height * self.vae_width)
