"""What the commands that make images share: opening a model, following it, and writing files."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpy.cli.display import open_display
from sdpy.cli.options import OutputOptions
from sdpy.cli.progress import follow
from sdpy.cli.steps import StepWriter, interval_of
from sdpy.cli.terminal import answer
from sdpy.errors import UsageError
from sdpy.runtime.options import ModelOptions

if TYPE_CHECKING:  # at run time these would import torch
    from sdpy.images.metadata import GeneratedImage
    from sdpy.jobs.output import ImageOutput
    from sdpy.pipelines.events import ImageReady, StepReady
    from sdpy.pipelines.inputs import ImageLike, ImageRequest
    from sdpy.pipelines.pipeline import Pipeline

STREAM = "-"
"""The name of standard input and standard output."""


def make_images(
    model: ModelOptions,
    output: OutputOptions,
    request: Callable[[], ImageRequest],
    *,
    default_model: str = "sd15",
) -> None:
    """Open a model, make the images of a request, write each when it is there, print its path.

    Args:
        model: which to open, and how it computes.
        output: where the images go.
        request: makes the request; called once the output has been checked.
        default_model: where the options name none.
    """
    asked = request()
    writer = _StreamWriter(output, asked) if _is_stream(output) else _FileWriter(output, asked)
    from sdpy.pipelines.pipeline import Pipeline
    from sdpy.runtime.options import open_session

    session = open_session(model, default_model=default_model, keep_models=False)
    with (
        Pipeline(session, metadata=not output.no_metadata) as pipeline,
        open_display(output.quiet) as display,
    ):
        writer.prepare(pipeline)
        events = follow(
            pipeline.run([asked], step_interval=interval_of(output)),
            display,
            _seeds_text(asked),
            output.verbose,
        )
        # Closed at once when writing fails, so that the bar is gone before the error is printed.
        with closing(events) as images:
            for ready in images:
                for line in writer.write(ready):
                    display.line(line)


def _seeds_text(asked: ImageRequest) -> str:
    last = asked.seed + asked.num_samples - 1
    return f"seed: {asked.seed}" if last == asked.seed else f"seeds: {asked.seed} to {last}"


class _FileWriter:
    """Writes images to files, and prints their paths."""

    def __init__(self, options: OutputOptions, asked: ImageRequest) -> None:
        from sdpy.images.paths import check_format
        from sdpy.jobs.names import NameTemplate
        from sdpy.jobs.output import ImageOutput
        from sdpy.jobs.values import OPTION_FIELDS

        if options.overwrite and options.no_clobber:
            raise UsageError("--overwrite and --no-clobber contradict each other: leave out one")
        template = NameTemplate.parse(options.final_image, OPTION_FIELDS)
        self.options, self.asked = options, asked
        self.output = ImageOutput(template, options.overwrite, options.no_clobber)
        self.values: list[dict[str, Any]] = [{} for _ in range(asked.num_samples)]
        self.paths: list[Path] = []
        self.steps = StepWriter(options, replaces=self.output.replaces)
        check_format(template.text)
        if template.is_plain:
            self._choose_paths()

    def prepare(self, pipeline: Pipeline) -> None:
        """Find the names that depend on the model."""
        if not self.output.template.is_plain:
            self.values = _values(pipeline, self.asked, self.output)
            self._choose_paths()

    def _choose_paths(self) -> None:
        self.paths = self.output.paths(self.values)
        self.output.check(self.paths)
        self.steps.check(self.paths)

    def write(self, ready: ImageReady | StepReady) -> list[str]:
        """Write an image, or what it looks like after a step; returns what is to be said of it."""
        from sdpy.pipelines.events import StepReady

        if isinstance(ready, StepReady):
            self.steps.write(ready, self.paths[ready.sample])
            return []
        lines, image = [], ready.image
        path, values = self.paths[ready.sample], self.values[ready.sample]
        self.steps.finish(ready, path)
        if self.output.replaces and path.exists():
            lines = [f"replacing {path}"]
        written = self.output.write(image, path, values)
        if self.options.json:
            answer(image_json(image, written))
        elif not self.options.quiet:
            answer(str(written))
        return lines


class _StreamWriter:
    """Writes one image to standard output."""

    def __init__(self, options: OutputOptions, asked: ImageRequest) -> None:
        if asked.num_samples != 1:
            raise UsageError("-o - is for one image: leave out --num-samples, or name files")
        if interval_of(options) is not None:
            raise UsageError("-o - is for one image: name a file, which those of the steps go with")
        if options.json:
            raise UsageError("-o - and --json both write to standard output: name a file")
        if sys.stdout.isatty():
            raise UsageError("-o - writes a PNG, which is nothing for a terminal: redirect it")

    def prepare(self, pipeline: Pipeline) -> None:
        """Nothing depends on the model."""

    def write(self, ready: ImageReady | StepReady) -> list[str]:
        """Write an image; returns what is to be said of it."""
        from sdpy.images.files import encode_image

        sys.stdout.buffer.write(encode_image(ready.image, "PNG", ready.image.texts))
        sys.stdout.buffer.flush()
        return []


def _is_stream(options: OutputOptions) -> bool:
    return str(options.final_image) == STREAM


def _values(pipeline: Pipeline, asked: ImageRequest, output: ImageOutput) -> list[dict[str, Any]]:
    """What the fields of the images' names are."""
    from dataclasses import replace

    from sdpy.jobs.values import image_values

    resolved, size = pipeline.resolve(asked)
    moment = datetime.now()
    values = [
        image_values(
            replace(resolved, seed=asked.seed + sample),
            model=pipeline.session.name,
            size=size,
            moment=moment,
            sample=sample,
        )
        for sample in range(asked.num_samples)
    ]
    if "model_hash" in output.template.fields:
        model_hash = pipeline.model_hash()
        values = [{**one, "model_hash": model_hash} for one in values]
    return values


def image_json(image: GeneratedImage, path: Path) -> str:
    """What ``--json`` prints of an image: a line."""
    record = json.loads(image.record) if image.record else None
    facts = {"path": str(path), "seed": image.seed, "width": image.width, "height": image.height}
    return json.dumps({**facts, "record": record})


def prompt_of(prompt: str) -> str:
    """A prompt, which is read from standard input where it is ``-``.

    Raises:
        UsageError: what is read is not UTF-8.
    """
    if prompt != STREAM:
        return prompt
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on standard input is not UTF-8: {error}") from error


def image_of(path: Path) -> ImageLike:
    """The path of an image, or the image on standard input where it is ``-``.

    Raises:
        ImageError: what is read is no image.
    """
    if str(path) != STREAM:
        return path
    from sdpy.images.reading import read_image

    return read_image(io.BytesIO(sys.stdin.buffer.read()), "standard input")


def check_streams(**arguments: object) -> None:
    """Refuse more than one argument that is to be read from standard input.

    Raises:
        UsageError: names them.
    """
    names = [name for name, value in arguments.items() if str(value) == STREAM]
    if len(names) > 1:
        raise UsageError(
            f"standard input can be only one of {' and '.join(names)}: give the others otherwise"
        )
