"""Steering the UNet by ControlNets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdpy.errors import UsageError
from sdpy.models import ControlNetModel
from sdpy.pipelines.components import Components


def within(start: float, end: float, step: int, steps: int) -> bool:
    """Whether step ``step`` (from 0) of ``steps`` begins and ends between two shares of them."""
    return step / steps >= start and (step + 1) / steps <= end


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet, what it is shown, and how much it counts.

    Attributes:
        weights: its file.
        picture: (1, 3, H, W) in [0, 1], of the painted picture's size: edges, depth, a pose, ...
        scale: factor of its influence; 0 is none.
        start: share of the steps that is over when it begins to count, in [0, 1].
        end: share of the steps that is over when it ceases to count, in [0, 1].
    """

    weights: Path
    picture: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def counts(self, step: int, steps: int) -> bool:
        """Whether it counts in step ``step`` (from 0) of ``steps``."""
        return within(self.start, self.end, step, steps)


@dataclass(frozen=True, eq=False)
class LoadedControl:
    """A control with its network; the picture is on the network's device, in its dtype."""

    control: Control
    model: ControlNetModel
    picture: Tensor

    def residuals(
        self, sample: Tensor, timestep: Tensor, context: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """What it adds to the UNet's skips and middle; see `ControlNetModel.forward`."""
        down, mid = self.model(sample, timestep, context, self.picture)
        scale = self.control.scale
        return [scale * residual for residual in down], scale * mid


def check_controls(
    components: Components, controls: Iterable[Control], *, width: int, height: int
) -> None:
    """Find out whether the controls can work, reading no weights.

    Raises:
        UsageError: a picture of another size, or a span or scale that makes no sense.
        WeightsError: a file that is broken or no ControlNet for these models.
    """
    for control in controls:
        if control.picture.shape[-2:] != (height, width):
            shown = f"{control.picture.shape[-1]}x{control.picture.shape[-2]}"
            raise UsageError(
                f"the control picture has {shown} pixels, the painted one {width}x{height}: "
                "give them the same size"
            )
        if not 0 <= control.start < control.end <= 1:
            raise UsageError(
                f"{control.weights} is to count from {control.start:g} to {control.end:g} of the "
                "steps: begin at 0 or later, end later than that and at 1 at the latest"
            )
        if not math.isfinite(control.scale):
            raise UsageError(f"{control.weights}: the scale {control.scale} is no finite number")
        components.check_controlnet(control.weights)


@contextmanager
def load_controls(
    components: Components, controls: Iterable[Control]
) -> Iterator[list[LoadedControl]]:
    """The controls with their networks, for the duration of the block."""
    with ExitStack() as stack:
        loaded = []
        for control in controls:
            model = stack.enter_context(components.controlnet(control.weights))
            picture = control.picture.to(model.device, model.dtype)
            loaded.append(LoadedControl(control, model, picture))
        yield loaded


def steer(
    controls: Sequence[LoadedControl],
    step: int,
    steps: int,
    sample: Tensor,
    timestep: Tensor,
    context: Tensor,
) -> tuple[list[Tensor] | None, Tensor | None]:
    """The sum of what all controls add in a step; None and None where none counts.

    Args:
        controls: with their networks.
        step: from 0.
        steps: that are walked.
        sample: (B, C, h, w), what the UNet sees of the latents, without what else it sees.
        timestep: scalar tensor.
        context: (k B, S, D) prompt embeddings.

    Returns:
        ``down_block_additional_residuals`` and ``mid_block_additional_residual`` of
        `UNet2DConditionModel.forward`.
    """
    all_down: list[Tensor] | None = None
    all_mid: Tensor | None = None
    for loaded in controls:
        if not loaded.control.counts(step, steps):
            continue
        down, mid = loaded.residuals(sample, timestep, context)
        if all_down is None or all_mid is None:
            all_down, all_mid = down, mid
        else:
            all_down = [a + b for a, b in zip(all_down, down, strict=True)]
            all_mid = all_mid + mid
    return all_down, all_mid
