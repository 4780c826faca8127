"""The options that steer a picture by ControlNets, and reading the pictures that they are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from sdpy.errors import UsageError

if TYPE_CHECKING:  # at run time these would import torch
    from torch import Tensor

    from sdpy.images.frame import Frame
    from sdpy.pipelines import Control

_CONTROL = "ControlNet"

Value = TypeVar("Value")


@dataclass(frozen=True)
class ControlOptions:
    """ControlNets; the k-th value of each option is for the k-th of them."""

    controlnet: Annotated[
        list[Path] | None,
        typer.Option(
            show_default="none",
            help="Weights of a ControlNet. Repeat for several; what follows may be repeated "
            "likewise, or be given once for all.",
            rich_help_panel=_CONTROL,
        ),
    ] = None
    control_image: Annotated[
        list[Path] | None,
        typer.Option(
            show_default="none",
            help="What it is shown, scaled and cropped to the picture's size.",
            rich_help_panel=_CONTROL,
        ),
    ] = None
    control_scale: Annotated[
        list[float] | None,
        typer.Option(show_default="1", help="How much it counts.", rich_help_panel=_CONTROL),
    ] = None
    control_start: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0,
            max=1.0,
            show_default="0",
            help="Share of the steps after which it begins to count.",
            rich_help_panel=_CONTROL,
        ),
    ] = None
    control_end: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0,
            max=1.0,
            show_default="1",
            help="Share of the steps after which it ceases to count.",
            rich_help_panel=_CONTROL,
        ),
    ] = None
    control_preprocessor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="none|canny",
            show_default="none",
            help="What to make of the control image first: nothing, or Canny's edges "
            "(pip install 'sdpy\\[canny]').",
            rich_help_panel=_CONTROL,
        ),
    ] = None
    canny_low: Annotated[
        float,
        typer.Option(min=0.0, help="Weaker gradients are no edges.", rich_help_panel=_CONTROL),
    ] = 100.0
    canny_high: Annotated[
        float,
        typer.Option(min=0.0, help="Stronger gradients are edges.", rich_help_panel=_CONTROL),
    ] = 200.0


def load_controls(options: ControlOptions, frame: Frame) -> list[Control]:
    """The controls that the options name, their pictures read, fitted and preprocessed.

    Args:
        options: the command's.
        frame: of the picture that is painted. A control image of another size than its source is
            scaled to cover it, and its centre is taken.

    Raises:
        UsageError: options that do not match each other, or an unknown preprocessor.
        ImageError: a control image cannot be used.
    """
    from sdpy.pipelines import Control

    weights = options.controlnet or []
    images = options.control_image or []
    if len(weights) != len(images):
        raise UsageError(
            f"--controlnet is given {len(weights)} times and --control-image {len(images)} times: "
            "give one image for each ControlNet"
        )
    count = len(weights)
    preprocessors = _preprocessors(options)
    names = _spread("--control-preprocessor", options.control_preprocessor, "none", count)
    scales = _spread("--control-scale", options.control_scale, 1.0, count)
    starts = _spread("--control-start", options.control_start, 0.0, count)
    ends = _spread("--control-end", options.control_end, 1.0, count)
    for name in names:
        if name not in preprocessors:
            raise UsageError(
                f"unknown --control-preprocessor '{name}': use one of {', '.join(preprocessors)}"
            )
    return [
        Control(
            weights=weights[k],
            picture=preprocessors[names[k]](_fitted(images[k], frame)),
            scale=scales[k],
            start=starts[k],
            end=ends[k],
        )
        for k in range(count)
    ]


def _preprocessors(options: ControlOptions) -> dict[str, Callable[[Tensor], Tensor]]:
    """From a picture (1, 3, H, W) in [-1, 1] to what a ControlNet is shown, in [0, 1]."""
    from sdpy.images.preprocess import canny

    return {
        "none": lambda picture: (picture + 1) / 2,
        "canny": lambda picture: canny(picture, options.canny_low, options.canny_high),
    }


def _spread(option: str, given: list[Value] | None, default: Value, count: int) -> list[Value]:
    """One value for each ControlNet, from none, one for all, or one for each."""
    if not given:
        return [default] * count
    if count and len(given) == 1:
        return given * count
    if len(given) != count:
        raise UsageError(
            f"{option} is given {len(given)} times for {count} ControlNets: "
            "give it once for all, or once for each"
        )
    return given


def _fitted(path: Path, frame: Frame) -> Tensor:
    from sdpy.images.files import load_image
    from sdpy.images.frame import Frame
    from sdpy.images.tensors import image_to_tensor

    image = load_image(path)
    if image.size != frame.source:
        width, height = frame.source
        cover = Frame.fit(image.size, multiple=1, min_side=1, width=width, height=height)
        image = cover.apply(image)
    return image_to_tensor(frame.apply(image))
