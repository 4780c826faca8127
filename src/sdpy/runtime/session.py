"""The session: the one object that loads models, keeps them, and releases them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sdpy.checkpoints import (
    Checkpoint,
    Hashes,
    Lora,
    check_loras,
    check_weights,
    load_weights,
    lora_changes,
    lora_files,
    lora_fingerprint,
    merge_loras,
    outline_of,
    read_checkpoint,
)
from sdpy.components import COMPANIONS, components_with_role
from sdpy.errors import UsageError, WeightsError
from sdpy.optimizations.base import PassContext, Preparations
from sdpy.optimizations.exact import apply_passes
from sdpy.optimizations.weights import ModelWeights
from sdpy.runtime.devices import CPU, Placement
from sdpy.runtime.execution import Execution
from sdpy.runtime.fallbacks import Notice
from sdpy.runtime.loaded_model import FileSize, LoadedModel, ModelKey
from sdpy.runtime.offloading import moved
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.threads import is_number_given
from sdpy.text.conditioning import PromptConditioning
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.hints import doubtful_adapter
from sdpy.zoo.schemas import told_beside
from sdpy.zoo.source import ModelSource
from sdpy.zoo.variants import ModelVariant

if TYPE_CHECKING:
    from sdpy.runtime.options import ModelOptions

TAKES_LORAS = frozenset(one.name for one in components_with_role("text_encoder", "unet"))
"""Components into which LoRAs are merged."""

HEAVY = TAKES_LORAS | {"controlnet"}
"""Components whose weights are large beside what is computed with them."""

PROMPTS_CACHED = 256
"""Encoded prompts that a session caches; each takes a quarter of a megabyte a chunk."""


@dataclass
class Counters:
    """What a session has done so far.

    Attributes:
        loads: models that were loaded.
        encoded_prompts: prompts that the text encoder has read.
        preparations: kernels that were planned, and weights that were put into faster forms.
    """

    loads: int = 0
    encoded_prompts: int = 0
    preparations: Preparations = field(default_factory=Preparations)


class Session:
    """The models of one source, loaded when a request needs them and kept for the next.

    Nothing else in the program loads a model. Requests use the models through `models`, one request
    at a time; ``close``, or the end of a ``with`` block, releases everything.

    Args:
        source: variant and files.
        placement: device of each component; None for the CPU.
        execution: how the models compute, unless a request has to do with less memory.
        refiner: session of a model that does the last steps of each image.
        keep_models: whether models stay for further requests. Where there are none, as in a
            command for a single image, they only stay while the request still needs them.
        options: those that asked for it, for metadata.

    Attributes:
        hashes: of the files.
        counters: what was done so far.
        lock: held by whoever runs a request.
    """

    def __init__(
        self,
        source: ModelSource,
        placement: Placement | None = None,
        execution: Execution | None = None,
        *,
        keep_models: bool = True,
        options: ModelOptions | None = None,
        refiner: Session | None = None,
    ) -> None:
        self.source = source
        self.options = options
        self.refiner = refiner
        self.placement = Placement() if placement is None else placement
        self.execution = Execution() if execution is None else execution
        self.keep_models = keep_models
        self.counters = Counters()
        self.hashes = Hashes()
        self.lock = RLock()
        # The least recently used first.
        self._loaded: OrderedDict[ModelKey, LoadedModel] = OrderedDict()
        self._prompts: OrderedDict[Hashable, PromptConditioning] = OrderedDict()
        self._configs: dict[Hashable, Any] = {}
        self._sizes: dict[Hashable, FileSize] = {}
        self._checked: set[Hashable] = set()
        # Models without weights that were checked against files, until they are loaded.
        self._empty: dict[Hashable, nn.Module] = {}
        self._lora_files: tuple[Checkpoint, ...] = ()
        self._notices = [*source.assumptions, *source.notices]
        if options is not None and options.dtype is None and self.placement.gpus:
            self._notices.append(
                "computing in fp32 on the GPU, in which images are the same on every device: "
                "--dtype fp16 is faster, takes half of the memory, and changes them a little"
            )
        self._is_closed = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def variant(self) -> ModelVariant:
        """Sizes, noise and defaults of the models."""
        return self.source.variant

    @property
    def name(self) -> str:
        """What the model is called: the name of its variant, or of the file or folder it is in."""
        model = None if self.options is None else self.options.model
        return self.variant.name if model is None else Path(model).stem

    @property
    def chooses_threads(self) -> bool:
        """Whether models on the CPU take as many threads as fit them; not where users say it."""
        told = self.options is None or self.options.threads is not None
        return not (told or is_number_given())

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer.

        Raises:
            WeightsError: the vocabulary cannot be read.
        """
        return self.source.read_tokenizer()

    def config(self, component: str, path: Path | None = None) -> Any:
        """The sizes of a component; see `ModelSource.config`. Read once for each state of a file.

        Raises:
            WeightsError: the file cannot be read.
        """
        known = (component, self.source.fingerprint(component, path))
        if known not in self._configs:
            self._configs[known] = self.source.config(component, path)
        return self._configs[known]

    def file_size(self, component: str, path: Path | None = None) -> FileSize:
        """How large the weights of a component are. Read once for each state of a file.

        Raises:
            WeightsError: the file cannot be read.
        """
        known = (component, self.source.fingerprint(component, path))
        if known not in self._sizes:
            checkpoint = self.source.checkpoint(component, path)
            outline = outline_of(checkpoint, component).values()
            self._sizes[known] = FileSize(
                numbers=sum(tensor.numel() for tensor in outline),
                unmapped=0 if checkpoint.is_mapped else sum(tensor.nbytes for tensor in outline),
            )
        return self._sizes[known]

    def check(self, loras: tuple[Lora, ...] = ()) -> None:
        """Read the vocabulary and the names and shapes of the model's own weights, no numbers.

        What has been checked is not checked again until a file changes.

        Raises:
            WeightsError: a file is broken or of the wrong kind.
        """
        _ = self.tokenizer
        names = tuple(self.source.files.weights)
        states = tuple(self.source.fingerprint(name) for name in names)
        checked = (states, _states_of(loras))
        if checked in self._checked:
            return
        # As long as they are held here, whoever asks for these files gets the same open ones.
        self._lora_files = tuple(
            read_checkpoint(file) for lora in loras for file in lora_files(lora.path)
        )
        models = {}
        for name in names:
            models[name] = self.source.make(name)
            check_weights(models[name], self.source.checkpoint(name), component=name)
            self._empty[name, self.source.fingerprint(name)] = models[name]
        self._check_latents()
        self._check_widths()
        check_loras(loras, {name: models[name] for name in names if name in TAKES_LORAS})
        self._checked.add(checked)

    def _check_widths(self) -> None:
        """The UNet looks at what the text encoders give, side by side."""
        encoders = {name: config.hidden_size for name, config in self.variant.text_encoders.items()}
        wanted = self.config("unet").cross_attention_dim
        if sum(encoders.values()) != wanted:
            files = self.source.files.weights
            given = " and ".join(
                f"{files[name]} ({width} wide)" for name, width in encoders.items()
            )
            raise WeightsError(
                f"{files['unet']} takes embeddings {wanted} wide, but {given} gives others: use "
                "the text encoders of the same model"
            )

    def _check_latents(self) -> None:
        ours, theirs = self.variant.vae, self.config("vae")
        if (ours.downsample_factor, ours.latent_channels) != (
            theirs.downsample_factor,
            theirs.latent_channels,
        ):
            raise WeightsError(
                f"{self.source.files.weights['vae']} is a tiny autoencoder for other latents than "
                f"those of {self.variant.name}; leave --vae-weights out"
            )

    def check_companion(self, path: Path) -> None:
        """Read the names and shapes of a ControlNet's or T2I-Adapter's weights, but only once.

        Raises:
            WeightsError: the file is broken, of the wrong kind, or for another model.
        """
        checked = self.source.fingerprint(COMPANIONS[0], path)
        if checked not in self._checked:
            component = self.source.companion(path)
            made = self.source.make(component, path)
            opened = self.source.checkpoint(component, path)
            check_weights(made, opened, component=component)
            self._notices += told_beside(component, opened.path).notices
            if component == "t2i_adapter":
                self._notices += doubtful_adapter(opened, self.variant)
            self._checked.add(checked)

    def models(
        self,
        execution: Execution | None = None,
        loras: tuple[Lora, ...] = (),
        keep: frozenset[str] | None = None,
    ) -> RequestModels:
        """The models as a request uses them.

        Args:
            execution: how they compute; None for the session's own way.
            loras: merged into text encoder and UNet, in this order.
            keep: components that stay loaded after their use; None for all that may.

        Raises:
            UsageError: the session is closed.
        """
        if self._is_closed:
            raise UsageError("this session is closed: load the model again")
        execution = self.execution if execution is None else execution
        names = frozenset((*self.source.files.weights, *COMPANIONS))
        chosen = (names if self.keep_models else frozenset()) if keep is None else keep
        return RequestModels(self, execution, self.placement, loras, chosen)

    def check_unchanged(self) -> None:
        """See to it that the files of the models in use are those that were opened.

        Raises:
            WeightsError: one was changed in its place.
        """
        for loaded in self._loaded.values():
            if loaded.users:
                loaded.check_unchanged()

    def take_notices(self) -> Iterator[Notice]:
        """What the user should know about the files; each is told once in a session."""
        while self._notices:
            yield Notice(self._notices.pop(0))

    def has_prompt(self, key: Hashable) -> bool:
        """Whether an encoded prompt is there."""
        return key in self._prompts

    def cached_prompt(self, key: Hashable) -> PromptConditioning:
        """An encoded prompt that is there."""
        self._prompts.move_to_end(key)
        return self._prompts[key]

    def cache_prompt(self, key: Hashable, conditioning: PromptConditioning) -> None:
        """Cache an encoded prompt in place of the least recently used of too many."""
        self._prompts[key] = conditioning
        while len(self._prompts) > PROMPTS_CACHED:
            self._prompts.popitem(last=False)

    @contextmanager
    def use(
        self,
        key: ModelKey,
        path: Path,
        *,
        loras: tuple[Lora, ...],
        keep: bool,
        weight_budget: int | None = None,
        evaluations: int | None = None,
    ) -> Iterator[nn.Module]:
        """A model, loaded if it is not there, for the duration of the block.

        Args:
            key: which model.
            path: of its weights.
            loras: merged into it.
            keep: whether it stays after the block.
            weight_budget: bytes that faster forms of its weights may take, if it is loaded now.
            evaluations: how often it is going to compute, likewise; None for many times.
        """
        self._release_outdated(key)
        loaded = self._loaded.get(key)
        if loaded is None:
            loaded = self._load(key, path, loras, weight_budget, evaluations)
            self._loaded[key] = loaded
        self._loaded.move_to_end(key)
        loaded.users += 1
        offload = key.execution.offloads_on(key.device)
        try:
            with moved(loaded.model, key.device) if offload else nullcontext():
                loaded.check_unchanged()
                yield loaded.model
                loaded.check_unchanged()
        finally:
            loaded.users -= 1
            if not (keep or offload) and not loaded.users:
                self._drop(key)

    def key(
        self,
        component: str,
        path: Path,
        device: torch.device,
        execution: Execution,
        loras: tuple[Lora, ...] = (),
    ) -> ModelKey:
        """What identifies a model; see `ModelKey`. Reads the time of change of its files."""
        merged = loras if component in TAKES_LORAS else ()
        return ModelKey(
            component,
            self.source.fingerprint(component, path),
            self.config(component, path),
            device,
            # These two say how much memory there is, not how the model computes.
            replace(execution, weight_budget=None, memory="auto"),
            _states_of(merged),
        )

    def is_loaded(self, key: ModelKey) -> bool:
        """Whether a model is in memory."""
        return key in self._loaded

    def loaded_components(self) -> tuple[str, ...]:
        """Names of the models in memory, that which was not used for longest first."""
        return tuple(key.component for key in self._loaded)

    def release(self, *components: str, except_for: frozenset[ModelKey] = frozenset()) -> None:
        """Release models that nobody uses at present.

        Args:
            components: of these names; none: all.
            except_for: models that stay.
        """
        for key, loaded in list(self._loaded.items()):
            wanted = not components or key.component in components
            if wanted and not loaded.users and key not in except_for:
                self._drop(key)

    def release_least_recently_used(self, except_for: frozenset[ModelKey]) -> bool:
        """Release the model that was not used for longest; whether there was any to release."""
        for key, loaded in self._loaded.items():
            if not loaded.users and key not in except_for:
                self._drop(key)
                return True
        return False

    def drop_graphs(self) -> None:
        """Drop all CUDA graphs, and the memory that they keep."""
        for loaded in self._loaded.values():
            loaded.drop_graphs()

    def close(self) -> None:
        """Release everything; a closed session serves no further request."""
        self.release()
        self.hashes.close()
        self._prompts.clear()
        if self.refiner is not None:
            self.refiner.close()
        self._is_closed = True

    def _release_outdated(self, key: ModelKey) -> None:
        """Release models made of files that have been replaced since."""
        paths = {file.path for file in key.files}
        for other, loaded in list(self._loaded.items()):
            same_files = {file.path for file in other.files} == paths
            if same_files and other.files != key.files and not loaded.users:
                self._drop(other)

    def _drop(self, key: ModelKey) -> None:
        # A command for a single request soon needs as much for the decoder, and then ends.
        soon_over = not self.keep_models and self.execution.memory == "auto"
        self._loaded.pop(key).release(to_system=not soon_over)

    def _load(
        self,
        key: ModelKey,
        path: Path,
        loras: tuple[Lora, ...],
        weight_budget: int | None,
        evaluations: int | None,
    ) -> LoadedModel:
        """Give a new model its weights, or the means to get them when it runs."""
        self.counters.loads += 1
        execution, device, component = key.execution, key.device, key.component
        model = self._take_empty(component, path).eval()
        opened = self.source.checkpoint(component, path)
        dtype = execution.dtype_on(device)
        in_memory = CPU if execution.offloads_on(device) else device
        merged = loras if component in TAKES_LORAS else ()
        once = evaluations == 1 and self._is_faster_streamed(component, opened, device, dtype)
        streamed = execution.streamed or once
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
                weight_budget=weight_budget,
                evaluations=evaluations,
                weights=weights,
                preparations=self.counters.preparations,
            ),
        )
        return LoadedModel(key, model, file)

    def _take_empty(self, component: str, path: Path) -> nn.Module:
        """A model without weights: that which they were checked against, unless it is taken."""
        made = self._empty.pop((component, self.source.fingerprint(component, path)), None)
        return self.source.make(component, path) if made is None else made

    def _is_faster_streamed(
        self, component: str, opened: Checkpoint, device: torch.device, dtype: torch.dtype
    ) -> bool:
        """Whether weights had better be converted when their layer runs, if it runs only once.

        Then they take the same memory in turn. Memory for all of them would be new, every page of
        which the system has to clear, and that takes longer than converting.
        """
        if device.type != "cpu" or component not in HEAVY or not opened.is_mapped:
            return False
        stored = outline_of(opened, component).values()
        return any(one.is_floating_point() and one.dtype != dtype for one in stored)


def _states_of(loras: tuple[Lora, ...]) -> tuple[Any, ...]:
    """The files and the weight of each LoRA."""
    return tuple((lora_fingerprint(lora.path), lora.weight) for lora in loras)
