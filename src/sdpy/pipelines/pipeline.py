"""The pipeline: a loaded model that is asked for images; the Python API and the commands' base."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from sdpy.images.metadata import NO_TEXTS, GeneratedImage
from sdpy.images.tensors import tensor_to_image
from sdpy.options import parse
from sdpy.pipelines.events import (
    ImageDecoded,
    ImageReady,
    Notice,
    PipelineEvent,
    Progress,
    StepDecoded,
    StepReady,
)
from sdpy.pipelines.generate import generate
from sdpy.pipelines.inputs import ImageRequest, prepare_request
from sdpy.pipelines.plan import plan_request, resolved
from sdpy.pipelines.recording import Recorder
from sdpy.pipelines.request import Request
from sdpy.pipelines.tags import with_prompt_loras
from sdpy.runtime.options import ModelOptions, open_session
from sdpy.runtime.session import Session

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdpy.pipelines.inputs import ImageLike

P = ParamSpec("P")
Result = TypeVar("Result")
Call = TypeVar("Call", bound=Callable[..., Any])


def _with_signature(call: Call, original: Callable[..., Any], options: type) -> Call:
    """Let ``help`` show the options in the place of the original's last parameter."""
    own = list(inspect.signature(original).parameters.values())[:-1]
    names = {parameter.name for parameter in own}
    given = inspect.signature(options).parameters.values()
    shown = [*own, *(parameter for parameter in given if parameter.name not in names)]
    shown.sort(key=lambda parameter: parameter.kind)
    call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return call


def _takes_request(
    options: Callable[P, ImageRequest],
) -> Callable[
    [Callable[[Pipeline, ImageRequest], Result]], Callable[Concatenate[Pipeline, P], Result]
]:
    """Let a method take the fields of an `ImageRequest` as its own arguments."""

    def decorate(
        method: Callable[[Pipeline, ImageRequest], Result],
    ) -> Callable[Concatenate[Pipeline, P], Result]:
        @functools.wraps(method)
        def call(self: Pipeline, /, *args: P.args, **kwargs: P.kwargs) -> Result:
            parsed: Any = parse(ImageRequest, kwargs)
            return method(self, options(*args, **parsed))

        return _with_signature(call, method, ImageRequest)

    return decorate


def _takes_image_and_request(
    options: Callable[P, ImageRequest],
) -> Callable[
    [Callable[[Pipeline, ImageLike, ImageRequest], Result]],
    Callable[Concatenate[Pipeline, ImageLike, P], Result],
]:
    """The same for a method that also takes an image."""

    def decorate(
        method: Callable[[Pipeline, ImageLike, ImageRequest], Result],
    ) -> Callable[Concatenate[Pipeline, ImageLike, P], Result]:
        @functools.wraps(method)
        def call(self: Pipeline, image: ImageLike, /, *args: P.args, **kwargs: P.kwargs) -> Result:
            parsed: Any = parse(ImageRequest, kwargs)
            return method(self, image, options(*args, **parsed))

        return _with_signature(call, method, ImageRequest)

    return decorate


def _takes_images_and_request(
    options: Callable[P, ImageRequest],
) -> Callable[
    [Callable[[Pipeline, ImageLike, ImageLike, ImageRequest], Result]],
    Callable[Concatenate[Pipeline, ImageLike, ImageLike, P], Result],
]:
    """The same for a method that also takes an image and its mask."""

    def decorate(
        method: Callable[[Pipeline, ImageLike, ImageLike, ImageRequest], Result],
    ) -> Callable[Concatenate[Pipeline, ImageLike, ImageLike, P], Result]:
        @functools.wraps(method)
        def call(
            self: Pipeline, image: ImageLike, mask: ImageLike, /, *args: P.args, **kwargs: P.kwargs
        ) -> Result:
            parsed: Any = parse(ImageRequest, kwargs)
            return method(self, image, mask, options(*args, **parsed))

        return _with_signature(call, method, ImageRequest)

    return decorate


