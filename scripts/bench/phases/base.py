"""What a phase of the benchmark consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scripts.bench.contest import Contest, Run
from scripts.bench.outcomes import DIFFUSERS


@dataclass(frozen=True)
class BenchPhase:
    """Something that contestants do in turn, each turn in a process of its own.

    Attributes:
        title: in the table.
        contestants: who takes part, by the names in the table, and how each is run.
        base: the contestant that the others are compared with.
        needs_formats: whether it has to be known in which memory format diffusers is faster.
        for_gpus: whether it is for GPUs, and on a CPU only done if it is named.
        table: the generated table of the documentation that it has a row in, where ``{dtype}``
            stands for the number format of the models; None for none.
    """

    title: str
    contestants: Callable[[Contest], dict[str, Run]]
    base: str = DIFFUSERS
    needs_formats: bool = False
    for_gpus: bool = False
    table: str | None = None

    def table_in(self, dtype: str) -> str | None:
        """The name of the table, with models of that number format."""
        return None if self.table is None else self.table.format(dtype=dtype)
