"""Convolutions that hold several forms of themselves, and compute in the one that is selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdpy.optimizations.base import Preparations
from sdpy.optimizations.exact.winograd import Frame
from sdpy.optimizations.weights import ModelWeights


@runtime_checkable
class Form(Protocol):
    """A way to compute a convolution: a module that is made from it, for inputs of any size.

    Attributes:
        needs_original: whether it computes with the original weights. Others have made their own
            when `prepare` returns.
    """

    needs_original: bool

    def prepare(self) -> None:
        """Make what is kept of the weights, unless it is there. The originals must be there."""
        ...


class DirectConv2d(nn.Module):
    """Torch's own convolution, its weights, and so its result, in channels-last memory.

    Args:
        original: the convolution to compute, any.
    """

    def __init__(self, original: nn.Conv2d) -> None:
        super().__init__()
        self.original = original
        self.needs_original = is_channels_last_already(original)
        self.kept: Tensor | None
        self.register_buffer("kept", None, persistent=False)

    def prepare(self) -> None:
        """Lay out the weights."""
        if not self.needs_original and self.kept is None:
            weight = self.original.weight.detach()
            self.kept = weight.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, h, w)."""
        self.prepare()
        if self.kept is None:
            return cast(Tensor, self.original(x))
        conv = self.original
        return F.conv2d(
            x, self.kept, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )


class StoredConv2d(nn.Module):
    """Torch's own convolution with the weights as they are.

    Args:
        original: the convolution to compute, any.
    """

    needs_original = True

    def __init__(self, original: nn.Conv2d) -> None:
        super().__init__()
        self.original = original

    def prepare(self) -> None:
        """Nothing: the weights are used as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, h, w)."""
        return cast(Tensor, self.original(x))


def is_channels_last_already(conv: nn.Conv2d) -> bool:
    """Whether the weights are in the same order in channels-last memory, as 1x1 kernels are."""
    shape = torch.empty(conv.weight.shape, device="meta")
    return shape.is_contiguous(memory_format=torch.channels_last)


class AdaptiveConv2d(nn.Module):
    """A convolution that computes in the form which was selected for the input's size.

    A form is made at its first use, and stays. The original weights are released while no form
    that was added needs them.

    Args:
        original: the convolution; it keeps weight and bias.
        weights: through which the original weights are released and restored; None where they are
            streamed, so that nothing can be made of them for later.
        preparations: counts the forms that are made.

    Attributes:
        forms: those that were added, by their keys.
        form: the selected one; None to compute with the original.
    """

    def __init__(
        self,
        original: nn.Conv2d,
        weights: ModelWeights | None = None,
        preparations: Preparations | None = None,
    ) -> None:
        super().__init__()
        self.original = original
        self.forms = nn.ModuleDict()
        self._weights = weights
        self._preparations = Preparations() if preparations is None else preparations
        self._selected: str | None = None
        self._prepared: set[str] = set()

    @property
    def weight(self) -> Tensor:
        """(O, C, k, k); its numbers are not there while it is released."""
        return self.original.weight

    @property
    def bias(self) -> Tensor | None:
        """(O,), or None."""
        return self.original.bias

    @property
    def form(self) -> nn.Module | None:
        """The selected form; None for the original."""
        return None if self._selected is None else self.forms[self._selected]

    @property
    def frame_multiple(self) -> int | None:
        """The rows and columns of a `Frame` are a multiple of this; None if it takes none."""
        multiple: int | None = getattr(self.form, "frame_multiple", None)
        return multiple

    @property
    def doubles(self) -> bool:
        """Whether the selected form is of the input doubled."""
        return bool(getattr(self.form, "doubles", False))

    def add(self, key: str, form: nn.Module) -> None:
        """Add a form, made from `original`; nothing is computed yet."""
        assert isinstance(form, Form)
        self.forms[key] = form

    def select(self, key: str) -> None:
        """Compute in that form from now on."""
        assert key in self.forms
        self._selected = key

    def forward(self, x: Tensor | Frame, place: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, O, h, w).

        Args:
            x: the input, or a `Frame` that was filled with it if there is a `frame_multiple`.
            place: for the result, if ``x`` is a `Frame`; None for new memory.
        """
        if self._selected is None:
            return self.compute_as_stored(cast(Tensor, x))
        if self._selected not in self._prepared:
            self._prepare(self._selected)
        form = self.forms[self._selected]
        return cast(Tensor, form(x, place) if isinstance(x, Frame) else form(x))

    def compute_as_stored(self, x: Tensor) -> Tensor:
        """The same with the original weights, whatever is selected."""
        if self._weights is not None:
            self._weights.restore(self.original.weight)
        try:
            return cast(Tensor, self.original(x))
        finally:
            self._release()

    def _prepare(self, key: str) -> None:
        form = self.forms[key]
        assert isinstance(form, Form)
        if self._weights is not None:
            self._weights.restore(self.original.weight)
        form.prepare()
        self._prepared.add(key)
        self._preparations.forms += not form.needs_original
        self._release()

    def _release(self) -> None:
        """Release the original weights, unless a form needs them."""
        needed = any(cast(Form, self.forms[key]).needs_original for key in self._prepared)
        if self._weights is not None and self._prepared and not needed:
            self._weights.release(self.original.weight)


class AdaptiveUpsample2D(nn.Module):
    """`Upsample2D` whose convolution may be computed of the map as it is before it is doubled.

    Args:
        original: the layer, its convolution an `AdaptiveConv2d`.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original

    @property
    def conv(self) -> AdaptiveConv2d:
        """The convolution."""
        conv = self.original.conv
        assert isinstance(conv, AdaptiveConv2d)
        return conv

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W), or to ``size`` where an odd side was halved before."""
        if not self.conv.doubles:
            return cast(Tensor, self.original(x, size))
        if size is None or list(size) == [2 * side for side in x.shape[2:]]:
            return cast(Tensor, self.conv(x))
        enlarged = F.interpolate(x, size=list(size), mode="nearest")
        return self.conv.compute_as_stored(enlarged)
