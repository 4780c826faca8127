"""A linear layer that does not compute the same twice."""

from __future__ import annotations

from torch import Tensor, nn


class LastSeen:
    """The tensor that was seen last."""

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._version = 0

    def is_new(self, x: Tensor) -> bool:
        """Whether ``x`` is another tensor than the last time, or has been changed since."""
        version = 0 if x.is_inference() else x._version
        is_new = self._tensor is not x or self._version != version
        self._tensor, self._version = x, version
        return is_new


class RememberingLinear(nn.Module):
    """A linear layer that, asked about the same tensor again, gives the same answer again.

    For the keys and values of the prompt, which stay as they are over all steps.

    Args:
        original: the layer to wrap.
    """

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.original = original
        self._question = LastSeen()
        self._answer: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features); the result is not to be changed."""
        if self._question.is_new(x) or self._answer is None:
            self._answer = self.original(x)
        return self._answer
