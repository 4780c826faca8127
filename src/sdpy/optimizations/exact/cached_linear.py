"""A linear layer that does not compute the same twice."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class CacheKey:
    """The tensor for which something was last computed.

    It holds on to that tensor, so that no other one can take its identity. A tensor that is
    changed in place is another one, but for those of inference mode, of which torch does not count
    the changes; they are not to be changed.
    """

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._version = 0

    def matches(self, x: Tensor) -> bool:
        """Whether ``x`` is that tensor, unchanged."""
        return self._tensor is x and self._version == _version(x)

    def set(self, x: Tensor) -> None:
        """To be called when the computation has succeeded, so that a failed one is done again."""
        self._tensor, self._version = x, _version(x)


class CachedLinear(nn.Module):
    """A linear layer that returns its last result again if it is given the same tensor again.

    For the keys and values of the prompt, which stay as they are over all steps.

    Args:
        original: the layer to wrap.
    """

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.original = original
        self._key = CacheKey()
        self.cached: Tensor | None
        self.register_buffer("cached", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features); the result is not to be changed."""
        if not self._key.matches(x) or self.cached is None:
            self.cached = self.original(x)
            self._key.set(x)
        return cast(Tensor, self.cached)

    def keeps(self, x: Tensor) -> bool:
        """Whether the last result is that of this very tensor."""
        return self._key.matches(x)


def _version(x: Tensor) -> int:
    """How often a tensor was changed; 0 if torch does not count that."""
    return 0 if x.is_inference() else x._version
