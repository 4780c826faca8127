"""Notices when a program waits for a device, even where all tensors are on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    torch.ops.aten._local_scalar_dense.default,  # item(), bool(), int(), float(), f"{}", ...
    torch.ops.aten.allclose.default,
    torch.ops.aten.equal.default,
    # The shape of the result depends on the values.
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
}
"""Operators whose result the CPU needs, so that it waits until the device has computed it."""

CONVERSIONS: set[Callable[..., Any]] = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu}
"""Methods that read a tensor without an operator if it is on the CPU."""


@contextmanager
def counting_waits() -> Iterator[list[str]]:
    """Within the block, collect what would make the CPU wait for the device.

    Yields:
        A list that grows by the name of each operator or method, such as "aten::nonzero" or
        "Tensor.tolist". Copies to the CPU count unless they are ``non_blocking``; copies in the
        other direction do not.
    """
    found: list[str] = []
    with _Functions(found), _Operators(found):
        yield found


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in READS or func is torch.ops.aten.index.Tensor and _has_mask(args[1]):
            self.found.append(func.name())
        # In inference mode, operators arrive here whole that are made of others.
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is NotImplemented else result


class _Functions(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in CONVERSIONS or func is Tensor.to and _goes_to_cpu(args, kwargs):
            self.found.append(f"Tensor.{func.__name__}")
        return func(*args, **kwargs)


def _has_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _goes_to_cpu(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether ``Tensor.to`` was told to go to the CPU and to wait for it."""
    target = kwargs.get("device", args[1] if len(args) > 1 else None)
    if not isinstance(target, (str, torch.device)) or torch.device(target).type != "cpu":
        return False
    positional = [arg for arg in args[2:] if isinstance(arg, bool)]  # non_blocking, copy
    return not kwargs.get("non_blocking", positional[0] if positional else False)
