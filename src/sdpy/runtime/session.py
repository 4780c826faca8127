"""The session: the one object that loads models, keeps them, and releases them.

What it knows of their files is in `headers`, and what is in memory in `loaded_models`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdpy.checkpoints import Hashes, Lora
from sdpy.components import COMPANIONS
from sdpy.errors import UsageError
from sdpy.optimizations.base import Preparations
from sdpy.runtime.devices import Placement
from sdpy.runtime.execution import Execution
from sdpy.runtime.fallbacks import Notice
from sdpy.runtime.headers import Headers
from sdpy.runtime.loaded_models import LoadedModels, ModelKey
from sdpy.runtime.loading import TAKES_LORAS, Use, load_model, lora_states
from sdpy.runtime.offloading import moved
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.threads import is_number_given
from sdpy.text.conditioning import PromptConditioning
from sdpy.zoo.source import ModelSource
from sdpy.zoo.variants import ModelVariant

if TYPE_CHECKING:
    from sdpy.runtime.options import ModelOptions

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
        headers: what is known of the files.
        hashes: of the files.
        loaded: the models that are in memory.
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
        self.headers = Headers(source)
        # A command for a single request soon needs as much for the decoder, and then ends.
        soon_over = not keep_models and self.execution.memory == "auto"
        self.loaded = LoadedModels(to_system=not soon_over)
        self._prompts: OrderedDict[Hashable, PromptConditioning] = OrderedDict()
        if options is not None and options.dtype is None and self.placement.gpus:
            self.headers.notices.append(
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

    def take_notices(self) -> Iterator[Notice]:
        """What the user should know about the files; each is told once in a session."""
        while self.headers.notices:
            yield Notice(self.headers.notices.pop(0))

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
    def use(self, key: ModelKey, path: Path, use: Use) -> Iterator[nn.Module]:
        """A model, loaded if it is not there, for the duration of the block.

        Args:
            key: which model.
            path: of its weights.
            use: what for.
        """
        self.loaded.release_outdated(key)
        loaded = self.loaded.find(key)
        if loaded is None:
            self.counters.loads += 1
            model = self.headers.take_empty(key.component, path)
            opened = self.source.checkpoint(key.component, path)
            loaded = load_model(key, model, opened, use, self.counters.preparations)
            self.loaded.add(loaded)
        loaded.users += 1
        offload = key.execution.offloads_on(key.device)
        try:
            with moved(loaded.model, key.device) if offload else nullcontext():
                loaded.check_unchanged()
                yield loaded.model
                loaded.check_unchanged()
        finally:
            loaded.users -= 1
            if not (use.keep or offload) and not loaded.users:
                self.loaded.drop(key)

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
            self.headers.config(component, path),
            device,
            # These two say how much memory there is, not how the model computes.
            replace(execution, weight_budget=None, memory="auto"),
            lora_states(merged),
        )

    def close(self) -> None:
        """Release everything; a closed session serves no further request."""
        self.loaded.release()
        self.hashes.close()
        self._prompts.clear()
        if self.refiner is not None:
            self.refiner.close()
        self._is_closed = True
