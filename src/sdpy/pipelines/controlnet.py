"""Controls: images that steer the UNet, by means of ControlNets and T2I-Adapters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdpy.errors import UsageError
from sdpy.models import ControlNetModel, ControlNetUnionModel
from sdpy.models.rows import add_rows, repeat_rows
from sdpy.pipelines.control_types import known_types, number_of
from sdpy.runtime.fallbacks import attempt, finish
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.session import Session
from sdpy.text.conditioning import Conditioning

COLOURS = 0.1
"""Channels of a grey image differ by less than this even after lossy compression, of 1."""


def is_within(start: float, end: float, step: int, steps: int) -> bool:
    """Whether step ``step`` (from 0) of ``steps`` begins and ends between two shares of them."""
    return step / steps >= start and (step + 1) / steps <= end


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet or T2I-Adapter, what it is shown, and how much it counts.

    Attributes:
        weights: its file, which says what it is.
        image: (1, 3, H, W) in [0, 1], of the generated image's size: edges, depth, a pose, ...
        scale: factor of its influence; 0 is none.
        start: share of the steps that is done when it begins to count, in [0, 1].
        end: share of the steps that is done when it ceases to count, in [0, 1].
        control_type: of what kind the image is, a name of `CONTROL_TYPES`, for a ControlNet-Union.
        is_type_guessed: whether that was not given, so that it says nothing to other networks.
    """

    weights: Path
    image: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    control_type: str | None = None
    is_type_guessed: bool = False

    @property
    def network(self) -> tuple[Path, float, float, float, str | None]:
        """All but the image: what the controls of a batch have to have in common."""
        return (self.weights, self.scale, self.start, self.end, self.control_type)

    def counts(self, step: int, steps: int) -> bool:
        """Whether it counts in step ``step`` (from 0) of ``steps``."""
        return is_within(self.start, self.end, step, steps)


Residuals = dict[str, list[Tensor]]
"""What is added to the UNet, by the names of `UNet2DConditionModel.forward`."""

DOWN, MIDDLE = "down_block_additional_residuals", "mid_block_additional_residual"
INTRABLOCK = "down_intrablock_additional_residuals"


@dataclass(frozen=True, eq=False)
class LoadedControlNet:
    """A control of a batch with its ControlNet.

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
        self, step: int, steps: int, sample: Tensor, timestep: Tensor, conditioning: Conditioning
    ) -> Residuals:
        """What it adds to the UNet's skips and middle; see `ControlNetModel.forward`."""
        if not self.control.counts(step, steps):
            return {}
        down, mid = self.model(
            sample, timestep, controlnet_cond=self.images, **conditioning.inputs()
        )
        pools = self.model.config.global_pool_conditions
        return _of_all_rows(down, mid, self.control.scale, len(sample), len(conditioning), pools)


@dataclass(frozen=True, eq=False)
class LoadedUnion:
    """The controls of a batch that are shown to the same ControlNet-Union, with that network.

    Attributes:
        controls: scales, spans and types; of their images, `images` has those of the whole batch.
        model: the network.
        images: of each control, as those of a `LoadedControlNet`.
    """

    controls: tuple[Control, ...]
    model: ControlNetUnionModel
    images: tuple[Tensor, ...]

    def residuals(
        self, step: int, steps: int, sample: Tensor, timestep: Tensor, conditioning: Conditioning
    ) -> Residuals:
        """What it adds to the UNet's skips and middle; see `ControlNetUnionModel.forward`.

        As in diffusers, it is shown an image that does not count at present with a scale of 0.
        """
        counts = [control.counts(step, steps) for control in self.controls]
        if not any(counts):
            return {}
        down, mid = self.model(
            sample,
            timestep,
            images=self.images,
            control_types=[number_of(str(control.control_type)) for control in self.controls],
            scales=[
                control.scale if counts_now else 0.0
                for control, counts_now in zip(self.controls, counts, strict=True)
            ],
            **conditioning.inputs(),
        )
        pools = self.model.config.global_pool_conditions
        return _of_all_rows(down, mid, 1.0, len(sample), len(conditioning), pools)


def _of_all_rows(
    down: Sequence[Tensor], mid: Tensor, scale: float, images: int, rows: int, pools: bool
) -> Residuals:
    """What a ControlNet gave for some images, for all rows of the UNet, by a scale.

    One that pools was trained to steer the prompts alone, not the negative ones, which come first.
    """
    by: float | Tensor = scale
    if pools and rows > images:
        steered = torch.ones(rows, 1, 1, 1, device=mid.device, dtype=mid.dtype)
        steered[:images] = 0
        by = scale * steered
    return {
        DOWN: [by * repeat_rows(one, rows) for one in down],
        MIDDLE: [by * repeat_rows(mid, rows)],
    }


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """A control of a batch with what its T2I-Adapter made of the images, which is all it does.

    Attributes:
        control: its span.
        features: what it adds to the UNet on its way down, with B rows, or one for all.
    """

    control: Control
    features: list[Tensor]

    def residuals(
        self, step: int, steps: int, sample: Tensor, timestep: Tensor, conditioning: Conditioning
    ) -> Residuals:
        """The features, whatever the UNet sees."""
        del sample, timestep, conditioning
        return {INTRABLOCK: self.features} if self.control.counts(step, steps) else {}


