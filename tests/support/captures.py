"""Stands for CUDA graphs on a CPU: operators are captured, and run again without the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdpy.optimizations.exact.cuda_graphs import WARM_UPS, CudaGraphs, Work


class CountedGraphs(CudaGraphs):
    """Counts what is captured and launched.

    Args:
        device: a GPU.
        failing: what a capture raises, if anything.
    """

    def __init__(self, device: torch.device, failing: Exception | None = None) -> None:
        super().__init__(device)
        self.captured, self.launched, self.failing = 0, 0, failing

    def capture(self, work: Work, changed: Sequence[Tensor]) -> Work:
        """See `CudaGraphs.capture`."""
        if self.failing is not None:
            raise self.failing
        replay = self.captured_by(work, changed)
        self.captured += 1

        def launch() -> None:
            self.launched += 1
            replay()

        return launch

    def captured_by(self, work: Work, changed: Sequence[Tensor]) -> Work:
        """What launches the work, by CUDA."""
        return super().capture(work, changed)


class ReplayedOperators(CountedGraphs):
    """On a CPU: as a graph does, it runs each operator again with the tensors of the capture.

    So whatever the program computes by itself stays what it was: Python's numbers, branches,
    tensors that are made of these. And a tensor that is not in its old place is not seen.
    """

    def captured_by(self, work: Work, changed: Sequence[Tensor]) -> Work:
        """What runs the operators again."""
        before = [tensor.clone() for tensor in changed]
        for _ in range(WARM_UPS):
            work()
        for tensor, saved in zip(changed, before, strict=True):
            tensor.copy_(saved)
        with _Operators() as operators:
            work()
        for tensor, saved in zip(changed, before, strict=True):  # a capture computes nothing
            tensor.copy_(saved)

        def replay() -> None:
            for again in operators.found:
                again()

        return replay


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Callable[[], None]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # In inference mode, operators arrive here whole that are made of others.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        outputs = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]
        inputs = [
            x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)
        ]
        storages = {x.untyped_storage().data_ptr() for x in inputs}
        changes = func._schema.is_mutable
        if changes:
            self.found.append(lambda: func(*args, **kwargs))
        elif not all(x.untyped_storage().data_ptr() in storages for x in outputs):

            def again() -> None:
                new = torch.utils._pytree.tree_leaves(func(*args, **kwargs))
                for place, tensor in zip(outputs, new, strict=True):
                    place.copy_(tensor)

            self.found.append(again)
        return result
