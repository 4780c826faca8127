"""What a pipeline reports while it generates images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sdpy.images.metadata import GeneratedImage
from sdpy.pipelines.request import Request
from sdpy.runtime.fallbacks import Notice
from sdpy.text.prompts import TokenizedPrompt

__all__ = [
    "Detail",
    "Event",
    "ImageDecoded",
    "ImageReady",
    "Notice",
    "PipelineEvent",
    "Progress",
    "PromptTokenized",
    "StepDecoded",
    "StepReady",
]


@dataclass(frozen=True)
class Detail:
    """How something is done, for those who want to know (``--verbose``)."""

    text: str


@dataclass(frozen=True)
class PromptTokenized:
    """The tokens of a prompt are known.

    Attributes:
        what: "prompt" or "negative prompt".
        prompt: its tokens.
    """

    what: str
    prompt: TokenizedPrompt


@dataclass(frozen=True)
class Progress:
    """A step of a batch is done.

    Attributes:
        first, last: numbers of the batch's images, counted from 1 over all requests.
        images: how many images there will be.
        step: how many steps of this batch are done; 0 before the first.
        steps: how many there will be.
    """

    first: int
    last: int
    images: int
    step: int
    steps: int


@dataclass(frozen=True)
class ImageDecoded:
    """An image is finished.

    Attributes:
        number: counted from 1 over all requests.
        request: index of its request.
        sample: its number within the request, from 0.
        seed: of its noise.
        resolved: the request of this image alone, with what was left to the model filled in.
        pixels: (1, 3, H, W) float32 on the CPU, in about [-1, 1].
    """

    number: int
    request: int
    sample: int
    seed: int
    resolved: Request
    pixels: Tensor


@dataclass(frozen=True)
class StepDecoded:
    """What an image looks like between two steps.

    Attributes:
        number, request, sample: see `ImageDecoded`.
        step: how many steps are done.
        steps: how many there will be.
        pixels: (1, 3, H, W) float32 on the CPU, in about [-1, 1].
    """

    number: int
    request: int
    sample: int
    step: int
    steps: int
    pixels: Tensor


@dataclass(frozen=True)
class StepReady:
    """What an image looks like between two steps.

    Attributes:
        number, request, sample: see `ImageReady`.
        step: how many steps are done.
        steps: how many there will be.
        image: without metadata.
    """

    number: int
    request: int
    sample: int
    step: int
    steps: int
    image: GeneratedImage


@dataclass(frozen=True)
class ImageReady:
    """An image is finished.

    Attributes:
        number: counted from 1 over all requests.
        request: index of its request.
        sample: its number within the request, from 0.
        image: with its metadata.
    """

    number: int
    request: int
    sample: int
    image: GeneratedImage


Event = Notice | Detail | PromptTokenized | Progress | StepDecoded | ImageDecoded
"""What generating yields, down to tensors."""

PipelineEvent = Notice | Detail | PromptTokenized | Progress | StepReady | ImageReady
"""What a pipeline yields, with finished images."""
