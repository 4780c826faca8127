"""From images as people have them to the tensors of a request, and from its result back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from sdpy.errors import UsageError
from sdpy.options import check_ranges
from sdpy.pipelines.request import STRENGTH, GenerationOptions, Request

if TYPE_CHECKING:  # at run time these would import torch or Pillow before they are needed
    from PIL.Image import Image
    from torch import Tensor

    from sdpy.images.frame import Frame
    from sdpy.pipelines.controlnet import Control
    from sdpy.pipelines.events import PipelineEvent
    from sdpy.runtime.session import Session

    ImageLike = Image | str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class ControlImage:
    """A ControlNet and the image that it is shown.

    Attributes:
        weights: the ControlNet's file.
        image: a path, or an image of any size; it is scaled and cropped to the generated one's.
        preprocessor: a name of `PREPROCESSORS`: what is made of the image first.
        scale: factor of the ControlNet's influence; 0 is none.
        start, end: shares of the steps between which it counts, in [0, 1].
        canny_low, canny_high: thresholds of Canny's edges; see `sdpy.images.preprocess.canny`.
    """

    weights: str | os.PathLike[str]
    image: ImageLike
    preprocessor: str = "none"
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    canny_low: float = 100.0
    canny_high: float = 200.0


@dataclass(frozen=True)
class ImageRequest(GenerationOptions):
    """A request with images as people have them.

    Attributes:
        prompt: what to generate.
        image: the image to change: a path or an image, RGB or of any other kind; None for none.
        mask: of the same proportions, white where the image is repainted; None for none.
        strength: see `Request`.
        controls: ControlNets and what they are shown.
        on_progress: called with each event while the images are made.
    """

    prompt: str
    image: ImageLike | None = None
    mask: ImageLike | None = None
    strength: float | None = STRENGTH
    controls: tuple[ControlImage, ...] = ()
    on_progress: Callable[[PipelineEvent], object] | None = None


@dataclass(frozen=True, eq=False)
class PreparedRequest:
    """A request, and what is to be done to its images when they are decoded.

    Attributes:
        request: with tensors.
        finish: from what the model made to the finished image: without padding, and outside of a
            mask with the pixels of the image that was given.
        size: width and height of the finished image.
    """

    request: Request
    finish: Callable[[Image], Image]
    size: tuple[int, int]


def prepare_request(session: Session, given: ImageRequest) -> PreparedRequest:
    """Read the images of a request and fit them to what the model takes.

    Raises:
        UsageError: a number out of its range, a mask without an image, or an unknown
            preprocessor.
        ImageError: an image that cannot be read, or is or becomes too small.
    """
    from sdpy.images.frame import Frame
    from sdpy.images.mask import composite, load_mask
    from sdpy.images.tensors import image_to_tensor, mask_to_tensor
    from sdpy.pipelines.task import min_side

    check_ranges(given)
    shared = {field.name: getattr(given, field.name) for field in fields(GenerationOptions)}
    variant = session.variant
    if given.image is None:
        if given.mask is not None:
            raise UsageError("a mask needs the image that it is for")
        side = variant.sample_size
        size = (given.width or side, given.height or side)
        whole = Frame.fit(size, multiple=1, min_side=1)
        controls = tuple(_fit_control(control, whole) for control in given.controls)
        request = Request(given.prompt, strength=given.strength, controls=controls, **shared)
        return PreparedRequest(request, lambda image: image, size)

    image = _as_image(given.image)
    mask = None if given.mask is None else load_mask(given.mask, image.size)
    frame = Frame.fit(
        image.size,
        multiple=variant.vae.downsample_factor,
        max_pixels=variant.max_pixels,
        min_side=min_side(variant),
        width=given.width,
        height=given.height,
    )
    controls = tuple(_fit_control(control, frame) for control in given.controls)
    original = frame.apply(image)
    white = None if mask is None else frame.apply_mask(mask)
    request = Request(
        given.prompt,
        image=image_to_tensor(original),
        mask=None if white is None else mask_to_tensor(white),
        strength=given.strength,
        controls=controls,
        **shared,
    )
    if white is None:
        return PreparedRequest(request, frame.restore, frame.content)
    repainted = white
    return PreparedRequest(
        request,
        lambda made: frame.restore(composite(original, made, repainted)),
        frame.content,
    )


def _as_image(image: ImageLike) -> Image:
    from sdpy.images.files import load_image, to_rgb

    return load_image(Path(image)) if isinstance(image, str | os.PathLike) else to_rgb(image)


def _fit_control(control: ControlImage, frame: Frame) -> Control:
    """The control with its image fitted to the generated one, as the ControlNet is shown it.

    An image of another size than the frame's source is scaled to cover it, and its centre taken.
    """
    from sdpy.images.frame import Frame
    from sdpy.images.preprocess import find_preprocessor
    from sdpy.images.tensors import image_to_tensor
    from sdpy.pipelines.controlnet import Control

    preprocess = find_preprocessor(
        control.preprocessor, low=control.canny_low, high=control.canny_high
    )
    image = _as_image(control.image)
    if image.size != frame.source:
        width, height = frame.source
        cover = Frame.fit(image.size, multiple=1, min_side=1, width=width, height=height)
        image = cover.apply(image)
    shown: Tensor = preprocess(image_to_tensor(frame.apply(image)))
    return Control(Path(control.weights), shown, control.scale, control.start, control.end)
