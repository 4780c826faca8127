"""The options that steer an image by ControlNets and T2I-Adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sdpy.errors import UsageError
from sdpy.options import option
from sdpy.pipelines.inputs import ControlImage

_CONTROL = "ControlNet"

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class ControlOptions:
    """ControlNets and T2I-Adapters; the k-th value of each option is for the k-th of them."""

    controlnet: list[Path] | None = option(
        None,
        "--controlnet",
        cli_type=list[Path],
        shown_default="none",
        help="Weights of a ControlNet or T2I-Adapter. Repeat for several; what follows may be "
        "repeated likewise, or be given once for all.",
        panel=_CONTROL,
    )
    control_image: list[Path] | None = option(
        None,
        "--control-image",
        cli_type=list[Path],
        shown_default="none",
        help="The image that it is shown, scaled and cropped to the generated one's size.",
        panel=_CONTROL,
    )
    control_scale: list[float] | None = option(
        None,
        "--control-scale",
        cli_type=list[float],
        shown_default="1",
        help="How much it counts.",
        panel=_CONTROL,
    )
    control_start: list[float] | None = option(
        None,
        "--control-start",
        cli_type=list[float],
        minimum=0.0,
        maximum=1.0,
        shown_default="0",
        help="Share of the steps after which it begins to count.",
        panel=_CONTROL,
    )
    control_end: list[float] | None = option(
        None,
        "--control-end",
        cli_type=list[float],
        minimum=0.0,
        maximum=1.0,
        shown_default="1",
        help="Share of the steps after which it ceases to count.",
        panel=_CONTROL,
    )
    control_preprocessor: list[str] | None = option(
        None,
        "--control-preprocessor",
        cli_type=list[str],
        metavar="none|canny",
        shown_default="none",
        help="What to make of the control image first: nothing, or Canny's edges "
        "(pip install 'sdpy\\[canny]').",
        panel=_CONTROL,
    )
    control_type: list[str] | None = option(
        None,
        "--control-type",
        cli_type=list[str],
        metavar="openpose|depth|hed|canny|normal|segment|tile|repaint",
        shown_default="what the preprocessor makes",
        help="Of what kind the control image is, which ControlNet-Union has to be told.",
        panel=_CONTROL,
    )
    canny_low: float = option(
        100.0, "--canny-low", minimum=0.0, help="Weaker gradients are no edges.", panel=_CONTROL
    )
    canny_high: float = option(
        200.0, "--canny-high", minimum=0.0, help="Stronger gradients are edges.", panel=_CONTROL
    )


def control_images(options: ControlOptions) -> tuple[ControlImage, ...]:
    """The ControlNets and T2I-Adapters that the options name, and what they are shown.

    Raises:
        UsageError: options that do not match each other.
    """
    weights = options.controlnet or []
    images = options.control_image or []
    if len(weights) == 1 and len(images) > 1:
        weights = weights * len(images)
    if len(weights) != len(images):
        raise UsageError(
            f"--controlnet is given {len(weights)} times and --control-image {len(images)} times: "
            "give one image for each ControlNet, or several images for one"
        )
    count = len(weights)
    names = _spread("--control-preprocessor", options.control_preprocessor, "none", count)
    scales = _spread("--control-scale", options.control_scale, 1.0, count)
    starts = _spread("--control-start", options.control_start, 0.0, count)
    ends = _spread("--control-end", options.control_end, 1.0, count)
    types = _spread("--control-type", options.control_type, "none", count)
    given = options.control_type is not None
    return tuple(
        ControlImage(
            weights[k],
            images[k],
            names[k],
            scales[k],
            starts[k],
            ends[k],
            options.canny_low,
            options.canny_high,
            types[k] if given else None,
        )
        for k in range(count)
    )


def _spread(option: str, given: list[Value] | None, default: Value, count: int) -> list[Value]:
    """One value for each ControlNet, from none, one for all, or one for each."""
    if not given:
        return [default] * count
    if not count:
        raise UsageError(f"{option} is for ControlNets: name one with --controlnet or leave it out")
    if len(given) == 1:
        return given * count
    if len(given) != count:
        raise UsageError(
            f"{option} is given {len(given)} times for {count} ControlNets: "
            "give it once for all, or once for each"
        )
    return given
