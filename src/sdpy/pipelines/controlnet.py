"""ControlNets: images that steer the UNet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdpy.errors import UsageError
from sdpy.models import ControlNetModel
from sdpy.models.rows import repeat_rows
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.session import Session
from sdpy.text.conditioning import Conditioning


def is_within(start: float, end: float, step: int, steps: int) -> bool:
    """Whether step ``step`` (from 0) of ``steps`` begins and ends between two shares of them."""
    return step / steps >= start and (step + 1) / steps <= end


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet, what it is shown, and how much it counts.

    Attributes:
        weights: its file.
        image: (1, 3, H, W) in [0, 1], of the generated image's size: edges, depth, a pose, ...
        scale: factor of its influence; 0 is none.
        start: share of the steps that is done when it begins to count, in [0, 1].
        end: share of the steps that is done when it ceases to count, in [0, 1].
    """

    weights: Path
    image: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @property
    def network(self) -> tuple[Path, float, float, float]:
        """All but the image: what the controls of a batch have to have in common."""
        return (self.weights, self.scale, self.start, self.end)

    def counts(self, step: int, steps: int) -> bool:
        """Whether it counts in step ``step`` (from 0) of ``steps``."""
        return is_within(self.start, self.end, step, steps)


@dataclass(frozen=True, eq=False)
class LoadedControl:
    """A control of a batch with its network.

    Attributes:
        control: its scale and span; of its images, `images` has those of the whole batch.
        model: the network.
        images: (B, 3, H, W) in [0, 1] on the network's device, in its dtype; (1, 3, H, W) where
            all images of the batch are steered by the same.
    """

    control: Control
    model: ControlNetModel
    images: Tensor

    def residuals(
        self, sample: Tensor, timestep: Tensor, conditioning: Conditioning
    ) -> tuple[list[Tensor], Tensor]:
        """What it adds to the UNet's skips and middle; see `ControlNetModel.forward`."""
        down, mid = self.model(
            sample, timestep, controlnet_cond=self.images, **conditioning.inputs()
        )
        scale: float | Tensor = self.control.scale
        rows, images = len(conditioning), len(sample)
        if self.model.config.global_pool_conditions and rows > images:
            # Such a network was trained to steer the prompts alone, not the negative ones, which
            # come first.
            steered = torch.ones(rows, 1, 1, 1, device=sample.device, dtype=mid.dtype)
            steered[:images] = 0
            scale = scale * steered
        return [scale * repeat_rows(one, rows) for one in down], scale * repeat_rows(mid, rows)


def check_controls(
    session: Session, controls: Iterable[Control], *, width: int, height: int
) -> None:
    """Find out whether the controls can work, reading no weights.

    Raises:
        UsageError: an image of another size, or a span or scale that makes no sense.
        WeightsError: a file that is broken or no ControlNet for these models.
    """
    for control in controls:
        if control.image.shape[-2:] != (height, width):
            shown = f"{control.image.shape[-1]}x{control.image.shape[-2]}"
            raise UsageError(
                f"the control image has {shown} pixels, the generated one {width}x{height}: "
                "give them the same size"
            )
        if not 0 <= control.start < control.end <= 1:
            raise UsageError(
                f"{control.weights} is to count from {control.start:g} to {control.end:g} of the "
                "steps: begin at 0 or later, end later than that and at 1 at the latest"
            )
        if not math.isfinite(control.scale):
            raise UsageError(f"{control.weights}: the scale {control.scale} is no finite number")
        session.check_controlnet(control.weights)


@contextmanager
def loaded_controls(
    models: RequestModels, batch: Sequence[tuple[Control, ...]]
) -> Iterator[list[LoadedControl]]:
    """The controls of a batch with their networks, for the duration of the block.

    Args:
        models: that load them.
        batch: the controls of each image; they differ in nothing but what is shown.
    """
    with ExitStack() as stack:
        loaded = []
        for same in zip(*batch, strict=True):
            model = stack.enter_context(models.controlnet(same[0].weights))
            shown = [same[0].image]
            if any(control.image is not same[0].image for control in same):
                shown = [control.image for control in same]
            images = torch.cat(shown).to(model.device, model.dtype)
            loaded.append(LoadedControl(same[0], model, images))
        yield loaded


def control_residuals(
    controls: Sequence[LoadedControl],
    step: int,
    steps: int,
    sample: Tensor,
    timestep: Tensor,
    conditioning: Conditioning,
) -> dict[str, list[Tensor] | Tensor]:
    """The sum of what all controls add in a step.

    Args:
        controls: with their networks.
        step: from 0.
        steps: how many there are.
        sample: (B, C, h, w), what the UNet sees of the latents, without what else it sees.
        timestep: scalar tensor.
        conditioning: of k B rows.

    Returns:
        The residuals by the names of `UNet2DConditionModel.forward`; empty where none counts.
    """
    all_down: list[Tensor] = []
    all_mid: Tensor | None = None
    for loaded in controls:
        if not loaded.control.counts(step, steps):
            continue
        down, mid = loaded.residuals(sample, timestep, conditioning)
        all_down = [a + b for a, b in zip(all_down, down, strict=True)] if all_down else down
        all_mid = mid if all_mid is None else all_mid + mid
    if all_mid is None:
        return {}
    return {
        "down_block_additional_residuals": all_down,
        "mid_block_additional_residual": all_mid,
    }