class Pipeline:
    """A model that was loaded once and can be asked for images many times.

    Its methods take the options of the command line under the same names: ``--guidance-scale`` is
    ``guidance_scale``. They may be called from several threads; one request runs at a time. A
    ``with`` block, or `close`, releases the models.

    Args:
        session: that owns the models.
        metadata: whether images carry how they were made. That takes the SHA-256 of all weights,
            which are read once for it, beside the first image, and remembered.
    """

    def __init__(self, session: Session, *, metadata: bool = True) -> None:
        self.session = session
        self.metadata = metadata

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the models."""
        self.session.close()

    @_takes_request(ImageRequest)
    def generate(self, request: ImageRequest) -> Image | Any:
        """Generate an image of a prompt: ``generate("a cat", seed=1)``.

        Returns:
            A PIL image that carries its metadata; a list of them with ``num_samples`` above 1.

        Raises:
            UsageError, ImageError, WeightsError: a request that cannot work.
            ShortageError: there is not enough memory.
            GenerationError: numbers went wrong.
        """
        return self._images(request)

    @_takes_request(ImageRequest)
    def stream(self, request: ImageRequest) -> Iterator[PipelineEvent]:
        """The same as an iterator of events, for those who show progress in their own way.

        With ``image``, and ``mask``, it is image-to-image or inpainting.
        """
        return self.run([request])

    @_takes_image_and_request(ImageRequest)
    def img2img(self, image: ImageLike, request: ImageRequest) -> Image | Any:
        """Change an image towards a prompt: ``img2img("photo.jpg", "at night", strength=0.6)``.

        The first argument is a path or a PIL image of any size and mode; the others are those of
        `generate`.
        """
        return self._images(replace(request, image=image))

    @_takes_images_and_request(ImageRequest)
    def inpaint(self, image: ImageLike, mask: ImageLike, request: ImageRequest) -> Image | Any:
        """Repaint a part of an image; pixels outside the mask come back unchanged.

        The first two arguments are paths or PIL images of the same proportions, the image and its
        mask, which is white where the image is repainted; the others are those of `generate`.
        """
        return self._images(replace(request, image=image, mask=mask))

    def run(
        self, requests: Sequence[ImageRequest], *, step_interval: int | None = None
    ) -> Iterator[PipelineEvent]:
        """The events of several requests, which are computed together where that can be done.

        Args:
            requests: at least one.
            step_interval: every so many steps, what the images look like is an event.
        """
        asked = [with_prompt_loras(request) for request in requests]
        prepared = [prepare_request(self.session, request) for request in asked]
        recorders = [Recorder(self.session, request) for request in asked]
        yield from (Notice(text) for one in prepared for text in one.notices)
        is_computing = False
        for event in generate(self.session, [one.request for one in prepared], step_interval):
            if isinstance(event, Progress) and self.metadata and not is_computing:
                is_computing = True
                for recorder in recorders:
                    recorder.expect()
            if isinstance(event, ImageDecoded):
                image = prepared[event.request].finish(tensor_to_image(event.pixels))
                texts = NO_TEXTS
                if self.metadata:
                    texts = recorders[event.request].texts(event.resolved, image.size)
                made = GeneratedImage.of(image, texts, event.seed)
                yield ImageReady(event.number, event.request, event.sample, made)
            elif isinstance(event, StepDecoded):
                image = prepared[event.request].finish(tensor_to_image(event.pixels))
                seen = GeneratedImage.of(image, NO_TEXTS, requests[event.request].seed)
                place = (event.number, event.request, event.sample)
                yield StepReady(*place, event.step, event.steps, seen)
            else:
                yield event

    def resolve(self, request: ImageRequest) -> tuple[Request, tuple[int, int]]:
        """What a request comes to, with what it leaves to the model filled in; loads no model.

        Returns:
            The request of its first image, and the finished image's width and height.

        Raises:
            UsageError, ImageError, WeightsError: a request that cannot work.
        """
        prepared = prepare_request(self.session, request)
        with self.session.lock:
            plan = plan_request(self.session, prepared.request)
        return resolved(self.session, plan, request.seed), prepared.size

    def model_hash(self) -> str:
        """The first ten digits of the SHA-256 of the UNet's file, as A1111's web UI shows it."""
        state = self.session.source.fingerprint("unet")[0]
        return self.session.hashes.sha256(state)[:10]

    def _images(self, request: ImageRequest) -> Any:
        images = []
        for event in self.run([request]):
            if request.on_progress is not None:
                request.on_progress(event)
            if isinstance(event, ImageReady):
                images.append(event.image)
        return images[0] if request.num_samples == 1 else images


def _takes_model_options(
    options: Callable[P, ModelOptions],
) -> Callable[[Callable[[str, ModelOptions], Result]], Callable[Concatenate[str, P], Result]]:
    """Let a function take the fields of `ModelOptions` as its own arguments."""

    def decorate(
        function: Callable[[str, ModelOptions], Result],
    ) -> Callable[Concatenate[str, P], Result]:
        @functools.wraps(function)
        def call(model: str, /, *args: P.args, **kwargs: P.kwargs) -> Result:
            parsed: Any = parse(ModelOptions, kwargs)
            return function(model, options(*args, **parsed))

        return _with_signature(call, function, ModelOptions)

    return decorate


@_takes_model_options(ModelOptions)
def load(model: str, options: ModelOptions) -> Pipeline:
    """Load a model: ``load("demo")``, ``load("sd15", data="weights", dtype="bf16")``.

    Headers of files are read at once, weights when the first image needs them.

    Args:
        model: a variant's name, or the path of a diffusers folder or a single file.
        options: those of the command line that say which weights to use and where to compute.

    Raises:
        UsageError: an option that cannot work here.
        WeightsError: a file that is missing, broken or of the wrong kind.
    """
    return Pipeline(open_session(replace(options, model=model)))
