"""``sdpy replay IMAGE...``."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpy.cli.display import ProgressDisplay, open_display
from sdpy.cli.images import image_json
from sdpy.cli.info import ImageFiles
from sdpy.cli.options import OutputOptions
from sdpy.cli.progress import follow
from sdpy.cli.steps import StepWriter, interval_of
from sdpy.errors import SdpyError, UsageError
from sdpy.runtime.options import ModelOptions

if TYPE_CHECKING:  # at run time these would import torch
    from sdpy.jobs.output import ImageOutput
    from sdpy.pipelines.events import ImageReady
    from sdpy.pipelines.pipeline import Pipeline
    from sdpy.pipelines.recalling import Recalled

Source = Annotated[
    Path | None,
    typer.Option(
        show_default="as recorded",
        help="The image that was changed, where it is not where it was.",
    ),
]
MaskSource = Annotated[
    Path | None,
    typer.Option(show_default="as recorded", help="Its mask, likewise."),
]


@dataclass(frozen=True)
class _Replay:
    """An image, what makes it again, and where that is written to; None for nowhere."""

    path: Path
    recalled: Recalled
    names: ImageOutput
    target: Path
    values: dict[str, Any]
    steps: StepWriter | None


def replay(
    images: ImageFiles,
    model: ModelOptions,
    output: OutputOptions,
    image: Source = None,
    mask: MaskSource = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Write nothing; fail with exit code 1 where an image is not equal in every pixel.",
        ),
    ] = False,
) -> None:
    """Make images again as their metadata says, and compare them.

    That is sdpy's own record, or else the text of A1111's web UI. IMAGE.png becomes
    IMAGE.replay.png, unless -o names a file, which may have the fields {name} (of IMAGE),
    {seed}, {prompt}, {slug}, {words} and {n}. Files of weights and input images are compared by
    their SHA-256, and whatever differs is told. Options of the model that are given here take the
    place of those that were recorded.
    """
    from sdpy.images.compare import difference_to_file

    replays = [
        _prepare(path, model, output, {"image": image, "mask": mask}, check) for path in images
    ]
    differing = 0
    with open_display(output.quiet) as display, _Models() as models:
        for one in replays:
            display.line(f"{one.path}: {_line(one.recalled.request.prompt)}")
            for doubt in one.recalled.doubts:
                display.line(f"  {doubt}")
            pipeline = models.open(one.recalled.model, metadata=not output.no_metadata)
            made = _make(pipeline, one, display, output)
            difference = difference_to_file(made.image, one.path)
            differing += difference is not None
            display.line(f"  {difference or 'equal in every pixel'}")
            if not check:
                _write(made, one, output, display)
    if check and differing:
        raise SdpyError(f"{differing} of {len(replays)} images are not equal in every pixel")


def _prepare(
    path: Path,
    model: ModelOptions,
    output: OutputOptions,
    images: dict[str, Path | None],
    check: bool,
) -> _Replay:
    """What makes an image again; everything that can be found out without a model is."""
    from sdpy.jobs.fields import prompt_fields
    from sdpy.jobs.names import NameTemplate
    from sdpy.jobs.output import ImageOutput
    from sdpy.metadata.read import read_metadata
    from sdpy.pipelines.recalling import recall_parameters, recall_record

    found = read_metadata(path)
    given = {role: one for role, one in images.items() if one is not None}
    try:
        if found is not None and found.record is not None:
            recalled = recall_record(found.record, given)
        elif found is not None and found.parameters is not None and found.parameters.facts:
            recalled = recall_parameters(found.parameters, given)
        else:
            raise UsageError("it does not say how it was made")
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    changes = {
        field.name: getattr(model, field.name)
        for field in fields(ModelOptions)
        if getattr(model, field.name) != field.default
    }
    weights = {**(recalled.model.weights or {}), **(model.weights or {})}
    chosen = replace(recalled.model, **{**changes, "weights": weights or None})
    recalled = replace(recalled, model=chosen)
    text = str(path.with_name(f"{path.stem}.replay{path.suffix}"))
    template = NameTemplate(text, (text,))
    if output.final_image != OutputOptions.final_image:
        template = NameTemplate.parse(output.final_image, ("name",))
    names = ImageOutput(template, output.overwrite, output.no_clobber)
    request = recalled.request
    values = {"name": path.stem, "seed": request.seed, **prompt_fields(request.prompt)}
    (target,) = names.paths([values])
    steps = None
    if not check:
        steps = StepWriter(output, replaces=names.replaces)
        names.check([target])
        steps.check([target])
    return _Replay(path, recalled, names, target, values, steps)


class _Models:
    """One open model after another; the same is not opened twice in a row."""

    def __init__(self) -> None:
        self.options: tuple[ModelOptions, bool] | None = None
        self.pipeline: Pipeline | None = None

    def __enter__(self) -> _Models:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pipeline is not None:
            self.pipeline.close()

    def open(self, options: ModelOptions, *, metadata: bool) -> Pipeline:
        """The model of these options."""
        from sdpy.pipelines.pipeline import Pipeline
        from sdpy.runtime.options import open_session

        if self.pipeline is None or self.options != (options, metadata):
            self.__exit__()
            self.pipeline = Pipeline(open_session(options), metadata=metadata)
            self.options = (options, metadata)
        return self.pipeline


def _make(
    pipeline: Pipeline, one: _Replay, display: ProgressDisplay, output: OutputOptions
) -> ImageReady:
    """Make the image again; say what is not as it was, and write its steps."""
    from sdpy.pipelines.events import StepReady
    from sdpy.pipelines.recalling import changed_files, differing_environment
    from sdpy.pipelines.recording import Recorder, environment

    recalled, steps = one.recalled, one.steps
    recorder = Recorder(pipeline.session, recalled.request)
    for line in changed_files(recalled, recorder.files):
        display.line(f"  {line}")
    if recalled.record is not None:
        for line in differing_environment(recalled.record, environment(pipeline.session)):
            display.line(f"  {line}")
    interval = None if steps is None else interval_of(output)
    run = pipeline.run([recalled.request], step_interval=interval)
    with closing(follow(run, display, None, output.verbose)) as events:
        for ready in events:
            if not isinstance(ready, StepReady):
                made = ready
            elif steps is not None:
                steps.write(ready, one.target)
    return made


def _write(made: ImageReady, one: _Replay, output: OutputOptions, display: ProgressDisplay) -> None:
    if one.steps is not None:
        one.steps.finish(made, one.target)
    if one.names.replaces and one.target.exists():
        display.line(f"replacing {one.target}")
    written = one.names.write(made.image, one.target, one.values)
    if output.json:
        print(image_json(made.image, written), flush=True)
    elif not output.quiet:
        print(written, flush=True)


def _line(text: str) -> str:
    return " ".join(text.split())
