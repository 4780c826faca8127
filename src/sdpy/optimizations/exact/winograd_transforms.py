"""The transforms of Winograd's minimal filtering: of weights, tiles of inputs, and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Terms = tuple[tuple[float, int], ...]
"""A sum of tensors: the factor of each, and which it is. The first one's factor is 1."""


@dataclass(frozen=True)
class SumAndDifference:
    """Two results that have their terms in common, those of the second with other signs.

    Attributes:
        places: of the results ``first + factor second`` and ``first - factor second``; a single
            one has no ``second``.
    """

    places: tuple[int, ...]
    first: Terms
    factor: float = 0.0
    second: Terms = ()


Sums = tuple[SumAndDifference, ...]
"""What a transform is of sums."""


@dataclass(frozen=True, eq=False, repr=False)
class Transforms:
    """The transforms of F(m x m, 3 x 3); some are for both axes at once, Kronecker products.

    A convolution of a map that was doubled by repeating its pixels is four of the map itself, one
    for the results of even or odd row and column each. Two of a kernel's three rows fall on the
    same row then, so these kernels are 2x2, and F(m x m, 2 x 2) serves: they share tiles of input
    that are as large, and multiply at (m + 1)^2 points each.

    Attributes:
        m: side of a tile of results; it is computed from m + 2 by m + 2 inputs.
        scale: 2 if the input is to be doubled, else 1. There are scale^2 tiles of results.
        side: n, of which a tile of results has n^2 points.
        weight: G x G, (points, 9).
        input: B^T for each row (or column) of tiles of results, as sums of m + 2 inputs. It is
            applied to one axis after the other, which takes less.
        output: A^T x A^T, (m^2, n^2).
    """

    m: int
    scale: int
    side: int
    weight: Tensor
    input: tuple[Sums, ...]
    output: Tensor

    @classmethod
    def at(cls, *points: float) -> Transforms:
        """Those of interpolation at these m + 1 points and at infinity."""
        weight, input, output = _toom_cook(points, 3)
        return cls(
            m=len(output),
            scale=1,
            side=len(input),
            weight=_float(np.kron(weight, weight)),
            input=(_as_sums(input),),
            output=_float(np.kron(output, output)),
        )

    @classmethod
    def doubling_at(cls, *points: float) -> Transforms:
        """Those for inputs to be doubled, of interpolation at these m points and at infinity."""
        weight, input, output = _toom_cook(points, 2)
        # The rows of a kernel that fall on the first and on the second row of two.
        falls = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
        weights = [np.kron(weight @ rows, weight @ columns) for rows in falls for columns in falls]
        return cls(
            m=len(output),
            scale=2,
            side=len(input),
            weight=_float(np.concatenate(weights)),
            input=tuple(_as_sums(np.pad(input, ((0, 0), (i, 1 - i)))) for i in range(2)),
            output=_float(np.kron(output, output)),
        )

    @property
    def points(self) -> int:
        """Matrix products a tile of inputs takes part in, one a point of each tile of results."""
        return len(self.weight)

    def transform_input(self, pixels: Tensor) -> Tensor:
        """``B^T d B`` of tiles that overlap by two rows and columns.

        Args:
            pixels: (b, r m + 2, c m + 2, C).

        Returns:
            (points, b r c, C).
        """
        m, scale, n = self.m, self.scale, self.side
        b, height, width, C = pixels.shape
        r, c = (height - 2) // m, (width - 2) // m
        result = pixels.new_empty(scale, scale, n, n, b, r, c, C)
        rows = pixels.new_empty(n, b, r, width, C)
        memory = pixels.new_empty(max(rows[0].numel(), result[0, 0, 0].numel()))
        inputs = [pixels[:, i : i + m * (r - 1) + 1 : m] for i in range(m + 2)]
        for some, sums in zip(result, self.input, strict=True):
            _add_up(sums, inputs, rows.unbind(), memory)
            columns = [rows[:, :, :, i : i + m * (c - 1) + 1 : m] for i in range(m + 2)]
            for places, other in zip(some, self.input, strict=True):
                _add_up(other, columns, places.unbind(1), memory)
        return result.view(self.points, b * r * c, C)

    def transform_output(self, products: Tensor) -> Tensor:
        """(points, N) -> (scale, scale, m, m, N): which of the tiles of results, where in it."""
        scale, m = self.scale, self.m
        products = products.view(scale**2, -1, products.shape[-1])
        results = torch.bmm(self.output.expand(scale**2, -1, -1), products)
        return results.view(scale, scale, m, m, -1)