LoadedControl = LoadedControlNet | LoadedUnion | LoadedAdapter


def check_controls(
    session: Session, controls: Iterable[Control], *, width: int, height: int
) -> None:
    """Find out whether the controls can work, reading no weights.

    Raises:
        UsageError: an image of another size, or a span or scale that makes no sense.
        WeightsError: a file that is broken, or no ControlNet or T2I-Adapter for these models.
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
        session.headers.check_companion(control.weights)
        _check_type(session, control)


def control_type_count(session: Session, weights: Path) -> int:
    """How many control types a network knows: none but a ControlNet-Union knows any."""
    config = session.headers.config(session.source.companion(weights), weights)
    return getattr(config, "num_control_type", 0)


def _check_type(session: Session, control: Control) -> None:
    count, given = control_type_count(session, control.weights), control.control_type
    if not count:
        if given is not None and not control.is_type_guessed:
            raise UsageError(
                f"{control.weights} is no ControlNet-Union, and knows no control types: leave "
                "--control-type out, or give none for it"
            )
    elif given is None:
        raise UsageError(
            f"{control.weights} is a ControlNet-Union: say by --control-type of what kind its "
            f"control image is, {known_types(count)}"
        )
    elif number_of(given) >= count:
        raise UsageError(
            f"{control.weights} does not know the control type {given}: use {known_types(count)}"
        )


def describe_controls(session: Session, controls: Iterable[Control]) -> Iterator[str]:
    """What is to be said of what the controls are shown."""
    for control in controls:
        if control.is_type_guessed and control_type_count(session, control.weights):
            yield (
                f"{control.weights} is told of the control type {control.control_type}, as the "
                "preprocessor makes it; --control-type says otherwise"
            )
        component = session.source.companion(control.weights)
        channels = getattr(session.headers.config(component, control.weights), "in_channels", 3)
        if channels == 1 and _has_colours(control.image):
            yield (
                f"{control.weights} is shown grey images: only the brightness of its control image "
                "counts, and its colours are lost"
            )


def _has_colours(image: Tensor) -> bool:
    """Whether an image (1, 3, H, W) in [0, 1] has more of them than a lossy file of a grey one."""
    return bool((image.amax(dim=1) - image.amin(dim=1)).max() > COLOURS)


def to_grey(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), the luma of ITU-R BT.601, as Pillow's mode "L" has it."""
    weights = torch.tensor([0.299, 0.587, 0.114]).to(image)
    return (image * weights[:, None, None]).sum(dim=1, keepdim=True)


@contextmanager
def loaded_controls(
    models: RequestModels, batch: Sequence[tuple[Control, ...]]
) -> Iterator[list[LoadedControl]]:
    """The controls of a batch with their networks, for the duration of the block.

    T2I-Adapters have done their work when the block begins.

    Args:
        models: that load them.
        batch: the controls of each image; they differ in nothing but what is shown.

    Raises:
        ShortageError: there is not enough memory for an adapter.
    """
    device = models.placement["unet"]
    dtype = models.execution_of("unet").dtype_on(device)
    with ExitStack() as stack:
        loaded: list[LoadedControl] = []
        unions: dict[Path, list[tuple[Control, Tensor]]] = {}
        for same in zip(*batch, strict=True):
            weights, shown = same[0].weights, [same[0].image]
            if any(control.image is not same[0].image for control in same):
                shown = [control.image for control in same]
            images = torch.cat(shown).to(device, dtype)
            if models.session.source.companion(weights) == "t2i_adapter":
                features = _adapter_features(models, same[0], images)
                loaded.append(LoadedAdapter(same[0], features))
            elif control_type_count(models.session, weights):
                unions.setdefault(weights, []).append((same[0], images))
            else:
                model = stack.enter_context(models.controlnet(weights))
                assert isinstance(model, ControlNetModel)
                loaded.append(LoadedControlNet(same[0], model, images))
        for weights, together in unions.items():
            union = stack.enter_context(models.controlnet(weights))
            assert isinstance(union, ControlNetUnionModel)
            controls, shown_together = zip(*together, strict=True)
            loaded.append(LoadedUnion(controls, union, shown_together))
        yield loaded


def _adapter_features(models: RequestModels, control: Control, images: Tensor) -> list[Tensor]:
    """What a T2I-Adapter makes of images (B, 3, H, W), by its scale."""
    with models.t2i_adapter(control.weights) as adapter, torch.inference_mode():
        shown = to_grey(images) if adapter.config.in_channels == 1 else images
        features = finish(attempt(lambda: adapter(shown), [], "the T2I-Adapter"))
        return [control.scale * feature for feature in features]


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
    total: Residuals = {}
    for loaded in controls:
        residuals = loaded.residuals(step, steps, sample, timestep, conditioning)
        for name, added in residuals.items():
            before = total.get(name)
            if before is not None:
                added = [add_rows(a, b) for a, b in zip(before, added, strict=True)]
            total[name] = added
    return {name: one[0] if name == MIDDLE else one for name, one in total.items()}
