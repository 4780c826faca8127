"""A linear layer that does not compute the same twice."""

from __future__ import annotations

from torch import Tensor, nn


class RememberingLinear(nn.Module):
    """A linear layer that, asked about the same tensor again, gives the same answer again.

    For the keys and values of the prompt, which stay as they are over all steps.

    Args:
        original: the layer to wrap.
    """

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.original = original
        self._question: Tensor | None = None
        self._version = 0
        self._answer: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features); the result is not to be changed."""
        version = 0 if x.is_inference() else x._version
        if self._answer is None or self._question is not x or self._version != version:
            self._answer = self.original(x)
            self._question, self._version = x, version
        return self._answer