def _add_up(sums: Sums, inputs: Sequence[Tensor], places: Sequence[Tensor], memory: Tensor) -> None:
    """Write what the sums make of the inputs into places, which do not overlap with these.

    Additions pass through memory more often than a matrix product with the transform would. But
    each is a single pass over numbers that lie together, and a product of six rows is none of those
    that libraries are fast at.
    """
    for one in sums:
        place = places[one.places[-1]]
        first = _sum(one.first, inputs, place)
        if not one.second:
            if first is not place:
                place.copy_(first)
            continue
        second = _sum(one.second, inputs, memory[: place.numel()].view(place.shape))
        torch.add(first, second, alpha=one.factor, out=places[one.places[0]])
        torch.sub(first, second, alpha=one.factor, out=place)


def _sum(terms: Terms, inputs: Sequence[Tensor], place: Tensor) -> Tensor:
    """The sum in ``place``; of a single term, itself."""
    (_, first), *others = terms
    if not others:
        return inputs[first]
    (factor, second), *others = others
    torch.add(inputs[first], inputs[second], alpha=factor, out=place)
    for factor, other in others:
        place.add_(inputs[other], alpha=factor)
    return place


def _as_sums(matrix: np.ndarray) -> Sums:
    """The products of a matrix's rows as sums, of which two points of opposite sign share terms."""
    sums: list[SumAndDifference] = []
    i = 0
    while i < len(matrix):
        if i + 1 < len(matrix):
            even, odd = matrix[i] + matrix[i + 1], matrix[i] - matrix[i + 1]
            if even.any() and odd.any() and not (even * odd).any():
                first, second = _terms(even / 2), odd / 2
                factor = second[np.flatnonzero(second)[-1]]
                sums.append(SumAndDifference((i, i + 1), first, factor, _terms(second / factor)))
                i += 2
                continue
        sums.append(SumAndDifference((i,), _terms(matrix[i])))
        i += 1
    return tuple(sums)


def _terms(row: np.ndarray) -> Terms:
    """The numbers of a row that are not 0, from the last one on."""
    terms = tuple((float(row[j]), int(j)) for j in np.flatnonzero(row)[::-1])
    assert terms[0][0] == 1, "polynomials of interpolation begin with 1"
    return terms


def _toom_cook(points: Sequence[float], taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """G, B^T and A^T of Toom and Cook's interpolation at these points and at infinity.

    Two polynomials, the weights and the gradient of the results, are multiplied by their values at
    the points; that is transposed to a convolution.
    """
    n = len(points) + 1
    m = n - taps + 1
    weight, input, output = np.zeros((n, taps)), np.zeros((n, n)), np.zeros((m, n))
    for i, point in enumerate(points):
        others = np.poly([*points[:i], *points[i + 1 :]])  # (x - p)(x - q)..., highest first
        weight[i] = point ** np.arange(float(taps)) / np.polyval(others, point)
        input[i, :-1] = others[::-1]
        output[:, i] = point ** np.arange(float(m))
    weight[-1, -1] = output[-1, -1] = 1
    input[-1] = np.poly(points)[::-1]
    return weight, input, output


def _float(matrix: np.ndarray) -> Tensor:
    return torch.from_numpy(matrix).float()


# Tiles of six, at two points more, gained 2 % of a decoding and doubled the rounding errors.
TRANSFORMS = {2: Transforms.at(0, 1, -1), 4: Transforms.at(0, 1, -1, 2, -2)}
DOUBLING = Transforms.doubling_at(0, 1, -1, 2)
