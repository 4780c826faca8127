"""What the samplers share that integrate a polynomial through the last slopes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]


class Slopes:
    """The last predictions of the noise, which is the slope of the latents over the level.

    Args:
        order: how many are kept.
    """

    def __init__(self, order: int) -> None:
        self._kept: deque[tuple[float, Tensor]] = deque(maxlen=order)  # newest first

    def __len__(self) -> int:
        return len(self._kept)

    def integrate(
        self,
        predicted_x0: Tensor,
        sigma: float,
        following: float,
        coordinate: Callable[[Values], Values],
        order: int,
    ) -> Tensor:
        """The latents ``x_0 + sigma noise`` at the level ``following``.

        Args:
            predicted_x0: at ``sigma``.
            sigma: the level of the newest slope.
            following: the level to go to.
            coordinate: in what function of the level the slopes are interpolated.
            order: how many of the slopes to take.
        """
        kept = [self._kept[k] for k in range(order)]
        nodes = np.array([level for level, _ in kept])
        weights = integral_weights(coordinate, nodes, sigma, following)
        # The latents are x_0 + sigma (newest slope); put so, large terms do not cancel.
        weights[0] += sigma
        result = predicted_x0
        for weight, (_, slope) in zip(weights.tolist(), kept, strict=True):
            result = result + weight * slope
        return result

    def append(self, sigma: float, slope: Tensor) -> None:
        """Keep another slope, forgetting the oldest if there are too many."""
        self._kept.appendleft((sigma, slope))


def integral_weights(
    coordinate: Callable[[Values], Values], nodes: Values, start: float, end: float
) -> Values:
    """The integrals of the Lagrange polynomials of ``coordinate(nodes)`` from ``start`` to ``end``.

    By Gauss-Legendre quadrature with 32 points, in the logarithm of the level unless it ends at 0,
    which is exact to rounding for the polynomials of up to four nodes.
    """
    points, point_weights = np.polynomial.legendre.leggauss(32)
    if end > 0:
        low, high = np.log(start), np.log(end)
        levels = np.exp((high + low) / 2 + (high - low) / 2 * points)
        point_weights = point_weights * (high - low) / 2 * levels
    else:
        levels = (end + start) / 2 + (end - start) / 2 * points
        point_weights = point_weights * (end - start) / 2
    u, u_nodes = coordinate(levels), coordinate(nodes)
    weights = np.empty(len(nodes))
    for j in range(len(nodes)):
        others = np.delete(u_nodes, j)
        values = np.prod((u[:, None] - others) / (u_nodes[j] - others), axis=1)
        weights[j] = point_weights @ values
    return weights
