"""The models in memory, and what tells them from each other."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdpy.checkpoints import FileState, Weights
from sdpy.optimizations.exact.cuda_graphs import graphs_of
from sdpy.runtime.allocator import give_back_freed_memory
from sdpy.runtime.execution import Execution


@dataclass(frozen=True)
class ModelKey:
    """What identifies a loaded model: two that differ in any of these are not the same.

    Attributes:
        component: its name in the table of components.
        files: path, size and time of change of each file that its weights are in.
        config: its sizes.
        device: on which it runs.
        execution: how it computes.
        loras: files, and weight, of each LoRA that is merged into it.
    """

    component: str
    files: tuple[FileState, ...]
    config: Any
    device: torch.device
    execution: Execution
    loras: tuple[Any, ...]


@dataclass
class LoadedModel:
    """A model in memory.

    Attributes:
        key: what it is.
        model: ready to run.
        file: where its weights lie on disk.
        users: how many blocks use it now.
    """

    key: ModelKey
    model: nn.Module
    file: Weights
    users: int = 0

    def check_unchanged(self) -> None:
        """Raises ``WeightsError`` if a file that its weights lie in was changed in its place."""
        for mapping in self.file.mappings:
            mapping.check_unchanged()

    def drop_graphs(self) -> None:
        """Drop what was captured of its steps."""
        graphs = graphs_of(self.model)
        if graphs is not None:
            graphs.clear()

    def release(self, *, to_system: bool = True) -> None:
        """Give back its memory, even where somebody still holds the model.

        Args:
            to_system: or else leave what was not mapped for the next model of this process, for
                which the system would have to clear every page of new memory.
        """
        self.drop_graphs()
        self.model.to("meta")
        self.file.forget()
        if to_system:
            give_back_freed_memory()


class LoadedModels:
    """The models of a session that are in memory.

    Args:
        to_system: whether the memory of a model that is released goes back to the system at once.
    """

    def __init__(self, *, to_system: bool) -> None:
        self._to_system = to_system
        # The least recently used first.
        self._models: OrderedDict[ModelKey, LoadedModel] = OrderedDict()

    def __contains__(self, key: ModelKey) -> bool:
        return key in self._models

    def components(self) -> tuple[str, ...]:
        """Names of the models, that which was not used for longest first."""
        return tuple(key.component for key in self._models)

    def find(self, key: ModelKey) -> LoadedModel | None:
        """A model that is going to be used; None if it is not there."""
        loaded = self._models.get(key)
        if loaded is not None:
            self._models.move_to_end(key)
        return loaded

    def add(self, loaded: LoadedModel) -> None:
        """Keep a model that has just been loaded."""
        self._models[loaded.key] = loaded

    def check_unchanged(self) -> None:
        """See to it that the files of the models in use are those that were opened.

        Raises:
            WeightsError: one was changed in its place.
        """
        for loaded in self._models.values():
            if loaded.users:
                loaded.check_unchanged()

    def drop(self, key: ModelKey) -> None:
        """Release a model, whoever uses it."""
        self._models.pop(key).release(to_system=self._to_system)

    def release(self, *components: str, except_for: frozenset[ModelKey] = frozenset()) -> None:
        """Release models that nobody uses at present.

        Args:
            components: of these names; none: all.
            except_for: models that stay.
        """
        for key, loaded in list(self._models.items()):
            wanted = not components or key.component in components
            if wanted and not loaded.users and key not in except_for:
                self.drop(key)

    def release_least_recently_used(self, except_for: frozenset[ModelKey]) -> bool:
        """Release the model that was not used for longest; whether there was any to release."""
        for key, loaded in self._models.items():
            if not loaded.users and key not in except_for:
                self.drop(key)
                return True
        return False

    def release_outdated(self, key: ModelKey) -> None:
        """Release models made of other states of a model's files, which were replaced since."""
        paths = {file.path for file in key.files}
        for other, loaded in list(self._models.items()):
            same_files = {file.path for file in other.files} == paths
            if same_files and other.files != key.files and not loaded.users:
                self.drop(other)

    def drop_graphs(self) -> None:
        """Drop all CUDA graphs, and the memory that they keep."""
        for loaded in self._models.values():
            loaded.drop_graphs()
