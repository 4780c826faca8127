"""Models without weights, to be filled from a file or only looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Modules that are built in the block have all their tensors on the meta device.

    Nor are these initialised: for initialising on that device, torch imports modules for more than
    a second.
    """
    with torch.device("meta"), _Uninitialised():
        yield


class _Uninitialised(TorchFunctionMode):
    """Leaves out whatever fills a tensor in place."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if _fills(getattr(func, "__name__", "")):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _fills(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")
