"""A model in memory, and what tells it from others."""

from __future__ import annotations

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


@dataclass(frozen=True)
class FileSize:
    """How large the weights of a component are.

    Attributes:
        numbers: how many the weights are.
        unmapped: bytes of the file that cannot be mapped.
    """

    numbers: int
    unmapped: int


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
