"""What the commands that make images share: opening a model, following it, and writing files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from sdpy.cli.options import OutputOptions
from sdpy.cli.progress import follow
from sdpy.runtime.options import ModelOptions

if TYPE_CHECKING:  # at run time these would import torch
    from sdpy.pipelines.inputs import ImageRequest


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
    from sdpy.images.paths import check_output, numbered_paths

    asked = request()
    check_output(output.final_image, asked.num_samples)
    from sdpy.images.files import save_image
    from sdpy.pipelines.pipeline import Pipeline
    from sdpy.runtime.options import open_session

    session = open_session(model, default_model=default_model, keep_models=False)
    paths = numbered_paths(output.final_image, asked.num_samples)
    with Pipeline(session) as pipeline:
        events = pipeline.run([asked])
        # Closed at once when writing fails, so that the bar is gone before the error is printed.
        with closing(follow(events, quiet=output.quiet, verbose=output.verbose)) as images:
            for ready in images:
                path = paths[ready.sample]
                save_image(ready.image, path, ready.image.texts)
                if not output.quiet:
                    print(path, flush=True)
