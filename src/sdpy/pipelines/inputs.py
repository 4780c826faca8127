"""From images as people have them to the tensors of a request, and from its result back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sdpy.errors import UsageError
from sdpy.options import check_ranges, path_of
from sdpy.pipelines.control_types import OF_PREPROCESSORS, read_control_type
from sdpy.pipelines.request import (
    STRENGTH,
    GenerationOptions,
    MaskOptions,
    Request,
)

if TYPE_CHECKING:  # at run time these would import torch or Pillow before they are needed
    from PIL.Image import Image
    from torch import Tensor

    from sdpy.images.mask import Mask
    from sdpy.images.reading import InputImage
    from sdpy.pipelines.controlnet import Control
    from sdpy.pipelines.events import PipelineEvent
    from sdpy.runtime.session import Session

    ImageLike = Image | str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class ControlImage:
    """A ControlNet or T2I-Adapter, and the image that it is shown.

    Attributes:
        weights: its file.
        image: a path, or an image of any size; it is scaled and cropped to the generated one's.
        preprocessor: a name of `PREPROCESSORS`: what is made of the image first.
        scale: factor of its influence; 0 is none.
        start, end: shares of the steps between which it counts, in [0, 1].
        canny_low, canny_high: thresholds of Canny's edges; see `sdpy.images.preprocess.canny`.
        control_type: of what kind the image is, for a ControlNet-Union: a name of `CONTROL_TYPES`,
            or another that they have there, or "none"; None for what the preprocessor makes.
    """

    weights: str | os.PathLike[str]
    image: ImageLike
    preprocessor: str = "none"
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    canny_low: float = 100.0
    canny_high: float = 200.0
    control_type: str | None = None

    @property
    def known_type(self) -> str | None:
        """The control type, by its name in `CONTROL_TYPES`; None where nothing tells it.

        Raises:
            UsageError: there is no such.
        """
        if self.control_type is None:
            return OF_PREPROCESSORS.get(self.preprocessor)
        return read_control_type(self.control_type)


@dataclass(frozen=True)
class ImageRequest(GenerationOptions, MaskOptions):
    """A request with images as people have them.

    Attributes:
        prompt: what to generate.
        image: the image to change: a path or an image, RGB or of any other kind; None for none.
        mask: of the same proportions, white where the image is repainted; None for none.
        strength: see `Request`.
        controls: ControlNets and T2I-Adapters, and what they are shown.
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
        notices: what is to be said of how the images were read.
    """

    request: Request
    finish: Callable[[Image], Image]
    size: tuple[int, int]
    notices: tuple[str, ...] = ()


def prepare_request(session: Session, given: ImageRequest) -> PreparedRequest:
    """Read the images of a request and fit them to what the model takes.

    Raises:
        UsageError: a number out of its range, a LoRA in the prompt that is not found, a mask
            without an image, options of a mask without one, or an unknown preprocessor.
        ImageError: an image that cannot be read, or is or becomes too small or too large.
    """
    from sdpy.pipelines.tags import with_prompt_loras

    check_ranges(given)
    given = with_prompt_loras(given)
    if given.mask is None and mask_options(given) != MaskOptions():
        raise UsageError("--invert-mask, --mask-blur and --only-masked need a mask")
    if given.image is not None:
        return _prepare_image(session, given)
    if given.mask is not None:
        raise UsageError("a mask needs the image that it is for")
    from sdpy.images.frame import Frame

    side = session.variant.sample_size
    whole = Frame.fit((given.width or side, given.height or side), multiple=1, min_side=1)
    controls = tuple(_fit_control(one, whole.source, whole.apply) for one in given.controls)
    request = Request(
        given.prompt, strength=given.strength, controls=controls, **_shared_options(given)
    )
    return PreparedRequest(request, lambda image: image, whole.content)


def _shared_options(given: ImageRequest) -> dict[str, Any]:
    return {field.name: getattr(given, field.name) for field in fields(GenerationOptions)}


def _prepare_image(session: Session, given: ImageRequest) -> PreparedRequest:
    """For image-to-image, or with a mask inpainting."""
    from sdpy.images.frame import Frame
    from sdpy.images.mask import composite
    from sdpy.images.tensors import image_to_tensor, mask_to_tensor
    from sdpy.pipelines.task import min_side

    assert given.image is not None
    if given.mask is not None and given.only_masked:
        return _prepare_region(session, given)
    variant = session.variant
    frame = Frame.fit(
        _size_of(given.image),
        multiple=variant.vae.downsample_factor,
        max_pixels=variant.max_pixels,
        min_side=min_side(variant),
        width=given.width,
        height=given.height,
    )
    opened = _open(given.image, least=frame.scaled)
    frame = replace(frame, source=opened.image.size)  # smaller, if it was reduced
    mask = None if given.mask is None else _load_mask(given, opened.image.size)
    controls = tuple(_fit_control(one, frame.source, frame.apply) for one in given.controls)
    original = frame.apply(opened.image)
    white = None if mask is None else frame.apply_mask(mask.image)
    request = Request(
        given.prompt,
        image=image_to_tensor(original),
        mask=None if white is None else mask_to_tensor(white),
        strength=given.strength,
        controls=controls,
        **_shared_options(given),
    )
    if mask is None or white is None:
        return PreparedRequest(request, frame.restore, frame.content)
    kept = original if opened.own is None else frame.apply(opened.own)
    repainted = white

    def finish(made: Image) -> Image:
        whole = composite(kept, _in_colours_of(opened, made), repainted)
        return _with_profile(opened, frame.restore(whole))

    return PreparedRequest(request, finish, frame.content, _mask_notices(given, mask))


def _prepare_region(session: Session, given: ImageRequest) -> PreparedRequest:
    """For inpainting of the masked part by itself, in an image of any size."""
    from sdpy.images.region import Region
    from sdpy.images.tensors import image_to_tensor, mask_to_tensor
    from sdpy.pipelines.task import min_side

    assert given.image is not None
    variant = session.variant
    opened = _open(given.image)
    mask = _load_mask(given, opened.image.size)
    side, size = variant.sample_size, None
    if given.width is not None or given.height is not None:
        size = (given.width or side, given.height or side)
    region = Region.around(
        mask.image,
        padding=given.mask_padding,
        multiple=variant.vae.downsample_factor,
        min_side=min_side(variant),
        pixels=(side * side, variant.max_pixels),
        size=size,
    )
    controls = tuple(_fit_control(one, opened.image.size, region.cut) for one in given.controls)
    request = Request(
        given.prompt,
        image=image_to_tensor(region.cut(opened.image)),
        mask=mask_to_tensor(region.cut_mask(mask.image)),
        strength=given.strength,
        controls=controls,
        **_shared_options(given),
    )
    kept = opened.image if opened.own is None else opened.own

    def finish(made: Image) -> Image:
        whole = region.put_back(kept, _in_colours_of(opened, made), mask.image)
        return _with_profile(opened, whole)

    return PreparedRequest(request, finish, kept.size, _mask_notices(given, mask))


def mask_options(given: ImageRequest) -> MaskOptions:
    """Those of a request's options that say how its mask is read."""
    return MaskOptions(**{one.name: getattr(given, one.name) for one in fields(MaskOptions)})


