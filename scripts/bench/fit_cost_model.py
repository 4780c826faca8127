"""Fit the constants of the cost model of convolutions to this machine.

Single layers of Stable Diffusion 1.5's sizes are timed in each of their forms. The model's costs
are linear in its constants, so these are least-squares solutions, relative errors counting alike.
They are printed as Python, to be put into ``src/sdpy/optimizations/exact/cost_model.py``:

    python -m scripts.bench.fit_cost_model [--repeats 5] [--quick]

Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from sdpy.optimizations.exact import bfloat16_pairs, cost_model
from sdpy.optimizations.exact.adaptive import DirectConv2d
from sdpy.optimizations.exact.bfloat16_pairs import PairedConv2d
from sdpy.optimizations.exact.convolutions import Convolution
from sdpy.optimizations.exact.matmul_conv import MatmulConv2d
from sdpy.optimizations.exact.winograd import Keep, WinogradConv2d
from sdpy.optimizations.exact.winograd_transforms import TRANSFORMS

LAYERS: tuple[tuple[int, int, int, int], ...] = (
    (320, 320, 3, 64),
    (640, 320, 3, 64),
    (960, 320, 3, 64),
    (640, 640, 3, 32),
    (1280, 640, 3, 32),
    (1920, 640, 3, 32),
    (1280, 1280, 3, 16),
    (2560, 1280, 3, 16),
    (1280, 1280, 3, 8),
    (2560, 1280, 3, 8),
    (640, 320, 1, 64),
    (1280, 640, 1, 32),
    (2560, 1280, 1, 16),
    (2560, 1280, 1, 8),
)
"""Channels of input and result, kernel, and side of the map, as a UNet has them at 512x512."""

QUICK = LAYERS[::3]
"""The layers that are timed with ``--quick``."""

BATCH = 2
"""Samples in a batch, as there are with guidance."""

ROWS = (16, 32, 64, 128, 2048)
"""Rows of the left matrix at which products are timed."""

Cost = Callable[[Convolution], float]


@dataclass
class Fit:
    """Timings, and the constants that were found from them so far.

    Attributes:
        repeats: how often each layer is timed; the median counts.
        rate: multiplications and additions a second of a large matrix product.
        constants: found so far, by name.
    """

    repeats: int
    rate: float = 0.0
    constants: dict[str, float] = field(default_factory=dict)

    def seconds(self, work: Callable[[], object]) -> float:
        """The median of some runs, after one that does not count."""
        work()
        times = []
        for _ in range(self.repeats):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def products(self) -> None:
        """The rate of a large product, and at how many rows half of it is reached."""
        inner, outer = 2560, 1280
        right = torch.randn(inner, outer)
        costs: dict[int, float] = {}
        for rows in ROWS:
            left = torch.randn(rows, inner)
            costs[rows] = self.seconds(partial(torch.mm, left, right)) / (
                2.0 * rows * inner * outer
            )
        self.rate = 1 / costs[ROWS[-1]]
        # The cost of a number is (1 + half / rows) / rate.
        shares = [(1 / rows, costs[rows] * self.rate - 1) for rows in ROWS[:-1]]
        half = sum(x * y for x, y in shares) / sum(x * x for x, _ in shares)
        self.constants["HALF_RATE_ROWS"] = max(half, 0.0)

    def add(
        self,
        names: Sequence[str],
        samples: Sequence[tuple[Convolution, Cost, nn.Module]],
        told: str,
    ) -> None:
        """Find constants from the time that layers take.

        Args:
            names: of the constants to find; those found before stay.
            samples: convolutions, their cost by the model, and the form to time.
            told: what is timed, for people.
        """
        rows, targets = [], []
        for convolution, cost, form in samples:
            x = torch.randn(convolution.input_shape).to(memory_format=torch.channels_last)
            measured = self.seconds(partial(form, x)) * self.rate
            with constants(self.constants | dict.fromkeys(names, 0.0)):
                base = cost(convolution)
            features = []
            for name in names:
                with constants(self.constants | dict.fromkeys(names, 0.0) | {name: 1.0}):
                    features.append((cost(convolution) - base) / measured)
            rows.append(features)
            targets.append((measured - base) / measured)
        found = non_negative_solution(
            torch.tensor(rows, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)
        )
        self.constants |= dict(zip(names, found.tolist(), strict=True))
        errors = torch.tensor(rows, dtype=torch.float64) @ found - torch.tensor(targets)
        print(
            f"{told}: off by {errors.square().mean().sqrt():.0%} of a layer's time", file=sys.stderr
        )


def non_negative_solution(rows: Tensor, targets: Tensor) -> Tensor:
    """Least squares without negative constants: those that come out so are 0."""
    free = list(range(rows.shape[1]))
    found = torch.zeros(rows.shape[1], dtype=rows.dtype)
    while free:
        # Columns of one size each, as the constants are of very different ones.
        scale = rows[:, free].norm(dim=0).clamp(min=1e-300)
        solution = (
            torch.linalg.lstsq(rows[:, free] / scale, targets[:, None]).solution[:, 0] / scale
        )
        if (solution >= 0).all():
            found[free] = solution
            break
        free.remove(free[int((solution * scale).argmin())])
    return found


@contextmanager
def constants(values: dict[str, float]) -> Iterator[None]:
    """The cost model with other constants for the duration of the block."""
    before = {name: getattr(cost_model, name) for name in values}
    for name, value in values.items():
        setattr(cost_model, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(cost_model, name, value)


def make_layers(sizes: Sequence[tuple[int, int, int, int]]) -> list[Convolution]:
    """Convolutions with random weights, and what they are given."""
    return [
        Convolution(
            f"{inner}->{outer}, {kernel}x{kernel}, {side}",
            nn.Conv2d(inner, outer, kernel, padding=kernel // 2),
            torch.Size((BATCH, inner, side, side)),
        )
        for inner, outer, kernel, side in sizes
    ]


@torch.inference_mode()
def fit(sizes: Sequence[tuple[int, int, int, int]], repeats: int) -> Fit:
    """Time the layers, and find the constants one after another."""
    found, layers = Fit(repeats), make_layers(sizes)
    large = [layer for layer in layers if layer.kernel == 3]

    def winograd(keep: Keep) -> list[tuple[Convolution, Cost, nn.Module]]:
        return [
            (
                layer,
                partial(cost_model.winograd_cost, transforms=transforms, keep=keep),
                WinogradConv2d(layer.module, transforms, keep),
            )
            for layer in large
            for transforms in TRANSFORMS.values()
        ]

    found.products()
    found.add(
        ["DIRECT_WEIGHT_BYTE"],
        [(layer, cost_model.direct_cost, DirectConv2d(layer.module)) for layer in layers],
        "torch's own convolution",
    )
    found.add(
        ["CACHE_BYTE", "CALL"],
        [(layer, cost_model.matmul_cost, MatmulConv2d(layer.module)) for layer in layers],
        "one matrix product",
    )
    if (gain := bfloat16_pairs.gain()) > 0:
        found.add(
            ["PAIRED_BYTE"],
            [
                (layer, partial(cost_model.paired_cost, gain=gain), PairedConv2d(layer.module))
                for layer in layers
            ],
            "one product of bfloat16 pairs",
        )
    found.add(
        ["TRANSFORMED_PRODUCT", "TRANSFORMED_BYTE", "TILE_BYTE"],
        winograd(Keep.TRANSFORMED),
        "Winograd with transformed weights",
    )
    found.add(
        ["PIECEWISE", "PIECEWISE_PRODUCT", "TRANSFORMING_BYTE"],
        winograd(Keep.ORDERED),
        "Winograd with weights in order",
    )
    found.add(["ORDERING_BYTE"], winograd(Keep.ORIGINAL), "Winograd with the weights as they are")
    return found


def main() -> None:
    """Print the constants."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="timings of each layer")
    parser.add_argument("--quick", action="store_true", help="time a third of the layers")
    options = parser.parse_args()
    found = fit(QUICK if options.quick else LAYERS, options.repeats)
    print(f"# {torch.get_num_threads()} threads, {found.rate / 1e9:.0f}e9 operations a second")
    for name in cost_model.CONSTANTS:
        if name in found.constants:
            print(f"{name} = {found.constants[name]:.3g}")
        else:
            print(f"{name} = {getattr(cost_model, name):.3g}  # not measured: not fast here")


if __name__ == "__main__":
    main()
