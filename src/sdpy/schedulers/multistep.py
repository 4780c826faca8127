"""Weights of linear multistep methods, which integrate a polynomial through past derivatives.

Latents are ``x_0 + sigma noise``; their derivative with respect to sigma is the predicted noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sdpy.schedulers.sigmas import FloatArray

QUADRATURE = np.polynomial.legendre.leggauss(32)
"""Points in [-1, 1] and weights of a Gauss-Legendre quadrature."""


def multistep_weights(
    coordinate: Callable[[FloatArray], FloatArray],
    nodes: Sequence[float],
    sigma_next: float,
) -> tuple[float, ...]:
    """Weights w_k such that the latents at ``sigma_next`` are ``x_0 + sum of w_k derivative_k``.

    Args:
        coordinate: the function of sigma in which the derivatives are interpolated.
        nodes: sigmas of the derivatives, newest first; the newest is where ``x_0`` was predicted.
        sigma_next: where to go.

    Returns:
        One weight per node, newest first.
    """
    weights = integral_weights(coordinate, np.array(nodes), nodes[0], sigma_next)
    # The latents at the newest sigma are x_0 + sigma (newest derivative). With that in the weight,
    # large terms do not cancel.
    weights[0] += nodes[0]
    return tuple(weights.tolist())


def integral_weights(
    coordinate: Callable[[FloatArray], FloatArray], nodes: FloatArray, start: float, end: float
) -> FloatArray:
    """The integrals of the Lagrange polynomials of ``coordinate(nodes)`` from ``start`` to ``end``.

    By quadrature with 32 points, in the logarithm of sigma unless it ends at 0. This is exact to
    rounding for the polynomials of up to four nodes.
    """
    points, point_weights = QUADRATURE
    if end > 0:
        low, high = np.log(start), np.log(end)
        sigmas = np.exp((high + low) / 2 + (high - low) / 2 * points)
        point_weights = point_weights * (high - low) / 2 * sigmas
    else:
        sigmas = (end + start) / 2 + (end - start) / 2 * points
        point_weights = point_weights * (end - start) / 2
    u, u_nodes = coordinate(sigmas), coordinate(nodes)
    weights = np.empty(len(nodes))
    for j in range(len(nodes)):
        others = np.delete(u_nodes, j)
        values = np.prod((u[:, None] - others) / (u_nodes[j] - others), axis=1)
        weights[j] = point_weights @ values
    return weights