def _load_mask(given: ImageRequest, size: tuple[int, int]) -> Mask:
    from sdpy.images.mask import load_mask

    assert given.mask is not None
    return load_mask(given.mask, size, invert=given.invert_mask, blur=given.mask_blur)


def _mask_notices(given: ImageRequest, mask: Mask) -> tuple[str, ...]:
    """Doubts about the mask, and options of it that change nothing."""
    if not given.only_masked and given.mask_padding != MaskOptions.mask_padding:
        return (*mask.doubts, "--mask-padding changes nothing without --only-masked")
    return mask.doubts


def _in_colours_of(opened: InputImage, made: Image) -> Image:
    """What was made, in the colours of the profile in which the image's pixels are kept."""
    from sdpy.images.profiles import from_srgb

    return made if opened.profile is None else from_srgb(made, opened.profile)


def _with_profile(opened: InputImage, image: Image) -> Image:
    if opened.profile is not None:
        image.info["icc_profile"] = opened.profile
    return image


def _size_of(image: ImageLike) -> tuple[int, int]:
    """Width and height of an upright image, without decoding it."""
    from sdpy.images.reading import size_of, upright_size

    return size_of(image) if isinstance(image, str | os.PathLike) else upright_size(image)


def _open(image: ImageLike, least: tuple[int, int] | None = None) -> InputImage:
    from sdpy.images.reading import open_input_image, to_input_image

    if isinstance(image, str | os.PathLike):
        return open_input_image(path_of(image), least=least)
    return to_input_image(image, least=least)


def _fit_control(
    control: ControlImage, size: tuple[int, int], cut: Callable[[Image], Image]
) -> Control:
    """The control with its image fitted to the generated one, as the ControlNet is shown it.

    Args:
        control: whose image, where it has another size, is scaled to cover this one, and its
            centre taken.
        size: width and height of the image that is changed, or generated.
        cut: makes what the model sees of an image of that size.
    """
    from sdpy.images.frame import Frame
    from sdpy.images.preprocess import find_preprocessor
    from sdpy.images.tensors import image_to_tensor
    from sdpy.pipelines.controlnet import Control

    preprocess = find_preprocessor(
        control.preprocessor, low=control.canny_low, high=control.canny_high
    )
    width, height = size
    cover = Frame.fit(
        _size_of(control.image),
        multiple=1,
        min_side=1,
        max_side=max(size),
        width=width,
        height=height,
    )
    image = _open(control.image, least=cover.scaled).image
    if image.size != size:
        image = replace(cover, source=image.size).apply(image)
    shown: Tensor = preprocess(image_to_tensor(cut(image)))
    return Control(
        path_of(control.weights),
        shown,
        control.scale,
        control.start,
        control.end,
        control_type=control.known_type,
        is_type_guessed=control.control_type is None,
    )
